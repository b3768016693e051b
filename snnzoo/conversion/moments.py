"""Thresholds without images: what batch normalisation says about the activations after it.

A BN output is taken as normal with the BN's own mean (`bias`) and standard deviation (`weight`), channel by
channel; signals that are added or joined are taken as independent. What an activation passes on has the moments of its
function of a normal variable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snnzoo.codings import Activation, Coding
from snnzoo.conversion.calibration import fill_dead
from snnzoo.conversion.neurons import Parameters
from snnzoo.errors import UsageError
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import INPUT

DEVIATIONS = 4.0  # of the normal distribution, up to which an activation is represented
NODES = 64  # of the numerical integration over the normal distribution

Moments = tuple[Tensor, Tensor]  # mean and standard deviation, [C] each

_SAME = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax", "upsample", "shift"}


def data_free_parameters(graph: Graph, tensors: Mapping[str, Tensor], coding: Coding) -> Parameters:
    """Return for each site its parameters: thresholds from the BN statistics, and no bias correction.

    Raises:
        UsageError: if an activation comes behind layers of which no BN tells the statistics.
    """
    parameters: Parameters = {}
    for path, (activation, (mean, deviation)) in activation_moments(graph, tensors).items():
        ends = torch.stack([activation(mean + side * DEVIATIONS * deviation) for side in (-1.0, 0.0, 1.0)])
        peak = fill_dead(ends.abs().amax(0))
        parameters[path] = {"v_threshold": peak / coding.span(1), "bias": torch.zeros_like(peak)}
    return parameters


def activation_moments(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Activation, Moments]]:
    """Return for each site its function, and mean and standard deviation of what reaches it."""
    known: dict[str, Moments] = {}
    found: dict[str, tuple[Activation, Moments]] = {}
    sites = {node.name for node in graph.neurons}
    for node in graph:
        moments = _moments(node, tensors, known)
        if node.name in sites:
            before = known.get(node.inputs[0])
            if before is None:
                raise UsageError(
                    f"{node.path} comes behind layers with no BN, whose thresholds cannot be guessed: give calibration "
                    "images, a few hundred without labels (--calib-data DIR)"
                )
            found[node.path] = node.activation, before
        if moments is not None:
            known[node.name] = moments
    return found


def _moments(node: Node, tensors: Mapping[str, Tensor], known: Mapping[str, Moments]) -> Moments | None:
    """Those of a node's value; None where nothing tells them."""
    if node.operation == "batch_norm":
        running = tensors[node.parameters["running_mean"]]
        weight = tensors[node.parameters["weight"]] if "weight" in node.parameters else torch.ones_like(running)
        bias = tensors[node.parameters["bias"]] if "bias" in node.parameters else torch.zeros_like(running)
        return bias.detach(), weight.detach().abs()
    inputs = [known.get(name) for name in node.inputs if name != INPUT]
    if not inputs or any(moments is None for moments in inputs):
        return None
    first, *others = [moments for moments in inputs if moments is not None]
    if node.is_activation:
        return passed_on(node.activation, *first)
    if node.operation == "add":
        (mean, deviation), alpha = others[0], node.settings["alpha"]
        if mean.shape != first[0].shape:
            return None
        return first[0] + alpha * mean, (first[1].square() + (alpha * deviation).square()).sqrt()
    if node.operation == "cat" and node.settings["dim"] == 1:
        return torch.cat([first[0], *(m for m, _ in others)]), torch.cat([first[1], *(d for _, d in others)])
    if node.operation == "slice":
        s = node.settings
        part = slice(s["start"], s["end"], s["step"]) if s["dim"] == 1 else slice(None)
        return first[0][part], first[1][part]
    if node.operation == "pad":
        pad = node.settings["pad"]
        around = tuple(pad[4:6]) if len(pad) >= 6 else (0, 0)
        return torch.nn.functional.pad(first[0], around), torch.nn.functional.pad(first[1], around)
    return first if node.operation in _SAME else None


def passed_on(activation: Activation, mean: Tensor, deviation: Tensor) -> Moments:
    """Return mean and standard deviation of f(x) for normal x, by numerical integration."""
    z = torch.linspace(-DEVIATIONS, DEVIATIONS, 2 * NODES + 1, dtype=torch.float64, device=mean.device)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    weights = (density / density.sum()).unsqueeze(1)
    values = activation(mean.double() + z.unsqueeze(1) * deviation.double())
    first = (weights * values).sum(0)
    second = (weights * values.square()).sum(0)
    return first.to(mean.dtype), (second - first.square()).clamp(min=0).sqrt().to(mean.dtype)
