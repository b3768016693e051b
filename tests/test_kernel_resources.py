"""The Triton kernels compile for devices that are not there, and their values fit into registers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snnzoo.ops import backends

if backends.named("triton").unavailable() is not None:
    pytest.skip("needs triton", allow_module_level=True)

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "kernel_resources.py"
ROW = re.compile(r"^\| (.+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)
MOST_SPILLED = 16  # bytes of a thread


def resources(only, cache):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, str(PROGRAM), "--arch", "80", "90", "--only", only]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows = ROW.findall(printed)
    assert rows, printed
    return {(name, int(arch)): tuple(map(int, values)) for name, arch, *values in rows}


@pytest.mark.parametrize(
    ("only", "kernels"), [("1x1", 4), pytest.param("", 18, marks=pytest.mark.slow)], ids=["1x1", "all"]
)
def test_kernels_compile_and_do_not_spill(only, kernels, tmp_path):
    found = resources(only, tmp_path)
    assert len(found) == 2 * kernels
    for kernel, (registers, stack, shared) in found.items():
        assert registers <= 255, kernel
        assert stack <= MOST_SPILLED, kernel
        assert shared <= 48 << 10, kernel
