"""Model cards: front matter that a hub reads, and figures that were measured, or none."""

import json

import pytest
import torch
import yaml
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.codings import Delta
from snnzoo.conversion.converted_file import Conversion
from snnzoo.data.preprocess import PRESETS, Preprocess
from snnzoo.report.card import About, read_results, render, results_of

RESULT = {
    "file": "somewhere/net.safetensors",
    "model": "resnet20",
    "coding": Delta(3, 0.5).to_dict(),
    "data": "/data/cifar10/test",
    "images": 500,
    "device": "cpu",
    "dtype": "float32",
    "ann": {"top1": 0.9176, "top5": 0.99, "multiply_accumulates": 41e6, "energy_uj": 188.6},
    "results": [
        {
            "time_steps": t,
            "top1": 0.9 + t / 1000,
            "top5": 0.99,
            "agreement": 0.95,
            "images_per_second": 10.0,
            "events_per_neuron_step": 0.125,
            "synaptic_operations": 1e6 * t,
            "energy_uj": 2.5 * t,
        }
        for t in (1, 4)
    ],
}


def conversion(**changed):
    fields = {
        "model": "resnet20",
        "coding": Delta(3, 0.5),
        "time_steps": 4,
        "recipe": {"name": "delta", "levels": 3, "calibration": {"source": "train", "images": 512}},
        "preprocess": PRESETS["cifar10"],
        "classes": [f"class {i}" for i in range(10)],
        "source": {"file": "a|b.pth", "sha256": "0123"},
    }
    return Conversion(**{**fields, **changed})


def parts(text):
    start, front, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.safetensors"


def test_every_figure_is_one_that_was_measured(file):
    front, body = parts(render(conversion(), file, [RESULT], About()))
    (entry,) = front["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "cifar10", "type": "cifar10"}
    found = {metric["name"]: metric["value"] for metric in entry["metrics"]}
    assert found == {
        "top-1, T=1": 90.1, "top-5, T=1": 99.0, "agreement with the ANN, T=1": 95.0,
        "top-1, T=4": 90.4, "top-5, T=4": 99.0, "agreement with the ANN, T=4": 95.0,
    }  # fmt: skip
    assert "| T=4 | 90.40 | 99.00 | 95.00 |" in body
    assert "| ANN | 91.76 | 99.00 | - |" in body
    assert "| T=4 | 0.125 | 4.00 | 10.0 |" in body
    assert "| ANN | - | 41.00 (MAC) | 188.6 |" in body
    assert "500 images, cpu, float32" in body


def test_without_results_there_is_no_figure(file):
    front, body = parts(render(conversion(), file, [], About()))
    assert "model-index" not in front
    assert "datasets" not in front
    assert "Not measured yet: `snnzoo eval net.safetensors --data DIR --card README.md`" in body
    assert "%" not in body


@pytest.mark.parametrize(
    ("changed", "about", "expected"),
    [
        ({}, About(), {"license": "unknown"}),
        ({"source": {"weights": "resnet18.IMAGENET1K_V1"}}, About(), {"license": "bsd-3-clause"}),
        ({"model": "hf:microsoft/resnet-18"}, About(), {"base_model": "microsoft/resnet-18"}),
        ({"model": "timm:resnet50d.a1_in1k"}, About(), {"base_model": "timm/resnet50d.a1_in1k"}),
        ({}, About(license="MIT", base_model="me/mine"), {"license": "mit", "base_model": "me/mine"}),
    ],
)
def test_the_front_matter_says_what_is_known(changed, about, expected, file):
    front, _ = parts(render(conversion(**changed), file, [], about))
    assert front["library_name"] == "snnzoo"
    assert {"spiking-neural-network", "delta", "image-classification"} <= set(front["tags"])
    assert {key: front.get(key) for key in expected} == expected
    assert ("base_model" in front) == ("base_model" in expected)


def test_text_out_of_a_file_is_no_markup(file):
    evil = conversion(model="a\n---\nlicense: x", source={"file": "x|<b>\x1b[31m"})
    front, body = parts(render(evil, file, [], About(title="**t**")))
    assert front["license"] == "unknown"
    assert "\x1b" not in body
    assert "x\\|\\<b\\>" in body
    assert "# \\*\\*t\\*\\*" in body


def test_how_to_load_is_code_that_runs(file, tmp_path, monkeypatch):
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    net = snnzoo.convert(ann, torch.rand(4, 3, 16, 16), "delta", time_steps=2, gamma=0.5)
    snnzoo.save(net, file)
    code = render(net.conversion, file, [], About()).split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names = {"images": torch.rand(2, 3, 16, 16)}
    exec(code, names)
    assert names["logits"].shape == (2, 2, 10)


def test_results_of_another_network_are_refused(file):
    other = {**RESULT, "coding": {"name": "rate"}}
    assert results_of(conversion(), [other, RESULT], file) == [RESULT]
    with pytest.raises(
        snnzoo.errors.UsageError, match=r"the results are not of .*net\.safetensors: it is resnet20 with delta"
    ):
        results_of(conversion(), [other], file)
    same_coding = {**RESULT, "file": "another.safetensors"}
    assert results_of(conversion(), [same_coding, RESULT], file) == [RESULT]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**RESULT, "results": [{**RESULT["results"][0], "top1": None}]}),
        json.dumps({**RESULT, "ann": {"top1": "high"}}),
        "",
        "[1]",
        "{}",
        '{"results": [{"top1": 1}]}',
        '{"results": []}',
        '{"evaluations": [{"results": 3}]}',
    ],
)
def test_a_file_without_results_is_refused(text, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(snnzoo.errors.SnnzooError, match=r"r\.json: (no results of snnzoo eval --json|cannot read)"):
        read_results(path)


@pytest.fixture
def evaluated(run_command, tmp_path, image_folder):
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    net = snnzoo.convert(ann, torch.rand(4, 3, 16, 16), "delta", time_steps=2, gamma=0.5)
    net.conversion.preprocess = Preprocess(16, 16, (0.5,) * 3, (0.5,) * 3)
    snnzoo.save(net, tmp_path / "net.safetensors")
    options = ("--data", image_folder, "--force-fit", "--json", "r.json", "-q")
    code, _, err = run_command("eval", "net.safetensors", *options, "--card", "EVAL.md")
    assert code == 0, err
    return json.loads((tmp_path / "r.json").read_text())


def test_the_commands_write_the_same_card(evaluated, run_command, tmp_path):
    code, _, err = run_command("card", "net.safetensors", "--results", "r.json")
    assert (code, "wrote README.md, with 1 evaluation" in err) == (0, True), err
    assert (tmp_path / "README.md").read_text() == (tmp_path / "EVAL.md").read_text()
    front, _ = parts((tmp_path / "README.md").read_text())
    values = [m["value"] for m in front["model-index"][0]["results"][0]["metrics"] if m["name"] == "top-1, T=2"]
    assert values == [round(100 * evaluated["results"][-1]["top1"], 4)]
    code, _, err = run_command("card", "net.safetensors")
    assert (code, "README.md exists" in err) == (2, True)
    code, _, err = run_command("card", "net.safetensors", "--force")
    assert (code, "with no results: give --results" in err) == (0, True)
    assert "model-index" not in parts((tmp_path / "README.md").read_text())[0]
