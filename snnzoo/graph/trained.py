"""Networks of the zoo as graphs: the ANN that one has the weights of, and a trained spiking network as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from snnzoo.functional import set_step_mode
from snnzoo.graph.capture import capture
from snnzoo.graph.network import SpikingNetwork
from snnzoo.models.base import SpikingNet
from snnzoo.threshold_node import ThresholdNode

SIZE = 64  # pixels that a network of the zoo is captured with: it takes any


def with_relu(net: SpikingNet) -> SpikingNet:
    """Return a copy of a network of the zoo with a ReLU for every neuron, single-step."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, ThresholdNode):
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, nn.ReLU())
    set_step_mode(net, "s")
    return net


def as_graph(net: SpikingNet | SpikingNetwork, input_shape: Sequence[int] | None = None) -> SpikingNetwork:
    """Return a network of the zoo, trained with its neurons, as a graph with copies of them; a graph as it is.

    Signals are what they are, step by step. The network is not changed.

    Args:
        input_shape: of an image, `[C, H, W]`, for a network that does not take any size.
    """
    if isinstance(net, SpikingNetwork):
        return net
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    relu = with_relu(net)
    shape = list(input_shape or (first.in_channels, SIZE, SIZE))
    graph = capture(relu, torch.zeros(1, *shape))
    found = {node.path: net.get_submodule(node.path) for node in graph.neurons}
    neurons = {path: copy.deepcopy(module) for path, module in found.items() if isinstance(module, ThresholdNode)}
    tensors = {key: value.detach().clone() for key, value in relu.state_dict().items()}
    name = getattr(net, "model_name", type(net).__name__)
    network = SpikingNetwork(graph, tensors, neurons, None, model_name=name, input_shape=shape)
    network.to(first.weight.device).eval()
    set_step_mode(network, "m")
    return network
