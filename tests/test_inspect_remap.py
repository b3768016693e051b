"""`snnzoo inspect` and `snnzoo remap`: what they say, write and refuse."""

import hashlib
import json
import re
import subprocess
import sys
import time

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import snnzoo
from snnzoo.checkpoints.layout_rules import LAYOUTS
from snnzoo.checkpoints.layouts import from_torchvision
from snnzoo.cli import main
from snnzoo.models import factory


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["snnzoo", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main.main()
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def snn(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def weights():
    return torchvision.models.resnet18(num_classes=10).state_dict()


@pytest.fixture
def checkpoint(tmp_path, weights):
    path = tmp_path / "net.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 9}, path)
    return path


def inspected(snn, *arguments):
    code, out, err = snn("inspect", *arguments, "--json", "-")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_inspect_reports_all_there_is_to_say(snn, checkpoint):
    report = inspected(snn, checkpoint)
    assert report["format"] == "PyTorch (zip)"
    assert report["size"] == checkpoint.stat().st_size
    assert report["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert report["tensors"] == 122
    assert report["dtypes"] == {"float32": report["elements"] - 20, "int64": 20}
    assert report["layout"] == {
        "name": "torchvision",
        "confidence": 1.0,
        "summary": "layout torchvision (sure: all 122 keys are its own), inside state_dict, module.",
        "wrapping": ["state_dict", "module."],
        "notes": [],
    }
    assert report["model"] == {
        "name": "resnet18", "depth": 18, "block": "basic", "stages": [2, 2, 2, 2], "groups": 1, "width_per_group": 64,
        "in_channels": 3, "classes": 10, "shortcut_option": None, "head": None,
    }  # fmt: skip
    assert report["missing"] == report["unexpected"] == report["mismatched"] == report["neuron_parameters"] == []
    assert report["not_finite"] == {}
    assert report["metadata"] == {"epoch": 9}


def test_inspect_prints_it_for_people(snn, checkpoint):
    code, out, err = snn("inspect", checkpoint)
    assert (code, err) == (0, "")
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines())
    assert lines["layout"] == "torchvision (sure: all 122 keys are its own), inside state_dict, module."
    assert lines["model"] == "resnet18: depth 18, basic blocks [2, 2, 2, 2], width 64, 3 input channels, 10 classes"
    assert lines["missing"] == lines["unexpected"] == lines["NaN, Inf"] == "none"
    assert lines["metadata"] == "epoch: 9"


def test_inspect_finds_what_is_wrong(snn, tmp_path, weights):
    broken = {key: value.clone() for key, value in weights.items() if key != "layer3.1.bn2.weight"}
    broken["layer1.0.conv1.weight"][0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    broken["extra.weight"] = torch.ones(2, dtype=torch.float16)
    broken["bn1.bias"] = torch.ones(3)
    save_file(broken, tmp_path / "broken.safetensors", metadata={"by": "me"})
    report = inspected(snn, tmp_path / "broken.safetensors")
    assert report["format"] == "safetensors"
    assert report["missing"] == ["layer3.1.bn2.weight"]
    assert report["unexpected"] == ["extra.weight"]
    assert report["mismatched"] == ["bn1.bias [3] instead of [64]"]
    assert report["not_finite"] == {"layer1.0.conv1.weight": 2}
    assert report["dtypes"]["float16"] == 2
    assert report["metadata"] == {"by": "me"}


def test_inspect_tells_what_it_can_of_a_network_that_the_zoo_has_not(snn, tmp_path, weights):
    odd = {key: value for key, value in weights.items() if not key.startswith("layer4.1")}
    torch.save(odd, tmp_path / "odd.pth")
    report = inspected(snn, tmp_path / "odd.pth")
    assert (report["model"]["name"], report["model"]["stages"], report["missing"]) == (None, [2, 2, 2, 1], None)
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "other.pth")
    code, out, _ = snn("inspect", tmp_path / "other.pth")
    assert code == 0
    assert "in no layout known" in out


def test_inspect_describes_a_replaced_classifier(snn, tmp_path):
    net = torchvision.models.resnet18()
    net.fc = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 4))
    torch.save(net.state_dict(), tmp_path / "tuned.pth")
    report = inspected(snn, tmp_path / "tuned.pth")
    assert report["model"]["head"] == [["Linear", 512, 32, True], ["ReLU"], ["Identity"], ["Linear", 32, 4, True]]
    assert report["model"]["classes"] == 4
    assert "assumed a ReLU at fc.1" in report["layout"]["notes"][0]
    assert report["missing"] == report["unexpected"] == []


