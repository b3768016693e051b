"""Shapes of a network's values, found without data: the graph is run on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from snnzoo.errors import CheckpointError
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.run import run_graph

MOST_VALUES = 1 << 34  # of one image, of one node


def value_shapes(
    graph: Graph, tensors: Mapping[str, Tensor], input_shape: Sequence[int], source: str
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each node's value, without the batch.

    Args:
        input_shape: of one image, `[C, H, W]`.
        source: what is named in messages.

    Raises:
        CheckpointError: naming the node whose inputs and parameters do not fit each other.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    last: list[Node] = []

    def keep(node: Node, value: Tensor) -> None:
        shapes[node.name] = tuple(value.shape[1:])
        last[:] = [node]
        if value.ndim < 2 or len(value) != 2 or value.numel() > MOST_VALUES:
            raise ValueError(f"its value has shape {list(value.shape)}")

    meta = {key: torch.empty(value.shape, dtype=value.dtype, device="meta") for key, value in tensors.items()}
    image = torch.empty((2, *input_shape), device="meta", dtype=_dtype(meta))
    try:
        with torch.no_grad():
            run_graph(graph, meta, image, keep)
    except Exception as error:  # whatever an operation says of shapes that do not fit
        where = f"after {last[0].path or last[0].name}" if last else "at its first node"
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: its graph and its tensors do not fit each other, {where}: {reason}") from None
    return shapes


def site_channels(
    graph: Graph, tensors: Mapping[str, Tensor], input_shape: Sequence[int], source: str
) -> dict[str, int]:
    """Return for each activation's path how many channels its neuron has; arguments as `value_shapes`."""
    shapes = value_shapes(graph, tensors, input_shape, source)
    return {node.path: shapes[node.name][0] for node in graph.neurons}


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next((value.dtype for value in tensors.values() if value.is_floating_point()), torch.float32)
