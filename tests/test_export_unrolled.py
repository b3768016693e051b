"""torch.export and ONNX, run by torch and onnxruntime, against the network itself."""

import json

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import functional
from snnzoo.data.preprocess import PRESETS
from snnzoo.errors import UsageError
from snnzoo.export import write_onnx, write_pt2

SHAPE = (3, 16, 16)
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(3))


def converted(recipe, **options):
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    return snnzoo.convert(ann, IMAGES, recipe, time_steps=2, **options)


def logits_of(net):
    functional.reset_net(net)
    with torch.no_grad():
        logits = net(IMAGES.expand(2, *IMAGES.shape))
    functional.reset_net(net)
    return logits


def assert_onnxruntime_agrees(path, expected):
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (5, 1):
        logits = torch.from_numpy(session.run(["logits"], {"images": IMAGES[:count].numpy()})[0])
        assert logits.shape == (2, count, 10)
        torch.testing.assert_close(logits[0], expected[0, :count], rtol=1e-3, atol=1e-3)
        # later, another order of sums may move a value across a threshold, and random weights amplify that
        assert (logits.argmax(2) == expected[:, :count].argmax(2)).float().mean() > 0.8


@pytest.fixture(scope="module")
def net():
    net = converted("delta", gamma=0.5)
    net.conversion.preprocess = PRESETS["cifar10"]
    net.conversion.classes = ["cat", "dog"]
    return net


@pytest.fixture(scope="module")
def onnx_file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    write_onnx(net, path, 2, SHAPE)
    return path


def test_onnxruntime_gives_the_logits_of_every_step(net, onnx_file):
    assert_onnxruntime_agrees(onnx_file, logits_of(net))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["differential", "signed", "rate"])
def test_every_coding_runs_in_onnxruntime(recipe, tmp_path):
    net = converted(recipe)
    write_onnx(net, tmp_path / "net.onnx", 2, SHAPE)
    assert_onnxruntime_agrees(tmp_path / "net.onnx", logits_of(net))


@pytest.mark.slow
def test_a_network_to_train_is_exported_as_well(tmp_path):
    torch.manual_seed(0)
    net = shake_batch_norm(snnzoo.create_model("resnet20", neuron="lif")).eval()
    write_onnx(net, tmp_path / "net.onnx", 2, SHAPE)
    assert_onnxruntime_agrees(tmp_path / "net.onnx", logits_of(net))


def test_a_pt2_file_gives_exactly_the_logits(net, tmp_path):
    before = logits_of(net)
    write_pt2(net, tmp_path / "net.pt2", 2, SHAPE)
    facts = {"time_steps": "", "preprocess": "", "model": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=facts)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(IMAGES), before, rtol=1e-5, atol=1e-5)
        assert program.module()(IMAGES[:1]).shape == (2, 1, 10)
    assert (facts["model"], facts["time_steps"]) == ("resnet20", "2")
    assert torch.equal(logits_of(net), before)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_an_onnx_file_says_how_images_are_preprocessed(onnx_file):
    facts = {item.key: item.value for item in onnx.load(onnx_file).metadata_props}
    assert json.loads(facts["preprocess"]) == PRESETS["cifar10"].to_dict()
    assert json.loads(facts["classes"]) == ["cat", "dog"]
    assert json.loads(facts["coding"])["name"] == "delta"
    assert facts["time_steps"] == "2"


def test_the_stem_takes_each_image_once_the_rest_each_image_and_step(onnx_file):
    graph = onnx.load(onnx_file).graph
    shapes = {info.name: info.type.tensor_type.shape.dim for info in graph.value_info}
    batches = [shapes[node.output[0]][0].dim_param for node in graph.node if node.op_type == "Conv"]
    assert batches == ["batch"] + ["2*batch"] * 18


def test_a_network_to_train_is_checked_by_the_mean_of_its_steps(tmp_path):
    torch.manual_seed(0)
    net = shake_batch_norm(snnzoo.create_model("resnet20", neuron="if")).eval()
    found = write_pt2(net, tmp_path / "net.pt2", 3, SHAPE, images=IMAGES)
    assert (found.images, found.agreement) == (5, 1.0)
    assert found.difference < 1e-4


def test_less_than_one_step_is_an_error(net, tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        write_onnx(net, tmp_path / "net.onnx", 0, SHAPE)