HEAD = [["Linear", 64, 16, True], ["GELU", "none"], ["Linear", 16, 5, True]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "snn.safetensors"
    ann = factory.build("resnet20", nn.ReLU, step_mode="s", head=HEAD)
    snnzoo.save(snnzoo.convert(ann.eval(), torch.randn(4, 3, 8, 8), recipe="rate", time_steps=4), path)
    return path


def test_inspect_reads_a_converted_file(snn, converted):
    report = inspected(snn, converted)
    assert report["layout"]["name"] == "snnzoo"
    assert (report["model"]["name"], report["model"]["depth"], report["layout"]["notes"]) == ("resnet20", 20, [])
    assert report["missing"] == report["unexpected"] == []
    assert "layer1.0.sn1.v_threshold" in report["neuron_parameters"]
    assert report["metadata"]["format"] == "snnzoo/2"
    assert report["metadata"]["model"] == "resnet20"


def test_remap_of_a_converted_file_leaves_neurons_out_where_the_layout_has_none(snn, converted, tmp_path):
    code, _, err = snn("remap", converted, "--to", "torchvision", "-o", tmp_path / "ann.pth")
    assert code == 0
    assert "left out" in err
    ann = torch.load(tmp_path / "ann.pth", weights_only=True)
    assert sorted(ann) == sorted(factory.build("resnet20", nn.ReLU, head=HEAD).state_dict())


@pytest.mark.parametrize("layout", [name for name, value in LAYOUTS.items() if value.writable])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_remap_there_and_back_changes_no_bit(layout, suffix, snn, checkpoint, weights, tmp_path):
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    assert snn("remap", checkpoint, "--to", layout, "-o", there, "--quiet") == (0, "", "")
    written = load_file(there) if suffix == ".safetensors" else torch.load(there, weights_only=True)
    assert set(written) == set(from_torchvision(weights, layout))
    code, _, err = snn("remap", there, "--to", "torchvision", "-o", back)
    assert code == 0
    assert f"wrote {back}: 122 tensors in layout torchvision" in err.replace("\n", "")
    again = load_file(back)
    assert set(again) == set(weights)
    assert all(torch.equal(again[key], weights[key]) for key in weights)


def test_remap_takes_the_layout_it_is_told(snn, tmp_path, weights):
    both = {**weights, "linear.weight": weights["fc.weight"], "linear.bias": weights["fc.bias"]}
    torch.save(both, tmp_path / "both.pth")
    arguments = ("remap", tmp_path / "both.pth", "--to", "timm", "-o", tmp_path / "out.pth")
    code, _, err = snn(*arguments)
    assert code == 1
    assert "--layout" in err
    assert snn(*arguments, "--layout", "torchvision")[0] == 0
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == set(weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "missing.pth"), "does not exist"),
        (("inspect", "FILE", "--layout", "torchvison"), "did you mean torchvision"),
        (("remap", "FILE", "--to", "hugginface", "-o", "x.pth"), "did you mean huggingface"),
        (("remap", "FILE", "--to", "sequential", "-o", "x.pth"), "can only be read"),
        (("remap", "FILE", "--to", "timm", "-o", "x.onnx"), "unknown suffix '.onnx'"),
        (("remap", "FILE", "--to", "timm", "-o", "FILE"), "is what this command reads"),
        (("remap", "FILE", "--to", "timm"), "Missing option"),
        (("remap", "FILE", "-o", "x.pth"), "Missing option"),
        (("convert", "resnet18", "--layout", "timm", "--calib-data", "digits"), "--layout is for a --checkpoint"),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, snn, checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = snn(*(checkpoint if argument == "FILE" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth"]


def test_usage_errors_do_not_wait_for_torch(checkpoint):
    program = (
        "import sys; from snnzoo.cli import main; code = main._run(); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "remap", checkpoint, "--to", "nothing", "-o", "x.pth"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 2, done.stderr
    assert min(seconds) < 2  # 0.3 s on an idle machine


def test_force_replaces_and_a_failure_leaves_no_file(snn, checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    assert snn("remap", checkpoint, "--to", "timm", "-o", out)[0] == 2
    assert out.read_text() == "old"
    assert snn("remap", checkpoint, "--to", "timm", "-o", out, "--force")[0] == 0
    assert len(load_file(out)) == 122
    assert inspected(snn, out)["layout"]["name"] == "torchvision"
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    assert snn("remap", tmp_path / "bad.pth", "--to", "timm", "-o", tmp_path / "new.pth")[0] == 1
    assert not (tmp_path / "new.pth").exists()


@pytest.mark.parametrize("command", ["inspect", "remap"])
def test_help_names_the_arguments(command):
    result = CliRunner().invoke(main.app, [command, "--help"])
    assert result.exit_code == 0
    assert "FILE" in result.output
