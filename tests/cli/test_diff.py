"""``torchkeep diff``: what only one file has, what changed, and how far apart values are."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from sharded_files import state, write_sharded
from torchkeep.cli import main
from torchkeep.files.comparing import compare
from torchkeep.storage.local import LOCAL
from torchkeep.tensors.elements import opened_elements


def diff(capsys, *arguments):
    """Run ``diff --json``; return its exit code and its document."""
    code = main(["diff", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def compared(folder, first, second):
    """Compare two tensors, and return what was found of them."""
    tk.save({"x": first}, folder / "1.safetensors")
    tk.save({"x": second}, folder / "2.safetensors")
    (found,) = compare(LOCAL, folder / "1.safetensors", folder / "2.safetensors").common
    return found


@pytest.fixture
def writers(tmp_path):
    """Write the same state in every form that is read; return their paths."""
    tk.save(state(), tmp_path / "a.safetensors")
    save_file(state(), tmp_path / "foreign.safetensors")
    torch.save(state(), tmp_path / "a.pt")
    torch.save(state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    write_sharded(tmp_path / "folder", state())
    write_sharded(tmp_path / "bins", state(), write=torch.save, suffix=".bin", stem="pytorch_model")
    return [
        tmp_path / name for name in ("a.safetensors", "foreign.safetensors", "a.pt", "old.pt", "folder", "bins")
    ]


def test_the_same_tensors_in_any_form_do_not_differ(writers, capsys):
    """Whatever the files are, exit code 0, and all tensors are compared."""
    for second in writers:
        code, document = diff(capsys, writers[0], second)
        assert (code, document["same"]) == (0, True)
        assert [one["name"] for one in document["common"]] == list(state())
        assert main(["diff", str(second), str(writers[0])]) == 0
        assert capsys.readouterr().out == "no difference: 9 tensors, equal bit for bit\n"


def test_what_changed_is_told(tmp_path, capsys):
    """Names in one only, shapes, dtypes, values; exit code 1; equal ones are listed as equal."""
    second = state()
    second["layers.0.bias"] = second["layers.0.bias"].bfloat16()
    second["layers.1.weight"] = second["layers.1.weight"].reshape(2, 8)
    second["layers.2.weight"] = second["layers.2.weight"] + 1
    second["new"] = second.pop("layers.3.bias")
    tk.save(state(), tmp_path / "a.safetensors")
    tk.save(second, tmp_path / "b.safetensors")
    code, document = diff(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert code == 1
    assert [row["name"] for row in document["only_first"]] == ["layers.3.bias"]
    assert [row["name"] for row in document["only_second"]] == ["new"]
    found = {one["name"]: one for one in document["common"]}
    assert found["layers.0.bias"]["changes"] == ["dtype"]
    assert found["layers.0.bias"]["difference"]["relative"] < 1e-2
    assert found["layers.1.weight"]["changes"] == ["shape"]
    assert found["layers.1.weight"]["difference"] is None
    assert found["layers.2.weight"]["difference"]["max_abs"] == pytest.approx(1, rel=1e-6)
    assert {name for name, one in found.items() if one["equal"]} == set(state()) - {
        "layers.0.bias",
        "layers.1.weight",
        "layers.2.weight",
        "layers.3.bias",
    }
    assert main(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 1
    shown = capsys.readouterr().out
    assert "dtype float32 -> bfloat16" in shown
    assert "shape 4x4 -> 2x8" in shown
    assert (
        "8 tensors in both: 5 equal bit for bit, 3 different; 1 only in the first, 1 only in the second" in shown
    )


def test_repeated_blocks_are_folded(tmp_path, capsys):
    """Blocks that differ alike stand on one line, with the greatest distance of them."""
    second = {
        name: tensor + (i if name.endswith("weight") else 0) for i, (name, tensor) in enumerate(state().items())
    }
    tk.save(state(), tmp_path / "a.safetensors")
    tk.save(second, tmp_path / "b.safetensors")
    assert main(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (line,) = (line for line in lines if line and line[0] == "layers[0:4].weight")
    assert line[1:5] == ["x4", "values", "64", "64"]
    assert float(line[5]) == pytest.approx(list(second).index("layers.3.weight"), rel=1e-3)


def test_a_selector_says_what_is_compared(tmp_path, capsys):
    """What it selects in either; the tensor of that name in the other comes along; no match is an error."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    second = {**state(), "layers.0.bias": torch.zeros(4, dtype=torch.float64), "new": torch.zeros(1)}
    tk.save(state(), a)
    tk.save(second, b)
    assert main(["diff", str(a), str(b), "**.weight"]) == 0
    capsys.readouterr()
    code, document = diff(capsys, a, b, "[dtype=float64]")
    assert code == 1
    assert [one["name"] for one in document["common"]] == ["layers.0.bias"]
    code, document = diff(capsys, a, b, "new")
    assert code == 1
    assert document["common"] == []
    assert main(["diff", str(a), str(b), "layers.0.wieght"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "layers.0.weight" in shown.err
    assert main(["diff", str(a), str(b), "["]) == 2


def test_ties_are_compared(tmp_path, capsys):
    """A tie in one only is a difference though all values are equal; each broken name is compared."""
    shared = torch.ones(3)
    tk.save({"a": shared, "b": shared, "c": shared}, tmp_path / "tied.safetensors")
    tk.save({"a": shared, "b": torch.ones(3), "c": shared}, tmp_path / "apart.safetensors")
    tk.save({"a": shared, "c": shared}, tmp_path / "less.safetensors")
    code, document = diff(capsys, tmp_path / "tied.safetensors", tmp_path / "apart.safetensors")
    assert code == 1
    assert document["ties_first"] == [["a", "b", "c"]]
    assert document["ties_second"] == []
    assert all(one["equal"] for one in document["common"])
    assert diff(capsys, tmp_path / "apart.safetensors", tmp_path / "tied.safetensors")[1]["ties_second"] == [
        ["a", "b", "c"]
    ]
    code, document = diff(capsys, tmp_path / "tied.safetensors", tmp_path / "less.safetensors")
    assert code == 1
    assert [row["name"] for row in document["only_first"]] == ["b"]
    assert document["ties_first"] == []
    tk.save({"a": torch.zeros(3), "b": torch.zeros(3), "c": shared}, tmp_path / "other.safetensors")
    assert main(["diff", str(tmp_path / "tied.safetensors"), str(tmp_path / "other.safetensors")]) == 1
    shown = capsys.readouterr().out
    assert "a = b = c" in shown
    assert sum(line.startswith(("a ", "b ")) for line in shown.splitlines()) == 2


def test_kinds_are_compared_where_both_know_them(tmp_path, capsys):
    """A parameter that became a buffer is a difference; a file that knows no kinds has none to differ."""
    net, other = nn.Module(), nn.Module()
    net.register_parameter("w", nn.Parameter(torch.ones(2)))
    other.register_buffer("w", torch.ones(2))
    for module, name in ((net, "a"), (other, "b")):
        tk.save(module, tmp_path / f"{name}.safetensors")
    tk.save({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    code, document = diff(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (code, document["common"][0]["changes"], document["common"][0]["equal"]) == (1, ["kind"], True)
    assert diff(capsys, tmp_path / "a.safetensors", tmp_path / "plain.safetensors")[0] == 0


_NUMBERS = st.floats(width=32, allow_subnormal=False) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(_NUMBERS, _NUMBERS), min_size=1, max_size=20),
)
def test_distances_are_those_of_plain_arithmetic(tmp_path, pairs):
    """Differing and not finite elements, the greatest distance and the relative norm, as Python computes them."""
    first, second = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    found = compared(tmp_path, first, second)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    differing = [(a, b) for a, b in pairs if a != b and not (math.isnan(a) and math.isnan(b))]
    finite = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if found.equal:
        assert not differing
        return
    measured = found.difference
    assert (measured.elements, measured.differing) == (len(pairs), len(differing))
    assert measured.not_finite == sum(not (math.isfinite(a) and math.isfinite(b)) for a, b in differing)
    assert measured.max_abs == max((abs(a - b) for a, b in finite), default=0.0)
    apart, norm = math.hypot(*(a - b for a, b in finite)), math.hypot(*(a for a, _ in finite))
    if norm:
        assert measured.relative == pytest.approx(apart / norm, rel=1e-9, abs=1e-300)
    else:
        assert measured.relative == (None if apart else 0.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_large_integers_are_compared_exactly(tmp_path, dtype):
    """Integers that float64 does not tell apart differ by one; the extremes are as far apart as they are."""
    info = torch.iinfo(dtype)
    first = torch.tensor([2**62 + 1, info.max, 5], dtype=dtype)
    second = torch.tensor([2**62, info.min, 5], dtype=dtype)
    measured = compared(tmp_path, first[:1], second[:1]).difference
    assert (measured.differing, measured.max_abs) == (1, 1.0)
    measured = compared(tmp_path, first, second).difference
    assert (measured.differing, measured.max_abs) == (2, float(info.max - info.min))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (torch.tensor([True, False]), torch.tensor([True, True]), (1, 1.0, 1.0)),
        (torch.tensor([3 + 4j]), torch.tensor([0j]), (1, 5.0, 1.0)),
        (
            torch.tensor([3 + 4j], dtype=torch.complex128),
            torch.tensor([0j], dtype=torch.complex128),
            (1, 5.0, 1.0),
        ),
        (torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 4.0]).bfloat16(), (1, 2.0, 2 / math.sqrt(5))),
        (torch.tensor([1.0]).to(torch.float8_e4m3fn), torch.tensor([2.0]).to(torch.float8_e4m3fn), (1, 1.0, 1.0)),
        (torch.tensor([0.0]), torch.tensor([-0.0]), (0, 0.0, 0.0)),
        (torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 2.0]), (1, 1.0, 1.0)),
        (torch.tensor([1e200], dtype=torch.float64), torch.tensor([3e200], dtype=torch.float64), (1, 2e200, 2.0)),
        (torch.tensor(7, dtype=torch.int8), torch.tensor(-7, dtype=torch.int8), (1, 14.0, 2.0)),
        (torch.tensor([7], dtype=torch.int32), torch.tensor([7.5]), (1, 0.5, 0.5 / 7)),
    ],
    ids=range(10),
)
def test_every_kind_of_number(tmp_path, first, second, expected):
    """Booleans, complex numbers, small floats, zeros of both signs, norms beyond float64, another dtype."""
    found = compared(tmp_path, first, second)
    assert not found.equal
    measured = found.difference
    assert (measured.differing, measured.max_abs, measured.relative) == pytest.approx(expected)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no such dtype")
