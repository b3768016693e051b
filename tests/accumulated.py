"""A converted network by definition: the ANN, run on what its signals add up to, with neurons that refine.

Add up every signal of a spiking network over time (or take its mean, where means decode). Then each operation sees
what the ANN's sees, and runs as it is; only neurons differ. Calibration runs networks so, and tests hold the faster
forms, which send changes, against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnzoo.codings import Coding
from snnzoo.graph.graph import Graph
from snnzoo.graph.network import is_static, node_each_step
from snnzoo.graph.operations import INPUT


def current(coding: Coding, accumulated: Tensor) -> Tensor:
    """Return what a neuron takes at each step, from what its input adds up to, `[T, N, ...]`.

    Where signals are changes, its neuron has to be `absolute`: it sees the sum itself.
    """
    if coding.bias_once or is_static(accumulated):
        return accumulated
    totals = accumulated * _counts(accumulated)
    return torch.cat([totals[:1], totals[1:] - totals[:-1]])


def accumulate(coding: Coding, outputs: Tensor) -> Tensor:
    """Return what a neuron's outputs add up to after each step, `[T, N, ...]`: their sum or their mean."""
    sums = outputs.cumsum(0)
    return sums / _counts(sums) if coding.readout == "mean" else sums


def run_accumulated(
    graph: Graph, tensors: Mapping[str, Tensor], neurons: Mapping[str, nn.Module], coding: Coding, x_seq: Tensor
) -> Tensor:
    """Return the logits after each step, `[T, N, classes]`, without extrapolation.

    Args:
        neurons: for each activation's path a neuron without state, multi-step; `absolute` where the coding sends
            changes.
        x_seq: what the input adds up to, `[T, N, C, H, W]`.
    """
    values = {INPUT: x_seq}
    sites = {node.name for node in graph.neurons}
    for node in graph:
        inputs = [values[name] for name in node.inputs]
        if node.name in sites:
            value = accumulate(coding, neurons[node.path](current(coding, inputs[0])))
        else:
            value = node_each_step(node, tensors, inputs)
        values[node.name] = value
        for name in graph.last_uses[node.name]:
            del values[name]
    return values[graph.output]


def mean_so_far(x_seq: Tensor) -> Tensor:
    """What frames `[T, N, C, H, W]` add up to where the mean decodes, and what they are given as where the sum does."""
    return x_seq.cumsum(0) / _counts(x_seq)


def _counts(x_seq: Tensor) -> Tensor:
    """1, 2, ... T, in a shape that broadcasts over `x_seq`."""
    counts = torch.arange(1, len(x_seq) + 1, dtype=x_seq.dtype, device=x_seq.device)
    return counts.view(-1, *[1] * (x_seq.ndim - 1))
