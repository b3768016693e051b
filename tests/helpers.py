"""What several tests need."""

import functools

import torch
from torch import nn

from snnzoo import functional, neuron

NEURONS = {
    "IF hard": neuron.IFNode,
    "IF soft": functools.partial(neuron.IFNode, v_reset=None),
    "LIF hard": neuron.LIFNode,
    "LIF soft": functools.partial(neuron.LIFNode, v_reset=None),
}

# Recipes of every coding, with the options of some: what tests of converted networks run through.
RECIPES = {
    "rate, max": ("rate", {"threshold": "max"}),
    "rate, 99.9 percentile": ("rate", {"threshold": "percentile"}),
    "delta, ternary": ("delta", {"levels": 1, "gamma": 0.7}),
    "delta, K=3": ("delta", {"levels": 3, "gamma": 0.5}),
    "delta, K=7": ("delta", {"levels": 7, "gamma": 0.4}),
    "differential": ("differential", {}),
    "signed": ("signed", {}),
    "data-free": ("delta", {"levels": 7}),
}


def shake_batch_norm(net, seed=0):
    """Random BN statistics and affine parameters, so that no term is left out by being 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return net


def assert_patterns_agree(net, x_seq):
    """Layer-by-layer equals step-by-step, and fires enough for that to mean something."""
    rates = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, y: rates.append(y.count_nonzero().item() / y.numel()))
        for module in net.modules()
        if isinstance(module, neuron.BaseNode)
    ]
    with torch.inference_mode():
        functional.set_step_mode(net, "m")
        layer_by_layer = net(x_seq)
        for hook in hooks:
            hook.remove()
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        step_by_step = torch.stack([net(x) for x in x_seq])
        functional.reset_net(net)
    assert sum(rate > 0 for rate in rates) > len(rates) * 0.9
    torch.testing.assert_close(layer_by_layer, step_by_step, rtol=1e-10, atol=1e-10)


def assert_converted_patterns_agree(net, x_seq):
    """As `assert_patterns_agree`, of a converted network, whose logits change from step to step."""
    with torch.inference_mode():
        functional.reset_net(net)
        functional.set_step_mode(net, "m")
        layer_by_layer = net(x_seq)
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        step_by_step = torch.stack([net(x) for x in x_seq])
    torch.testing.assert_close(layer_by_layer, step_by_step, rtol=1e-9, atol=1e-9)
    assert (layer_by_layer[0] != layer_by_layer[-1]).any()


def firing(net):
    """Random BN whose shift makes every layer fire."""
    shake_batch_norm(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.5
    return net.double().eval()
