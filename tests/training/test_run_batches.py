"""The batches of a run are functions of seed, epoch and number, and can be had again from any place on."""

from __future__ import annotations

import multiprocessing
import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from fed_batches import (
    SAMPLES,
    BatchItems,
    CountsEpochs,
    CountsYielded,
    Items,
    OwnPlace,
    OwnPlaceLoader,
    Stream,
    make_rows,
    same,
    take,
)
from torchkeep.errors import SourceError, TorchkeepWarning
from torchkeep.training.run.feeds import check_source, feed_for


def generator():
    return torch.Generator().manual_seed(3)


class Shuffled:
    """Draws from a global generator at every step, as samplers written by hand do."""

    def __len__(self):
        return SAMPLES

    def __iter__(self):
        for _ in range(SAMPLES):
            yield torch.randint(SAMPLES, ()).item() if random.random() < 0.5 else np.random.randint(SAMPLES)  # noqa: NPY002, S311 - the global ones, on purpose


class Every:
    """Wraps a batch sampler, as those do that share batches among processes."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        for batch in self.batch_sampler:
            yield batch[::2]


def noisy(samples):
    return torch.stack(samples) + torch.randint(10**6, ())


PLAIN = {
    "shuffled": lambda **how: DataLoader(Items(), 4, shuffle=True, **how),
    "in order": lambda **how: DataLoader(Items(), 4, **how),
    "drop_last": lambda **how: DataLoader(Items(), 4, shuffle=True, drop_last=True, **how),
    "own generator": lambda **how: DataLoader(Items(), 4, shuffle=True, generator=generator(), **how),
    "no batching": lambda **how: DataLoader(Items(), None, shuffle=True, **how),
    "__getitems__": lambda **how: DataLoader(BatchItems(), 4, shuffle=True, **how),
    "random collate": lambda **how: DataLoader(Items(), 4, shuffle=True, collate_fn=noisy, **how),
    "weighted": lambda **how: DataLoader(Items(), 4, sampler=WeightedRandomSampler([1.0] * SAMPLES, 40), **how),
    "subset": lambda **how: DataLoader(Items(), 4, sampler=SubsetRandomSampler(range(9)), **how),
    "replacement": lambda **how: DataLoader(
        Items(),
        4,
        sampler=RandomSampler(range(SAMPLES), replacement=True, num_samples=70, generator=generator()),
        **how,
    ),
    "global draws": lambda **how: DataLoader(Items(), 4, sampler=Shuffled(), **how),
    "batch sampler": lambda **how: DataLoader(
        Items(), batch_sampler=BatchSampler(RandomSampler(range(SAMPLES)), 5, drop_last=False), **how
    ),
    "list of batches": lambda **how: DataLoader(Items(), batch_sampler=[[3, 1], [2], [0, 4]], **how),
    "distributed": lambda **how: DataLoader(
        Items(), 4, sampler=DistributedSampler(range(SAMPLES), num_replicas=2, rank=1), **how
    ),
    "wrapped": lambda **how: DataLoader(
        Items(),
        batch_sampler=Every(
            BatchSampler(RandomSampler(range(SAMPLES), generator=generator()), 5, drop_last=False)
        ),
        **how,
    ),
    "wrapped epochs": lambda **how: DataLoader(
        Items(), batch_sampler=Every(BatchSampler(CountsEpochs(), 5, drop_last=False)), **how
    ),
    "own place": lambda **how: DataLoader(Items(), 4, sampler=OwnPlace(), **how),
    "counts yielded": lambda **how: DataLoader(Items(), 4, sampler=CountsYielded(), **how),
}
OTHERS = {
    "stream": lambda: DataLoader(Stream(), 4),
    "list": lambda: [torch.tensor(number) for number in range(5)],
    "function": lambda: make_rows,
    "loader with a place": OwnPlaceLoader,
}


def global_states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one


def check_every_place(make, epochs, places=slice(None)):
    """Take all batches, then again from each place in a new loader; return them."""
    source, before = make(), global_states()
    whole = take(source, epochs)
    for one, other in zip(before, global_states(), strict=True):
        assert str(one) == str(other), "loading disturbed the main process's random state"
    for number in range(len(whole))[places]:
        torch.manual_seed(number)  # what the main process draws meanwhile has no say
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TorchkeepWarning)
            rest = take(make(), epochs, whole[number][0])
        assert same(rest, whole[number + 1 :]), f"gone on after batch {number}"
    return whole


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_an_epoch_can_be_gone_on_with_from_any_batch(name):
    """Three epochs, each place in them: what follows is what would have, and no global generator noticed."""
    whole = check_every_place({**PLAIN, **OTHERS}[name], 3)
    assert len({place[0] for place, _ in whole}) == 3


@pytest.mark.parametrize("persistent", [False, True], ids=["ended", "persistent"])
@pytest.mark.parametrize("name", ["shuffled", "own generator", "own place", "__getitems__"])
def test_workers_change_nothing(name, persistent):
    """Two workers give the batches that none give, from within an epoch too, and also where they live on."""
    make = PLAIN[name]
    none = take(make(), 3)
    two = take(make(num_workers=2, persistent_workers=persistent), 3)
    assert same(none, two)
    place = two[8][0]
    assert place[0] == 1
    assert same(take(make(num_workers=2, persistent_workers=persistent), 3, place), two[9:])


@pytest.mark.parametrize("persistent", [False, True], ids=["ended", "persistent"])
def test_a_stream_among_workers_is_replayed(persistent):
    """Each worker of an iterable dataset draws the same again, in later epochs too."""
    check_every_place(
        lambda: DataLoader(Stream(), 4, num_workers=2, persistent_workers=persistent), 2, places=slice(2, 9, 6)
    )


def test_augmentations_differ_between_batches_epochs_and_keys():
    """The draws are keyed by all three, so that no two batches are augmented alike."""
    draws = [tuple(batch[0, 1:].tolist()) for _, batch in take(PLAIN["in order"](), 3)]
    feed = feed_for(PLAIN["in order"](), ("test", 8))
    feed.begin(0, 0, None)
    draws.append(tuple(feed.following()[0, 1:].tolist()))
    assert all(len(set(column)) == len(draws) for column in zip(*draws, strict=True))


def test_what_is_skipped_is_not_loaded():
    """Going on late in an epoch costs no loading: only the rest is asked of the dataset."""
    asked = []

    class Watched(Items):
        def __getitem__(self, index):
            asked.append(index)
            return index

    place = take(DataLoader(Watched(), 4), 1)[3][0]
    asked.clear()
    take(DataLoader(Watched(), 4), 1, place)
    assert asked == list(range(16, SAMPLES))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_replay_of_a_stream_is_told(workers):
    """Loading a part of an epoch for nothing is no secret."""
    place = take(DataLoader(Stream(), 4, num_workers=workers), 1)[2][0]
    with pytest.warns(TorchkeepWarning, match="3 batches of epoch 0 are loaded again"):
        take(DataLoader(Stream(), 4, num_workers=workers), 1, place)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (lambda: DataLoader(Items(), 5), "are not those"),
        (lambda: DataLoader(Items(), 4, shuffle=True), "are not those"),
        (lambda: DataLoader(Items(), 16), "has only 2 batches"),
    ],
    ids=["size", "order", "fewer"],
)
def test_another_order_is_noticed(other, found):
    """A loader that would give the rest of another epoch says so, instead of training on some samples twice."""
    place = take(DataLoader(Items(), 4), 1)[3][0]
    feed = feed_for(other(), ("test", 7))
    assert found in feed.begin(*place)
    feed.close()


def test_other_lengths_and_workers_are_noticed():
    """A list that has grown, and a stream divided among other workers, are not what was begun with."""
    place = take([1, 2, 3], 1)[0][0]
    assert "has 4 batches, and had 3" in feed_for([1, 2, 3, 4], ("test", 7)).begin(*place)
    place = take(DataLoader(Stream(), 4), 1)[0][0]
    feed = feed_for(DataLoader(Stream(), 4, num_workers=1), ("test", 7))
    with pytest.warns(TorchkeepWarning, match="loaded again"):
        assert "has 1 workers and had 0" in feed.begin(*place)
    feed.close()


def test_another_number_of_samples_is_noticed():
    """What was trained on so far is the same in a dataset that has grown; the rest of the epoch is not."""
    place = take(DataLoader(range(8), 2), 1)[1][0]
    feed = feed_for(DataLoader(range(9), 2), ("test", 7))
    assert feed.begin(*place) == "its dataset has 9 samples, and had 8"
    feed.close()


def test_a_loader_with_an_iterator_of_its_own_is_refused():
    """Loaders that go on for ever, kept so that workers live on, never ask the run's sampler."""

    class Endless(DataLoader):
        def __init__(self, *parts, **options):
            super().__init__(*parts, **options)
            self.endless = super().__iter__()

        def __iter__(self):
            for _ in range(len(self)):
                yield next(self.endless)

    feed = feed_for(Endless(range(8), 2), ("test", 7))
    feed.begin(0, 0, None)
    with pytest.raises(SourceError, match="Endless gives batches that its sampler did not draw"):
        feed.following()
    feed.close()


