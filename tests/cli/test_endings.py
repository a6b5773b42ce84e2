"""How commands end: exit codes, one sentence on stderr, no traceback, nothing half written."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from torchkeep.cli import main

COMMAND = [sys.executable, "-m", "torchkeep"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""What stays in a buffer fails again when the interpreter ends; without buffers that would go unseen."""
GOOD = save({"a.weight": np.ones(300, np.float32), "a.bias": np.zeros(3, np.float32)})


@pytest.fixture
def model(tmp_path):
    """A good file."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    return str(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (GOOD[:5], ""),
        (GOOD[:40], "cut short"),
        (GOOD[:-4], "cut short"),
        (struct.pack("<Q", 1 << 62) + b"{}", ""),
        (struct.pack("<Q", 3) + b"{x}", ""),
        (b"PK\x03\x04 a zip archive, as torch.save writes", ""),
    ],
)
def test_a_file_that_is_not_right_ends_with_3(tmp_path, capsys, content, expected):
    """An empty, truncated, absurd or foreign file: a sentence that names it, and exit code 3."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    assert main(["show", str(path)]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("torchkeep: ")
    assert "bad.safetensors" in shown.err
    assert expected in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("source", ["missing.safetensors", ".", "", "a\0b", "missing/model.safetensors"])
def test_a_source_that_is_no_file_ends_with_3(source, tmp_path, monkeypatch, capsys):
    """A missing file, a directory, an impossible path: a sentence, and exit code 3."""
    monkeypatch.chdir(tmp_path)
    assert main(["show", source]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("torchkeep: ")
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_selector_that_matches_nothing_ends_with_1(model, capsys, extra):
    """Nothing matches: the answer is no, the nearest names are on stderr, nothing is on stdout."""
    assert main(["show", model, "a.wieght", *extra]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a.weight" in shown.err


def test_what_to_do_is_said_in_terms_of_the_command_line(model, capsys):
    """Where no name is near, the advice is a command, not a call in Python."""
    assert main(["show", model, "[ndim>5]"]) == 1
    told = capsys.readouterr().err
    assert "torchkeep show SOURCE" in told
    assert "tk." not in told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.["], "^"),
        ([":param"], "param"),
        (["@Linear"], "Linear"),
        (["--colour"], "--colour"),
        (["a", "b"], "unexpected extra argument"),
    ],
)
def test_a_question_that_can_not_be_asked_ends_with_2(model, capsys, arguments, expected):
    """A selector with a typo, a field that the file does not have, an unknown option: exit code 2."""
    assert main(["show", model, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert expected in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("arguments", [[], ["show"], ["shwo", "model.safetensors"]])
def test_incomplete_commands_end_with_2(capsys, arguments):
    """No command, no source, or a command that does not exist: how it is used, and exit code 2."""
    assert main(arguments) == 2
    assert "Usage: torchkeep" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["show", "--help"], ["--version"]])
def test_asking_for_help_is_fine(capsys, arguments):
    """Help and version go to stdout with exit code 0."""
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "torchkeep" in shown.out
    assert shown.err == ""


def _raising(error):
    def listing_of(path):
        raise error from OSError(path)

    return listing_of


def test_a_bug_is_a_sentence_that_says_how_to_report_it(model, monkeypatch, capsys):
    """An error that nobody expected names itself, asks to be reported, and ends with 70."""
    monkeypatch.delenv("TORCHKEEP_TRACEBACK", raising=False)
    monkeypatch.setattr("torchkeep.cli.showing.listing_of", _raising(ZeroDivisionError("by \x1b[31mnothing")))
    assert main(["show", model]) == 70
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert r"(ZeroDivisionError: by \x1b[31mnothing; test_endings.py, line " in shown.err
    assert "TORCHKEEP_TRACEBACK=1" in shown.err


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("oops"), 70), (None, 3)])
def test_the_traceback_is_shown_on_demand(model, monkeypatch, capsys, error, code):
    """With TORCHKEEP_TRACEBACK=1 any error shows where it came from; the exit code stays."""
    monkeypatch.setenv("TORCHKEEP_TRACEBACK", "1")
    if error is None:
        Path(model).unlink()
    else:
        monkeypatch.setattr("torchkeep.cli.showing.listing_of", _raising(error))
    assert main(["show", model]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_is_silent_and_ends_with_130(model, monkeypatch, capsys):
    """Ctrl-C ends the command as shells expect, without a word."""
    monkeypatch.setattr("torchkeep.cli.showing.listing_of", _raising(KeyboardInterrupt()))
    assert main(["show", model]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("rows", [3, 2_000])
@pytest.mark.parametrize("arguments", [["show"], ["show", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path, arguments, rows):
    """``torchkeep show ... | head``: no message when the pipe is closed, and the exit code of SIGPIPE."""
    path = tmp_path / "some.safetensors"
    save_file({f"n{i}.w": np.zeros(i % 7, np.float32) for i in range(rows)}, path)
    source = [str(path)] if "show" in arguments else []
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [*COMMAND, *arguments, *source], stdout=writer, stderr=subprocess.PIPE, env=BUFFERED, check=False
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("arguments", [["show"], ["show", "--json"]])
def test_a_full_disk_ends_with_74(model, arguments):
    """Output that can't be written is said so, once, with an exit code of its own."""
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [*COMMAND, *arguments, model],
            stdout=full,
            stderr=subprocess.PIPE,
            env=BUFFERED,
            text=True,
            check=False,
        )
    assert run.returncode == 74
    assert run.stderr.startswith("torchkeep: can't write the output: ")
    assert len(run.stderr.splitlines()) == 1


def test_no_stdout_at_all_ends_with_74(model, monkeypatch, capsys):
    """Started with stdout closed, the command says so."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["show", model]) == 74
    assert "there is no standard output" in capsys.readouterr().err


class _Unwritable(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error", text)


@pytest.mark.parametrize(("arguments", "code"), [(["show", "missing.safetensors"], 3), (["--colour"], 2)])
def test_nobody_to_complain_to_keeps_the_exit_code(monkeypatch, arguments, code):
    """With stderr closed or broken, the exit code still tells."""
    for stream in (None, _Unwritable()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(arguments) == code
