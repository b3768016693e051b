"""`snnzoo export`: files that other tools read, and what a mistake says."""

import nir
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
        ("delta", ("--format", "tflite"), 2, "--format must be one of nir, onnx, pt2, got 'tflite'"),
        ("delta", ("--format", "onnx", "-T", "0"), 2, "--time-steps must be from 1 to 1024, got 0"),
        ("rate", ("--format", "nir", "-T", "4"), 2, "a NIR graph takes one step at a time"),
        ("delta", ("--format", "pt2", "--without-stem"), 2, "--without-stem is for --format nir"),
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
    assert "--format onnx needs onnx and onnxscript: pip install 'snnzoo[export]'" in err
