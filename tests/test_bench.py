"""`snnzoo bench` and what it measures with."""

import json
import subprocess
import sys
import time

import pytest
import torch
import torchvision

import snnzoo
from helpers import shake_batch_norm
from snnzoo.inference import measure
from snnzoo.models.cifar_resnet import CifarResNet
from snnzoo.models.factory import build

CPU = torch.device("cpu")


@pytest.fixture
def run(run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: run_command("bench", *arguments)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_bench_reports_every_contender_and_layer_as_json(run, dtype):
    settings = ("--batch-size", 1, "--repeats", 1, "--device", "cpu", "--dtype", dtype, "--json", "-")
    code, out, err = run("resnet20", "-T", 2, *settings)
    assert code == 0, err
    report = json.loads(out)
    assert (report["model"], report["file"], report["time_steps"], report["input_size"]) == ("resnet20", None, 2, 32)
    rows = {row["name"]: row for row in report["results"]}
    assert list(rows) == ["fast", "fast_final", "unprepared", "ann", "ann_folded"]
    for row in rows.values():
        assert row["ms_per_step"] == pytest.approx(1000 * row["seconds"] / 2)
        assert row["images_per_second"] == pytest.approx(1 / row["seconds"])
        assert row["ratio_to_ann"] == pytest.approx(row["seconds"] / rows["ann"]["seconds"])
        assert row["ratio_to_ann_folded"] == pytest.approx(row["seconds"] / rows["ann_folded"]["seconds"])
    kinds = [layer["kind"] for layer in report["layers"]]
    assert (kinds.count("convolution"), kinds.count("neuron"), kinds.count("linear")) == (19, 19, 1)


def test_bench_of_a_file_takes_its_time_steps_and_size(run, tmp_path):
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=torch.nn.ReLU))
    snnzoo.save(snnzoo.convert(ann, None, levels=3, gamma=0.5, time_steps=3), tmp_path / "net.safetensors")
    code, out, err = run("net.safetensors", "--batch-size", 1, "--repeats", 1, "--device", "cpu")
    assert code == 0, err
    assert "resnet20, T = 3, 1 images of 32x32, cpu, float32" in out
    assert "T x folded ANN" in out
    assert "layer3.2" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--formats"], "--formats is for files of snnzoo convert"),
        (["resnt18"], "unknown model 'resnt18': did you mean resnet18"),
        (["net.safetensors"], "net.safetensors: no such file; make one with snnzoo convert"),
        (["resnet18", "--dtype", "int3"], "--dtype must be one of"),
        (["resnet18", "-T", "0"], "--time-steps must be from 1 to 1024, got 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet18(num_classes=4),
        lambda: torchvision.models.resnext50_32x4d(num_classes=4),
        lambda: torchvision.models.vgg11_bn(num_classes=4).features,
    ],
)
def test_the_folded_ann_computes_the_same(make):
    ann = shake_batch_norm(make()).double().eval()
    folded = measure.folded_ann(ann)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), ann(x))


def test_torchvisions_own_module_stands_for_the_ann_where_there_is_one():
    for name, expected in (
        ("resnet18", torchvision.models.ResNet),
        ("resnet20", CifarResNet),
    ):
        ann = build(name, neuron=torch.nn.ReLU, step_mode="s", num_classes=4).eval()
        theirs = measure.torchvision_ann(ann)
        assert type(theirs) is expected
        with torch.inference_mode():
            x = torch.randn(1, 3, 32, 32)
            torch.testing.assert_close(theirs(x), ann(x))


def test_contenders_take_turns():
    turns = []
    runs = {"a": lambda: turns.append("a"), "b": lambda: (turns.append("b"), time.sleep(0.01))}
    seconds = measure.interleaved(runs, 3, CPU)
    assert turns == ["a", "b"] * 5
    assert seconds["b"] > 0.01 > seconds["a"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak")
def test_peak_memory_counts_what_is_held_at_once():
    # in a process of its own: a heap that earlier tests left in pieces keeps blocks that are done with
    program = """
import torch
from snnzoo.inference.measure import peak_memory

def one_after_the_other():
    for _ in range(4):
        torch.ones(48 << 20, dtype=torch.uint8)

def all_at_once():
    return [torch.ones(48 << 20, dtype=torch.uint8) for _ in range(4)]

print(*(peak_memory(run, torch.device("cpu")) >> 20 for run in (one_after_the_other, all_at_once)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    alone, together = map(int, result.stdout.split())
    assert 40 < alone < 120
    assert together > 180


def test_formats_of_a_file_are_a_table_and_json(run, tmp_path):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AvgPool2d(6), torch.nn.Flatten(), torch.nn.Linear(4, 5)
    net = snnzoo.convert(torch.nn.Sequential(*layers), torch.rand(8, 3, 8, 8), "signed", time_steps=3)
    snnzoo.save(net, tmp_path / "net.safetensors")
    code, out, err = run("net.safetensors", "--formats", "--repeats", 1)
    assert code == 0, err
    assert "T = 3, 8 images of noise, cpu" in out
    assert "which is no binary IF" in " ".join(out.split())
    code, out, err = run("net.safetensors", "--formats", "--repeats", 1, "--json", "-")
    report = json.loads(out)
    sizes = {row["format"]: row["size"] for row in report["formats"]}
    assert sizes["safetensors"] == (tmp_path / "net.safetensors").stat().st_size
    assert sizes["nir"] is None
    code, _, err = run("net.safetensors", "--formats", "--dtype", "int8")
    assert (code, "--formats runs files as they are" in err) == (2, True)
