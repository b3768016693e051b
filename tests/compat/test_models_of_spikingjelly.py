"""Spiking networks of the library with their weights carried over: the same keys, and no difference at all."""

from functools import partial

import pytest
import torch
from torch import nn

import snnzoo.model.sew_resnet
import snnzoo.model.spiking_resnet
import snnzoo.model.spiking_vgg
from helpers import shake_batch_norm
from snnzoo import functional, neuron


def make(models, neurons, name, node, **kwargs):
    family = "spiking_vgg" if "vgg" in name else "sew_resnet" if "sew" in name else "spiking_resnet"
    prefix, kind = ("MultiStep", "multi_step_neuron") if name.startswith("multi") else ("", "single_step_neuron")
    constructor = getattr(getattr(models, family), name)
    return constructor(num_classes=7, **{kind: getattr(neurons, prefix + node)}, **kwargs)


def firing(net):
    """Random BN, and biases and weights that let neurons without BN fire."""
    shake_batch_norm(net)
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.5
        if isinstance(module, nn.Linear):
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) / module.in_features**0.5)
            module.bias.data += 0.3
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data += 0.5
        if getattr(module, "w", None) is not None:
            module.w.data += torch.randn((), generator=generator)
    return net


def assert_no_difference(theirs, ours, x, in_steps):
    firing(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs, ours = theirs.eval(), ours.eval()
    with torch.inference_mode():
        expected, actual = (
            torch.stack([net(x) for x in in_steps]) if in_steps is not None else net(x) for net in (theirs, ours)
        )
        assert torch.equal(actual, expected)
        assert expected.std() > 0
        assert (expected - expected[:, :1]).abs().max() > 0
        return expected


RESNETS = [
    ("multi_step_spiking_resnet18", "IFNode", {}),
    ("multi_step_spiking_resnet18", "LIFNode", {"v_threshold": 0.6, "v_reset": None}),
    ("multi_step_spiking_resnet18", "ParametricLIFNode", {}),
    ("spiking_resnet18", "ParametricLIFNode", {}),
    ("multi_step_spiking_resnet50", "IFNode", {}),
    ("multi_step_sew_resnet18", "ParametricLIFNode", {"cnf": "ADD"}),
    ("multi_step_sew_resnet18", "IFNode", {"cnf": "AND"}),
    ("multi_step_sew_resnet18", "IFNode", {"cnf": "IAND"}),
    ("sew_resnet18", "IFNode", {"cnf": "ADD"}),
    ("multi_step_sew_resnet50", "LIFNode", {"cnf": "ADD"}),
]


@pytest.mark.parametrize(("name", "node", "settings"), RESNETS)
def test_resnets_give_the_same_logits(classic, name, node, settings):
    torch.manual_seed(0)
    theirs = make(classic.model, classic.neuron, name, node, **settings)
    ours = make(snnzoo.model, neuron, name, node, **settings)
    x_seq = torch.randn(3, 2, 3, 48, 48)
    assert_no_difference(theirs, ours, x_seq, None if name.startswith("multi") else x_seq)
    ours, x_seq = ours.double(), x_seq.double()  # in which no spike hangs on how sums are rounded
    functional.reset_net(ours)
    with torch.inference_mode():
        logits = ours(x_seq) if name.startswith("multi") else torch.stack([ours(x) for x in x_seq])
    fast = snnzoo.prepare_for_inference(ours)(x_seq)
    torch.testing.assert_close(fast, logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["multi_step_spiking_vgg11_bn", "spiking_vgg11_bn"])
def test_vggs_give_the_same_logits(classic, name):
    torch.manual_seed(0)
    theirs = make(classic.model, classic.neuron, name, "ParametricLIFNode", v_threshold=0.4)
    ours = make(snnzoo.model, neuron, name, "ParametricLIFNode", v_threshold=0.4)
    x_seq = torch.randn(3, 2, 3, 32, 32)
    assert_no_difference(theirs, ours, x_seq, None if name.startswith("multi") else x_seq)


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "multi_step_spiking_resnet34", "multi_step_spiking_resnext50_32x4d", "multi_step_spiking_wide_resnet50_2",
    "multi_step_spiking_resnet101", "multi_step_sew_resnet34", "multi_step_sew_resnext50_32x4d",
    "multi_step_sew_wide_resnet50_2", "multi_step_spiking_vgg11", "multi_step_spiking_vgg16_bn",
    "multi_step_spiking_vgg19",
])  # fmt: skip
def test_other_networks_give_the_same_logits(classic, name):
    torch.manual_seed(0)
    settings = {"cnf": "ADD"} if "sew" in name else {"v_threshold": 0.4} if "vgg" in name else {}
    theirs = make(classic.model, classic.neuron, name, "LIFNode", **settings)
    ours = make(snnzoo.model, neuron, name, "LIFNode", **settings)
    assert_no_difference(theirs, ours, torch.randn(3, 2, 3, 48, 48), None)


@pytest.mark.parametrize("name", ["multi_step_spiking_resnet18", "multi_step_sew_resnet18"])
def test_an_image_is_shown_t_times_and_training_gives_the_same_gradients(classic, name):
    settings = {"T": 3, **({"cnf": "ADD"} if "sew" in name else {})}
    theirs = make(classic.model, classic.neuron, name, "LIFNode", **settings).double()
    ours = make(snnzoo.model, neuron, name, "LIFNode", **settings).double()
    firing(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    grads = []
    for net in (theirs, ours):
        net.train()(image).mean(0).square().sum().backward()
        grads.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_arguments_of_networks_and_of_neurons_are_told_apart(classic):
    settings = {
        "zero_init_residual": True,
        "norm_layer": partial(nn.BatchNorm2d, eps=0.1),
        "tau": 3.0,
        "detach_reset": True,
    }
    theirs = make(classic.model, classic.neuron, "spiking_resnet18", "LIFNode", **settings)
    ours = make(snnzoo.model, neuron, "spiking_resnet18", "LIFNode", **settings)
    assert (ours.sn1.tau, ours.sn1.detach_reset) == (3.0, True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.bn1.eps == ours.layer4[1].bn2.eps == 0.1
    assert not ours.layer4[1].bn2.weight.any()


@pytest.mark.parametrize(
    ("name", "node", "model", "kind", "settings"),
    [
        ("multi_step_spiking_resnet18", "ParametricLIFNode", "resnet18", "plif", {}),
        ("spiking_resnet18", "IFNode", "resnet18", "if", {}),
        ("multi_step_sew_resnet18", "ParametricLIFNode", "sew_resnet18", "plif", {"cnf": "ADD"}),
    ],
)
def test_files_of_the_library_load_with_the_same_logits(classic, name, node, model, kind, settings, tmp_path):
    torch.manual_seed(0)
    theirs = firing(make(classic.model, classic.neuron, name, node, **settings)).eval()
    torch.save({"net": theirs.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    ours = snnzoo.load_snn(tmp_path / "net.pth", model, kind)
    x_seq = torch.randn(3, 2, 3, 48, 48)
    with torch.inference_mode():
        expected = theirs(x_seq) if name.startswith("multi") else torch.stack([theirs(x) for x in x_seq])
        assert expected.std() > 0
        torch.testing.assert_close(ours(x_seq), expected, rtol=0, atol=1e-6 * float(expected.abs().amax()))
