"""How many outputs an input reaches through a layer's weights, and what an event sets off in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snnzoo.graph.graph import Graph, Node


def fan_out(node: Node, weight: Sequence[int], input_shape: Sequence[int], output_shape: Sequence[int]) -> Tensor:
    """Return how many outputs each input of a convolution or linear layer reaches.

    Args:
        node: a conv2d or linear.
        weight: shape of its weights.
        input_shape, output_shape: without time and batch, `[C, H, W]` or `[..., features]`.

    Returns:
        int64 `[H, W]` (the same for every channel), or `[]`.
    """
    if node.operation == "linear":
        return torch.tensor(weight[0])
    rows, columns = (
        _reached(node.settings, axis, weight[2 + axis], input_shape[1 + axis], output_shape[1 + axis])
        for axis in range(2)
    )
    return torch.outer(rows, columns) * (weight[0] // node.settings["groups"])


def _reached(settings: Mapping[str, Any], axis: int, kernel: int, inputs: int, outputs: int) -> Tensor:
    """Along one axis, how many outputs see each input, `[inputs]`."""
    stride, dilation, padding = settings["stride"][axis], settings["dilation"][axis], settings["padding"]
    if padding == "same":
        before = dilation * (kernel - 1) // 2
    else:
        before = 0 if padding == "valid" else padding[axis]
    seen = torch.arange(outputs).unsqueeze(1) * stride + torch.arange(kernel) * dilation - before
    return torch.bincount(seen[(seen >= 0) & (seen < inputs)], minlength=inputs)


def dense_operations(
    graph: Graph, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Return the multiply-accumulates of each node with weights, for one image, if every input counts.

    Args:
        shapes: of one image's values, as `value_shapes` gives them.
    """
    found = {}
    for node in graph:
        if node.row.weighted:
            shape = shapes[node.inputs[0]]
            weight = tensors[node.parameters["weight"]].shape
            found[node.name] = int(fan_out(node, weight, shape, shapes[node.name]).expand(tuple(shape)).sum())
    return found


def operations_of_an_event(
    graph: Graph, dense: Mapping[str, int], shapes: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return how many synaptic operations an event of each neuron site sets off on average, by the site's path.

    Through pools, sums and joins an event is taken to pass as it is, so that one before an average pool counts for more
    than it does when others join it there.

    Args:
        dense: what `dense_operations` gives of the same graph.
        shapes: of one image's values.
    """
    sites = {node.name for node in graph.neurons}
    onwards: dict[str, float] = {}  # of an event at each value
    for node in reversed(graph.nodes):
        total = 0.0
        for user in graph.consumers[node.name]:
            if user.row.weighted:
                inputs = torch.Size(shapes[node.name]).numel()
                total += 0.0 if user.name in graph.analog else dense[user.name] / inputs
            elif user.name not in sites:
                total += onwards[user.name]
        onwards[node.name] = total
    return {node.path: onwards[node.name] for node in graph.neurons}
