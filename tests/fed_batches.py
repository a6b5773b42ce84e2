"""Datasets and samplers that draw at random wherever they can, and a way to take batches from a feed."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from torchkeep.training.run.feeds import feed_for

SAMPLES = 23
KEY = ("test", 7)


def drawn(index):
    """One sample: its index, and a draw of each global generator."""
    draws = [torch.randint(10**6, ()).item(), random.randrange(10**6), np.random.randint(10**6)]  # noqa: NPY002, S311 - the global ones, on purpose
    return torch.tensor([index, *draws, torch.initial_seed() % 10**6])


class Items(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return drawn(index)


class BatchItems(Items):
    def __getitems__(self, indices):
        shift = torch.randint(10**6, ()).item()
        return [drawn(index) + shift for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        for index in range(worker.id if worker else 0, SAMPLES, worker.num_workers if worker else 1):
            yield drawn(index)


class OwnPlace:
    """A sampler that keeps epoch, order and position, and gives them as state; it begins where it was put."""

    def __init__(self, count=SAMPLES):
        self.count, self.generator = count, torch.Generator().manual_seed(5)
        self.order, self.position = [], 0

    def __len__(self):
        return self.count

    def __iter__(self):
        if not self.order:
            self.order = torch.randperm(self.count, generator=self.generator).tolist()
        while self.position < self.count:
            self.position += 1
            yield self.order[self.position - 1]
        self.order, self.position = [], 0

    def state_dict(self):
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
        self.order, self.position = list(state["order"]), state["position"]


class CountsYielded:
    """A sampler whose state at an epoch's end says that all was given, as torchdata's distributed one does."""

    def __init__(self):
        self.epoch, self.given, self.skip = 0, 0, None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return SAMPLES

    def __iter__(self):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        self.given, self.skip = self.skip or 0, None
        for index in order[self.given :]:
            self.given += 1
            yield index

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.skip = state["given"]


class CountsEpochs:
    """A sampler that shuffles by the epoch that it is told."""

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return SAMPLES

    def __iter__(self):
        return iter(torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch + 1)).tolist())


class OwnPlaceLoader:
    """A loader that keeps its own place, as a StatefulDataLoader does."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        while self.given < 6:
            self.given += 1
            yield torch.tensor(self.given)
        self.given = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


def make_rows():
    """A function that makes an iterator; what it draws is seen."""
    for index in range(6):
        yield drawn(index)


def take(source, epochs, start=(0, 0, None)):
    """Take the batches of all epochs up to a number, from a place on.

    Returns:
        Pairs: the place after a batch, and the batch.
    """
    feed = feed_for(source, KEY)
    epoch, done, kept = start
    taken = []
    try:
        assert feed.begin(epoch, done, kept) is None
        while epoch < epochs:
            try:
                batch = feed.following()
            except StopIteration:
                epoch, done = epoch + 1, 0
                if epoch < epochs:
                    assert feed.begin(epoch, 0, None) is None
                continue
            done += 1
            taken.append(((epoch, done, feed.kept(done)), batch))
    finally:
        feed.close()
    return taken


def same(first, second):
    """Whether the batches taken are the same, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(one, other) for (_, one), (_, other) in zip(first, second, strict=True)
    )
