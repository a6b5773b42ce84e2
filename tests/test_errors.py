"""The exception tree keeps its promises: one root, plain sentences, picklable."""

from __future__ import annotations

import pickle

import pytest

from torchkeep import errors

TREE = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TorchkeepError)
]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_shows_its_sentence_as_written(kind):
    """No base class (KeyError, OSError) changes how the sentence reads."""
    assert (
        str(kind("no parameter is named 'x'; did you mean 'y'?")) == "no parameter is named 'x'; did you mean 'y'?"
    )


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_its_details(kind):
    """A worker process can hand any error to its parent without losing the sentence or an attribute."""
    error = kind("what, why, what to do")
    error.detail = ("a", 1)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.detail) == ("what, why, what to do", ("a", 1))


def test_storage_errors_keep_what_the_system_said():
    """Callers that look at errno and filename find them, also after pickling."""
    error = errors.StorageError.wrap(
        OSError(28, "No space left on device", "model.safetensors"), "the disk is full"
    )
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.errno, back.filename) == ("the disk is full", 28, "model.safetensors")


def test_the_drawing_shows_every_error():
    """The tree drawn in the module's docstring names each class, so it can be trusted as the overview."""
    for kind in TREE:
        assert kind.__name__ in errors.__doc__
