"""Shapes of a network's values, found without data: the graph is run on a batch of no images.

The meta device would tell them, too, but takes two seconds to get ready: its kernels import torch._dynamo and sympy. It
is left to operations that are not known to give the right shape without images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from snnzoo.errors import CheckpointError
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import run_node

MOST_VALUES = 1 << 34  # of one image, of one node
_TELL_WITHOUT_IMAGES = (
    *("conv2d", "linear", "add", "multiply", "scale", "shift", "activation"),
    *("cat", "slice", "reshape", "permute", "pad", "mean", "sum", "amax"),
    *("avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d"),
)


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
    parameters = {key: _blank(value) for key, value in tensors.items()}
    values = {INPUT: torch.empty((0, *input_shape), dtype=torch.float32)}
    last: Node | None = None
    try:
        with torch.no_grad():
            for node in graph:
                values[node.name] = _of_no_images(node, parameters, [values[name] for name in node.inputs])
                last = node
                _check(values[node.name])
    except Exception as error:  # whatever an operation says of shapes that do not fit
        where = f"after {last.path or last.name}" if last else "at its first node"
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: its graph and its tensors do not fit each other, {where}: {reason}") from None
    return {name: tuple(value.shape[1:]) for name, value in values.items() if name != INPUT}


def _of_no_images(node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
    """Return what a node makes of inputs `[0, ...]`; what no operation minds where there is no image is looked at here.

    Raises:
        Exception: of any kind, if shapes do not fit each other.
    """
    x = inputs[0]
    if node.operation == "batch_norm":
        for key in node.parameters.values():
            if tensors[key].shape != x.shape[1:2]:
                raise ValueError(f"{key} has shape {list(tensors[key].shape)}, its input {x.shape[1]} channels")
        return x
    if node.operation == "upsample":  # which makes tables as long as the image is wide
        size, factors = node.settings["size"], node.settings["scale_factor"]
        height, width = size or (math.floor(n * by) for n, by in zip(x.shape[2:], factors, strict=True))
        return x.new_empty((*x.shape[:2], height, width))
    if node.operation not in _TELL_WITHOUT_IMAGES:
        meta = {key: tensors[key].to("meta") for key in node.parameters.values()}
        images = [x.new_empty((2, *x.shape[1:]), device="meta") for x in inputs]
        value = run_node(node, meta, images)
        return x.new_empty((0, *value.shape[1:])) if len(value) == 2 else value
    value = run_node(node, tensors, inputs)
    if node.operation == "reshape" and math.prod(value.shape[1:]) != math.prod(x.shape[1:]):
        raise ValueError(f"{list(x.shape[1:])} cannot become {list(value.shape[1:])}")
    return value


def _blank(value: Tensor) -> Tensor:
    """A parameter of the same shape, all of one precision: that of parts of a network may differ, shapes do not."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty((), dtype=dtype).expand(value.shape)


def _check(value: Tensor) -> None:
    if value.ndim < 2 or len(value) != 0 or math.prod(value.shape[1:]) > MOST_VALUES:
        raise ValueError(f"its value has shape {list(value.shape)}")


def site_channels(
    graph: Graph, tensors: Mapping[str, Tensor], input_shape: Sequence[int], source: str
) -> dict[str, int]:
    """Return for each activation's path how many channels its neuron has; arguments as `value_shapes`."""
    shapes = value_shapes(graph, tensors, input_shape, source)
    return {node.path: shapes[node.name][0] for node in graph.neurons}