def test_places_that_are_past_are_forgotten():
    """In an epoch of a million batches they would fill the memory; a sampler's own state is large."""
    feed = feed_for(DataLoader(range(900)), ("test", 7))
    feed.begin(0, 0, None)
    for _ in range(900):
        feed.following()
    assert len(feed._order._marks) <= 3
    feed.close()


def test_a_sampler_with_hidden_randomness_is_noticed():
    """An order from a generator that nobody can reach can't be drawn again, and does not pass for the same."""

    class Hidden(Shuffled):
        def __iter__(self):
            return iter(random.Random().sample(range(SAMPLES), SAMPLES))  # noqa: S311 - not for secrets

    place = take(DataLoader(Items(), 4, sampler=Hidden()), 1)[2][0]
    assert "are not those" in feed_for(DataLoader(Items(), 4, sampler=Hidden()), ("test", 7)).begin(*place)


class Epochs(Items):
    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return torch.tensor(self.epoch)


@pytest.mark.parametrize("workers", [0, 1])
def test_datasets_are_told_the_epoch_in_workers_too(workers):
    """A persistent worker has a copy of the dataset that the main process can't reach any more."""
    taken = take(DataLoader(Epochs(), 8, num_workers=workers, persistent_workers=workers > 0), 3)
    assert all(place[0] == batch.unique().item() for place, batch in taken)


