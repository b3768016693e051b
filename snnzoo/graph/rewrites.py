"""Rewrites that leave what an ANN computes as it is."""

from __future__ import annotations

import dataclasses

from snnzoo.codings.activations import Clamp, LeakyReLU, ReLU
from snnzoo.graph.graph import Graph, Node

_MONOTONE = (ReLU, Clamp)


def pool_before_activations(graph: Graph) -> Graph:
    """Return the graph with each max pool behind a monotone activation moved before it.

    The maximum of f(x) is f of the maximum. So a quarter of the neurons remains, and a pool that no neuron comes before
    sees the image itself.
    """
    nodes: list[Node] = list(graph.nodes)
    for place, node in enumerate(nodes):
        users = graph.consumers[node.name]
        if not (node.is_activation and len(users) == 1 and users[0].operation == "max_pool2d"):
            continue
        if not _is_monotone(node) or node.name == graph.output:
            continue
        pool = users[0]
        # each takes the other's place in the order, and the name that those behind it know
        nodes[place] = dataclasses.replace(pool, name=node.name, inputs=node.inputs)
        nodes[nodes.index(pool)] = dataclasses.replace(node, name=pool.name, inputs=(node.name,))
    return graph.with_nodes(nodes)


def _is_monotone(node: Node) -> bool:
    function = node.activation
    if isinstance(function, LeakyReLU):
        return not isinstance(function.slope, tuple) and function.slope >= 0
    return isinstance(function, _MONOTONE)
