"""`snnzoo export`: files that other tools read, and what a mistake says."""

import json

import nir
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.cli import common
from snnzoo.data.preprocess import Preprocess

SMALL = Preprocess(16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A delta network and a rate-coded one, for 16x16 images."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    for recipe, options in (("delta", {"gamma": 0.5}), ("rate", {})):
        net = snnzoo.convert(ann, torch.rand(4, 3, 16, 16), recipe, time_steps=2, **options)
        net.conversion.preprocess = SMALL if recipe == "delta" else None
        snnzoo.save(net, folder / f"{recipe}.safetensors")
    return {recipe: folder / f"{recipe}.safetensors" for recipe in ("delta", "rate")}


@pytest.fixture
def run(run_command):
    def run(*arguments):
        code, _, err = run_command("export", *arguments)
        return code, err

    return run


def test_a_nir_file_is_written_for_the_size_of_the_networks_images(run, files, tmp_path):
    code, err = run(files["rate"], "--format", "nir", "-o", "net.nir", "--input-size", "16")
    assert code == 0, err
    assert "wrote net.nir" in err
    graph = nir.read(tmp_path / "net.nir")
    assert graph.input_type["input"].tolist() == [3, 16, 16]
    assert graph.output_type["output"].tolist() == [10]


def test_an_onnx_file_has_the_steps_asked_for(run, files, tmp_path):
    code, err = run(files["delta"], "-f", "onnx", "-T", "1")
    assert code == 0, err
    assert "images [N, 3, 16, 16] -> logits [1, N, classes]" in err
    dims = onnx.load(tmp_path / "delta.onnx").graph.output[0].type.tensor_type.shape.dim
    assert (dims[0].dim_value, dims[1].dim_param, dims[2].dim_value) == (1, "batch", 10)
    code, err = run(files["delta"], "-f", "onnx", "-T", "1")
    assert (code, "delta.onnx exists" in err) == (2, True)


@pytest.mark.parametrize(
    ("recipe", "options", "code", "message"),
    [
        ("delta", ("--format", "nir"), 1, "--recipe rate, or export with --format onnx"),
        ("delta", ("--format", "tflite"), 2, "--format must be one of nir, onnx, pt2, integer, got 'tflite'"),
        ("delta", ("--format", "onnx", "-T", "0"), 2, "--time-steps must be from 1 to 1024, got 0"),
        ("rate", ("--format", "nir", "-T", "4"), 2, "a NIR graph takes one step at a time"),
        ("delta", ("--format", "pt2", "--without-stem"), 2, "--without-stem is for --format nir"),
        ("delta", ("--format", "pt2", "--target", "norse"), 2, "--target is for --format nir"),
        ("rate", ("--format", "nir", "--target", "nors"), 2, "unknown target 'nors': did you mean norse"),
        ("rate", ("--format", "nir", "--target", "norse"), 1, "--target norse cannot express: take --for norse"),
        ("delta", ("--format", "pt2", "--no-verify", "--data", "digits"), 2, "--data is for what --no-verify leaves"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, files, tmp_path, recipe, options, code, message):
    found, err = run(files[recipe], *options, "-q")
    assert found == code
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_what_to_install(run, files, monkeypatch):
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    code, err = run(files["delta"], "--format", "onnx")
    assert code == 2
    assert "--format onnx needs onnx and onnxscript and onnxruntime: pip install 'snnzoo[export]'" in err


def test_a_file_is_verified_and_the_result_is_json(run, files, tmp_path):
    code, err = run(files["delta"], "-f", "pt2", "--json", "r.json")
    assert code == 0, err
    assert "verified on 16 images, T=2: logits differ by at most" in err
    assert "of noise: --data DIR takes real ones" in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["file"], report["format"], report["verified"]["images"]) == ("delta.pt2", "pt2", 16)
    assert report["size"] == (tmp_path / "delta.pt2").stat().st_size
    facts = {"verified": ""}
    torch.export.load(tmp_path / "delta.pt2", extra_files=facts)
    assert json.loads(facts["verified"])["agreement"] == report["verified"]["agreement"]


@pytest.mark.slow
def test_images_to_verify_on_are_those_asked_for(run, files, image_folder):
    code, err = run(files["delta"], "-f", "pt2", "--data", image_folder)
    assert (code, f"of {image_folder}" in err) == (0, True), err
    code, err = run(files["delta"], "-f", "onnx", "--no-verify", "--force")
    assert (code, "not verified" in err) == (0, True)


def test_whole_numbers_are_written_with_their_traces(run, files, tmp_path):
    code, err = run(files["delta"], "-f", "integer", "-T", "1")
    assert (code, "1 steps in whole numbers" in err) == (0, True), err
    with np.load(tmp_path / "delta.npz") as bundle:
        assert bundle["trace.input"].shape == (2, 3, 16, 16)


def test_a_network_converted_for_a_target_is_written_for_it(run_command, tmp_path, image_folder):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten(), nn.Linear(4, 10))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    prepared = ("--input-size", "16", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    command = ("convert", "net.py:make", "--checkpoint", "net.pth", "--calib-data", image_folder, *prepared)
    code, _, err = run_command(*command, "--for", "spyx", "-T", "8", "-o", "net.safetensors", "--json", "c.json")
    assert code == 0, err
    assert "keep the ANN's class, with --recipe rate" in err
    cost = json.loads((tmp_path / "c.json").read_text())["for"]
    assert (cost["target"], cost["time_steps"]) == ("spyx", 8)
    code, _, err = run_command("export", "net.safetensors", "-f", "nir", "--json", "e.json")
    assert code == 0, err
    report = json.loads((tmp_path / "e.json").read_text())
    assert (report["target"], report["verified"]["data"]) == ("spyx", str(image_folder))
    assert report["verified"]["difference"] < 1e-3
    for options, message in (
        (("--for", "spix"), "unknown target 'spix': did you mean spyx"),
        (("--for", "spyx", "--recipe", "rate"), "--for chooses the neurons"),
    ):
        code, _, err = run_command(*command, *options, "-o", "other.safetensors")
        assert (code, message in err) == (2, True), err
