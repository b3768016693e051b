"""A model family from outside the package: built by name, converted, kept, and run equally in every way."""

import pytest
import torch
from torch import nn

import snnzoo
from helpers import assert_converted_patterns_agree, neuron_sites
from snnzoo import prepare_for_inference
from snnzoo.models import registry
from snnzoo.models.base import SpikingNet
from snnzoo.models.registry import ModelSpec


class ToyNet(SpikingNet):
    """Two convolutions of different kernels, joined; a family that the package does not know."""

    def __init__(self, width=4, *, num_classes=10, in_channels=3, neuron, step_mode="m"):
        super().__init__()
        self.left, self.right = nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(in_channels, width, 1)
        self.sn1, self.mix, self.sn2 = neuron(), nn.Conv2d(2 * width, width, 3), neuron()
        self.avgpool, self.readout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Linear(width, num_classes)
        self.initialise(step_mode)

    def stem(self, x):
        both = torch.cat([self.stateless(x, self.left), self.stateless(x, self.right)], -3)
        return self.sn2(self.stateless(self.sn1(both), self.mix))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    spec = ModelSpec(__name__, "ToyNet", {"width": 4}, 10, "cifar10", "an example")
    monkeypatch.setitem(registry.MODELS, "toy", spec)


@pytest.mark.parametrize("recipe", ["delta", "rate"])
def test_a_family_from_outside_converts_saves_loads_and_runs_equally_in_every_way(recipe, tmp_path):
    torch.manual_seed(0)
    ann = snnzoo.create_model("toy", neuron=nn.ReLU, step_mode="s").double()
    images = torch.randn(8, 3, 12, 12, dtype=torch.float64)
    net = snnzoo.convert(ann, images, recipe, time_steps=4)
    assert neuron_sites(net) == ["sn1", "sn2"]
    snnzoo.save(net, tmp_path / "toy.safetensors")
    x_seq = images.expand(4, *images.shape)
    with torch.inference_mode():
        logits = net(x_seq)
        assert torch.equal(snnzoo.load(tmp_path / "toy.safetensors")(x_seq), logits)
        torch.testing.assert_close(prepare_for_inference(net)(x_seq), logits, rtol=1e-9, atol=1e-9)
    assert_converted_patterns_agree(net, x_seq)


def test_a_family_from_outside_trains_and_has_a_fast_form():
    torch.manual_seed(0)
    net = snnzoo.create_model("toy", neuron="lif").double()
    x_seq = 4 * torch.randn(3, 2, 3, 12, 12, dtype=torch.float64)
    net(x_seq).sum().backward()
    assert net.left.weight.grad.abs().sum() > 0
    snnzoo.functional.reset_net(net)
    with torch.inference_mode():
        torch.testing.assert_close(prepare_for_inference(net.eval())(x_seq), net(x_seq), rtol=1e-9, atol=1e-9)