def test_bytes_without_arithmetic_are_compared_as_bits(tmp_path):
    """Of what torch makes no numbers, it is told whether the bits are equal."""
    bits = torch.tensor([1, 2], dtype=torch.uint8)
    first, second = bits.view(torch.float4_e2m1fn_x2), (bits + 1).view(torch.float4_e2m1fn_x2)
    found = compared(tmp_path, first, second)
    assert (found.equal, found.difference) == (False, None)
    assert compared(tmp_path, first, first.clone()).equal


def test_a_difference_anywhere_in_a_large_tensor_is_found(tmp_path):
    """In the first, in a middle and in the last element, across chunks and pieces, exactly one is counted."""
    first = torch.arange(9_000_001, dtype=torch.float32)
    for position in (0, 4_194_304, 9_000_000):
        second = first.clone()
        second[position] += 10_000_000
        measured = compared(tmp_path, first, second).difference
        assert (measured.differing, measured.max_abs) == (1, 10_000_000)


def test_tensors_that_lie_otherwise_are_compared_by_their_elements(tmp_path, capsys):
    """Transposed, strided, expanded, conjugated, negated tensors of torch.save; views in a file of torchkeep."""
    base = torch.arange(24.0).reshape(4, 6)
    turned = torch.tensor([1 + 2j, 3j, -1.0])
    views = {"t": base.t(), "s": base[::2, 1:3], "e": base[0].expand(3, 6), "c": turned.conj(), "b": base}
    torch.save({**views, "n": turned.clone().conj().imag}, tmp_path / "views.pt")
    save_file(
        {
            name: t.resolve_conj().contiguous().clone()
            for name, t in {**views, "n": turned.clone().conj().imag.resolve_neg()}.items()
        },
        tmp_path / "plain.safetensors",
    )
    assert main(["diff", str(tmp_path / "views.pt"), str(tmp_path / "plain.safetensors")]) == 0
    tk.save({"b": base, "t": base.t(), "row": base[1], "column": base[:, 1]}, tmp_path / "views.safetensors")
    save_file(
        {"b": base, "t": base.t().contiguous(), "row": base[1].clone(), "column": base[:, 1].clone()},
        tmp_path / "apart.safetensors",
    )
    assert main(["diff", str(tmp_path / "views.safetensors"), str(tmp_path / "apart.safetensors")]) == 0
    capsys.readouterr()


