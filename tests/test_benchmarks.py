"""The benchmarks run where the libraries that they compare with are not installed, and say what is left out."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK = {
    "multistep_neuron.py": [
        "--device", "cpu", "--elements", "4096", "--time-steps", "2", "--codings", "if soft", "--layouts", "contiguous",
        "--repeats", "1", "--no-compile",
    ],
    "inference.py": [
        "--device", "cpu", "--models", "resnet18", "--size", "32", "--batch-size", "1", "--time-steps", "2",
        "--repeats", "1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ["multistep_neuron.py", pytest.param("inference.py", marks=pytest.mark.slow)])
def test_they_run_without_spikingjelly(name, monkeypatch, tmp_path, capsys):
    for module in [module for module in sys.modules if module.partition(".")[0] == "spikingjelly"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "spikingjelly", None)  # as an import that fails
    monkeypatch.setattr(sys, "argv", [name, *QUICK[name], "--json", str(tmp_path / "results.json")])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert json.loads((tmp_path / "results.json").read_text())
    assert "spikingjelly" in capsys.readouterr().out.lower()
