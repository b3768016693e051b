"""A graph as the ANN that it is: every operation on a batch, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import INPUT


def run_node(node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
    """Return what a node makes of its inputs `[N, ...]`; `tensors` holds those of the network's state_dict."""
    if node.is_activation:
        return node.activation(inputs[0])
    return node.row.run(*inputs, **parameters_of(node, tensors), **node.settings)


def parameters_of(node: Node, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a node's parameters by their roles."""
    return {role: tensors[key] for role, key in node.parameters.items()}


def run_graph(
    graph: Graph,
    tensors: Mapping[str, Tensor],
    images: Tensor,
    watch: Callable[[Node, Tensor], None] | None = None,
) -> Tensor:
    """Return the ANN's logits `[N, classes]` of `images [N, C, H, W]`.

    Args:
        watch: called with each node and its value.
    """
    values = {INPUT: images}
    for node in graph:
        values[node.name] = run_node(node, tensors, [values[name] for name in node.inputs])
        if watch is not None:
            watch(node, values[node.name])
        for name in graph.last_uses[node.name]:
            del values[name]
    return values[graph.output]
