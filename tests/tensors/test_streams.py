"""Keyed generators: their state is all of the key and nothing else."""
# ruff: noqa: S311, NPY002 - the global generators are what is tested

import contextlib
import random
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.tensors import streams
from torchkeep.tensors.streams import DIRECT, Stream, forked_randomness, key_bytes, keyed_generator, secret

PART = st.one_of(
    st.text(max_size=3), st.binary(max_size=3), st.integers(), st.lists(st.integers(), max_size=3).map(tuple)
)


def words(generator, count):
    return torch.empty(count, dtype=torch.int32).random_(generator=generator).tolist()


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_no_two_keys_are_spelled_alike(one, other):
    """Text, bytes, numbers and tuples keep apart, however they are cut into parts."""
    typed = [[(type(part), part) for part in key] for key in (one, other)]
    assert (key_bytes(*one) == key_bytes(*other)) == (typed[0] == typed[1])


def test_keys_that_look_alike_differ():
    """The cases that a careless spelling confuses: moved borders, a number and its text, signs, nesting."""
    keys = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (1,),
        ("1",),
        (-1,),
        (255,),
        (b"a",),
        ("a",),
        ((1, 2),),
        (1, 2),
        ((1,), 2),
    ]
    assert len({key_bytes(*key) for key in keys}) == len(keys)


def test_equal_keys_give_equal_streams_and_others_do_not():
    """A seed of any size and sign counts whole: 2^32 and 2^64 apart are other streams."""
    assert words(keyed_generator("init", 7), 1300) == words(keyed_generator("init", 7), 1300)
    drawn = [words(keyed_generator("init", seed), 8) for seed in (0, 1, -1, 2**32, 2**64, -(2**64), 10**40)]
    assert all(one != other for one, other in pairwise(sorted(drawn)))


def test_the_whole_state_comes_from_the_key():
    """All 624 words differ between two keys, so that two streams do not meet after a renewal either."""
    states = [keyed_generator("x", seed).get_state()[24:5016].view(torch.int64) for seed in (0, 1)]
    assert (states[0] != states[1]).all()
    assert all(state.unique().numel() == 624 for state in states)
    assert all((state >> 32 == 0).all() for state in states)


def test_the_stream_is_mt19937():
    """What torch draws is what Python's own MT19937 gives from the same words, over several renewals."""
    generator = keyed_generator("reference")
    state = generator.get_state()[24:5016].view(torch.int64).tolist()
    reference = random.Random()
    reference.setstate((3, (*state, 1), None))
    assert words(generator, 2000) == [reference.getrandbits(32) & 0x7FFFFFFF for _ in range(2000)]


@pytest.mark.parametrize("count", [1, 2, 64, DIRECT - 1, DIRECT])
def test_deriving_fewer_words_gives_the_same_values(count):
    """A restart for few words draws what one for all words draws, whatever the stream held before."""
    stream, key = Stream(), secret("key")
    words(stream.restart(key, b"something else"), 5000)
    few = words(stream.restart(key, b"message", count), count)
    assert few == words(Stream().restart(key, b"message"), count)


def test_a_restart_forgets_what_was_drawn():
    """Neither the position nor a spare normal of Box-Muller is left over."""
    stream, key = Stream(), secret("key")
    first = torch.empty(3).normal_(generator=stream.restart(key, b"m"))
    again = torch.empty(3).normal_(generator=stream.restart(key, b"m"))
    assert torch.equal(first, again)


def test_a_restart_replaces_every_word():
    """Also the one that only the recurrence reads: what was there before does not show after a renewal."""
    key = secret("key")
    expected = words(Stream().restart(key, b"m"), 3000)
    for before in range(5):
        stream = Stream()
        stream.restart(key, f"{before}".encode())
        assert words(stream.restart(key, b"m"), 3000) == expected


def test_the_mean_of_first_words_is_that_of_uniform_words():
    """Words right after the key have no bias: mean and bits of 20,000 first words under 20,000 keys."""
    stream, key = Stream(), secret("key")
    first = torch.tensor([words(stream.restart(key, f"{number}".encode(), 1), 1)[0] for number in range(20_000)])
    assert abs(first.double().mean() / 2**31 - 0.5) < 4 / (12 * 20_000) ** 0.5
    bits = first[:, None] >> torch.arange(31) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 4.5 / (4 * 20_000) ** 0.5


def global_draws():
    return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()


def test_forked_randomness_is_keyed():
    """Inside, what torch, random and NumPy give depends on the key alone, not on what was drawn before."""
    with forked_randomness("a"):
        one = global_draws()
    global_draws()
    with forked_randomness("a"):
        assert global_draws() == one
    with forked_randomness("b"):
        assert all(mine != theirs for mine, theirs in zip(one, global_draws(), strict=True))


def test_forked_randomness_restores_what_was_there():
    """Afterwards the global generators go on as if nothing had been drawn, when the code inside raises too."""
    for kind in (torch.manual_seed, random.seed, np.random.seed):
        kind(5)
    expected = global_draws()
    for kind in (torch.manual_seed, random.seed, np.random.seed):
        kind(5)
    with forked_randomness("c"):
        global_draws()
    with contextlib.suppress(ZeroDivisionError), forked_randomness("c"):
        global_draws()
        raise ZeroDivisionError
    assert global_draws() == expected


def test_forked_randomness_does_not_load_numpy(monkeypatch):
    """Where nobody loaded NumPy, it is not loaded for this."""
    monkeypatch.delitem(sys.modules, "numpy")
    with forked_randomness("a"):
        torch.rand(1)
    assert "numpy" not in sys.modules


def test_no_global_generator_is_used():
    """Making and using keyed generators leaves torch's global generator where it was, in every thread."""
    before = torch.get_rng_state()
    threads = [threading.Thread(target=lambda: words(keyed_generator("t"), 2000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_layout_is_an_error(monkeypatch):
    """A torch that keeps its generator's state in another way is refused, not trusted."""
    monkeypatch.setattr(streams, "_STATE_BYTES", 5064)
    streams.check_layout.cache_clear()
    with pytest.raises(RuntimeError, match="keeps the state of its CPU generator in another way"):
        keyed_generator("x")
    monkeypatch.undo()
    streams.check_layout.cache_clear()
    keyed_generator("x")


def test_streams_work_under_another_default_device_and_dtype():
    """A default device or dtype that the caller has set changes nothing."""
    plain = words(keyed_generator("x"), 5)
    with torch.device("meta"):
        generator = keyed_generator("x")
    assert words(generator, 5) == plain