def remember_own_dataset(_):
    info = get_worker_info()
    info.dataset.seen = type(info.dataset).__name__


class Seen(Items):
    seen = ""

    def __getitem__(self, index):
        return torch.tensor([self.seen == "Seen", get_worker_info().dataset is self])


def test_a_worker_starts_as_the_user_wants_with_the_users_dataset():
    """worker_init_fn runs, and get_worker_info() shows the dataset that was given, changeable as ever."""
    taken = take(DataLoader(Seen(), 8, num_workers=2, worker_init_fn=remember_own_dataset), 1)
    assert all(batch.all() for _, batch in taken)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_give_the_same(method):
    """What is sent to a worker can be pickled."""
    none = take(PLAIN["shuffled"](), 1)
    assert same(none, take(PLAIN["shuffled"](num_workers=1, multiprocessing_context=method), 1))


def test_the_users_loader_is_left_alone():
    """Its own iteration goes on as before, with the same parts."""
    loader = PLAIN["shuffled"](num_workers=1)
    parts = dict(vars(loader))
    take(loader, 1)
    assert vars(loader) == parts
    assert len(list(loader)) == len(loader)


def test_a_subclass_keeps_what_it_does():
    """A loader that changes its batches on the way out still does."""

    class Doubling(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                yield 2 * batch

    doubled, plain = take(Doubling(Items(), 4, shuffle=True), 2), take(PLAIN["shuffled"](), 2)
    assert all(torch.equal(two, 2 * one) for (_, two), (_, one) in zip(doubled, plain, strict=True))


def test_no_worker_is_left():
    """Closed within an epoch, workers that would live on have ended."""
    before = set(multiprocessing.active_children())
    feed = feed_for(PLAIN["shuffled"](num_workers=2, persistent_workers=True), ("test", 7))
    feed.begin(0, 0, None)
    feed.following()
    assert len(set(multiprocessing.active_children()) - before) == 2
    feed.close()
    assert set(multiprocessing.active_children()) <= before


def test_out_of_order_workers_are_put_in_order():
    """in_order=False gives what is ready first, which can't be had again; the run says that it takes turns."""
    with pytest.warns(TorchkeepWarning, match="in_order=False"):
        taken = take(PLAIN["shuffled"](num_workers=2, in_order=False), 1)
    assert same(taken, take(PLAIN["shuffled"](), 1))


@pytest.mark.parametrize(
    "source",
    [iter([1]), (number for number in (1, 2)), "batches", 3],
    ids=["iterator", "generator", "text", "number"],
)
def test_what_can_not_be_gone_through_twice_is_refused(source):
    """A second epoch of an exhausted iterator would be an endless loop over nothing."""
    with pytest.raises(SourceError, match=r"goes through its loader|takes a DataLoader"):
        check_source(source)


def test_shuffles_are_uniform():
    """Keyed orders are drawn by torch's own sampler: first places are spread over all samples."""
    firsts = {batch[0, 0].item() for _, batch in take(DataLoader(Items(), SAMPLES, shuffle=True), 120)}
    assert len(firsts) == SAMPLES


def test_sequential_sampler_is_untouched():
    """An order that nobody shuffled is given as it is."""
    taken = take(DataLoader(Items(), 4, sampler=SequentialSampler(range(SAMPLES))), 1)
    assert torch.cat([batch[:, 0] for _, batch in taken]).tolist() == list(range(SAMPLES))
