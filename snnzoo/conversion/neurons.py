"""The neurons of a converted network, in the place of its ANN's activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from snnzoo.codings import Activation, Coding
from snnzoo.converted_node import ConvertedNode
from snnzoo.graph.network import Ann, SpikingNetwork

Parameters = dict[str, dict[str, Tensor]]  # for each site's path, `v_threshold [C]` and `bias [C]` of its neuron
Gammas = Mapping[str, float]  # of delta coding, for the paths of sites whose neuron has one of its own
PARAMETER_NAMES = ("v_threshold", "bias")
NO_GAMMAS: Gammas = MappingProxyType({})


def coding_of(path: str, coding: Any, gammas: Gammas) -> Coding:
    """Return the coding of the neuron at a site: the network's, but for a gamma of its own."""
    own: Coding = replace(coding, gamma=gammas[path]) if path in gammas else coding
    return own


def make_node(
    coding: Coding, activation: Activation, parameters: Mapping[str, Tensor], absolute: bool = True
) -> ConvertedNode:
    """Return the multi-step neuron of a coding; `absolute` if it sees what its input adds up to, where that matters."""
    theta, bias = parameters["v_threshold"], parameters["bias"]
    return ConvertedNode(
        coding, theta, bias, activation=activation, absolute=absolute and coding.bias_once, step_mode="m"
    )


def install(
    ann: Ann, coding: Coding, parameters: Parameters, extrapolation: float = 0.0, gammas: Gammas = NO_GAMMAS
) -> SpikingNetwork:
    """Return the network with neurons of these parameters in the place of the ANN's activations, in eval mode."""
    graph = ann.graph
    neurons = {
        node.path: make_node(
            coding_of(node.path, coding, gammas),
            node.activation,
            parameters[node.path],
            absolute=node.inputs[0] in graph.before_neurons,
        )
        for node in graph.neurons
    }
    net = SpikingNetwork(
        graph,
        ann.state_dict(),
        neurons,
        coding,
        extrapolation,
        model_name=ann.model_name,
        input_shape=ann.input_shape,
    )
    return net.to(next(ann.parameters()).device).eval()