def test_of_expanded_tensors_only_their_memory_is_needed(tmp_path):
    """A view may have more elements than any memory: some of them are compared without making the others."""
    few = (torch.arange(6.0) + 1j).reshape(2, 3)
    for name, tensor in (("plain", few), ("conj", few.conj())):
        large = tensor[:, None].expand(2, 1 << 40, 3)
        torch.save({"x": large}, tmp_path / f"{name}.pt")
        with opened_elements(LOCAL, tmp_path / f"{name}.pt") as elements:
            read = elements.read("x", 24 * 5, 24 * 7).view(torch.complex64)
            assert torch.equal(read, large[0, :2].reshape(-1))
            middle = 24 << 40
            read = elements.read("x", middle - 24, middle + 24).view(torch.complex64)
            assert torch.equal(read, tensor.reshape(-1))
    tk.save({"a": few, "x": few.t()}, tmp_path / "views.safetensors")
    with opened_elements(LOCAL, tmp_path / "views.safetensors") as elements:
        assert torch.equal(elements.read("x", 8, 24).view(torch.complex64), few.t().reshape(-1)[1:3])


@pytest.mark.parametrize("name", ["b.safetensors", "b.pt"])
def test_damage_is_found_while_comparing(tmp_path, capsys, name):
    """A flipped bit is damage, not a difference: exit code 3 and nothing on stdout."""
    tk.save(state(), tmp_path / "a.safetensors")
    path = tmp_path / name
    tk.save(state(), path) if name.endswith("s") else torch.save(state(), path)
    data = bytearray(path.read_bytes())
    data[data.index(state()["layers.2.weight"].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(data)
    assert main(["diff", str(tmp_path / "a.safetensors"), str(path)]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "'layers.2.weight'" in shown.err


def test_sources_that_cannot_be_read_end_with_3(tmp_path, capsys):
    """A missing file, a folder without a model: a sentence that names it."""
    tk.save(state(), tmp_path / "a.safetensors")
    (tmp_path / "empty").mkdir()
    for other, word in (("missing.pt", "missing.pt"), ("empty", "holds no model")):
        assert main(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / other)]) == 3
        assert word in capsys.readouterr().err


def test_large_files_need_little_memory(tmp_path):
    """Files of 320 MB are compared within 100 MB above what torch itself takes, equal tensors and others."""
    tensors = {f"{i}": torch.arange(20_000_000, dtype=torch.float32) + i for i in range(4)}
    tk.save(tensors, tmp_path / "a.safetensors")
    tensors["3"][-1] = 0
    torch.save(tensors, tmp_path / "b.pt")
    del tensors
    script = (
        "import resource, sys, torch; from torchkeep.cli import main; import torchkeep.files.comparing\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(sys.argv[1:]) == 1\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "sys.exit(f'{grown} KiB' if grown > 100_000 else 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pt")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
