"""Values stay what they were: a change of any bit is a change of the scheme, and breaks other people's runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import golden_values

GOLDEN = json.loads(golden_values.FILE.read_text())


@pytest.fixture(scope="module")
def computed():
    return golden_values.compute()


def assert_close(found):
    assert found.keys() == GOLDEN["values"].keys()
    for case, entry in GOLDEN["values"].items():
        for one, other in zip(found[case]["elements"], entry["elements"], strict=True):
            step = 1e-2 if "bfloat16" in case else 1e-5  # one step of rounding, which a difference may tip over
            assert one == pytest.approx(other, abs=step * max(1.0, abs(other))), case


def test_values_are_within_tolerance_everywhere(computed):
    """On any build of torch and any CPU, stored elements come out within 1e-5."""
    assert_close(computed)


def test_bits_are_equal_on_the_kernels_they_were_recorded_with(computed):
    """On one build of torch and one set of CPU kernels all bits are equal, for every distribution and dtype."""
    if golden_values.kernels() != GOLDEN["kernels"]:
        pytest.skip(f"recorded with {GOLDEN['kernels']}; here the tolerance counts")
    assert {case: entry["digest"] for case, entry in computed.items()} == {
        case: entry["digest"] for case, entry in GOLDEN["values"].items()
    }


def test_values_are_within_tolerance_on_plain_kernels():
    """Without AVX in torch's kernels and with less in MKL's, the same values come out within 1e-5."""
    code = "import golden_values, json; print(json.dumps(golden_values.compute()))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    environment["PYTHONPATH"] = str(Path(golden_values.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert_close(json.loads(done.stdout))
