"""From a PyTorch module to a `Graph`: torch.export, read operator by operator.

The module is exported in evaluation mode, in float32 on the CPU, for any number of images, and what was read is run
beside it: a graph that computes something else is never returned.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnzoo.errors import SnnzooError
from snnzoo.graph.graph import Graph
from snnzoo.graph.reader import ENDINGS, Reader, is_in_place
from snnzoo.graph.run import run_graph

TOLERANCE = 1e-3  # of the largest logit: what is left of it is rounding in float32


def capture(module: nn.Module, example: Tensor, notify: Callable[[str], None] = lambda line: None) -> Graph:
    """Return the graph of a network in evaluation mode.

    Args:
        module: from images `[N, C, H, W]` to logits `[N, classes]`; in any mode, on any device, also compiled or in
            DataParallel. Not changed.
        example: images of the right shape, `[N, C, H, W]`; their values do not matter.
        notify: called with a line if the network ends in softmax, log_softmax or sigmoid, which the graph is without.

    Returns:
        the graph; its parameters are keys of `plain(module).state_dict()`.

    Raises:
        SnnzooError: naming the operation and the module it is in, if the network cannot be converted.
    """
    module = plain(module)
    frozen = copy.deepcopy(module).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *example.shape[1:]), generator=generator)  # one image would be taken for a constant
    program = _export(frozen, images)
    reader = Reader(program, frozen)
    graph = reader.graph()
    _require_same(frozen, graph, reader.left_out, torch.randn((3, *example.shape[1:]), generator=generator))
    if reader.left_out is not None:
        notify(
            f"{type(module).__name__} ends in {reader.left_out}, which is left out: the converted network gives what "
            "goes into it, in the same order of classes"
        )
    return graph


def plain(module: nn.Module) -> nn.Module:
    """Return the module itself, out of DataParallel, DistributedDataParallel or torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if inner is None:
            return module
        module = inner


def logits_of(output: Any, name: str) -> Tensor:
    """Return the logits of what a module gave: a tensor, something with `.logits`, a dict with "logits", or a tuple.

    Raises:
        SnnzooError: if there are none.
    """
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        output = output[0]
    if not isinstance(output, Tensor):
        raise SnnzooError(f"{name} gives a {type(output).__name__}: expected logits [N, classes]")
    return output


class _Logits(nn.Module):
    """A module, of whose output the logits are kept."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(images), type(self.network).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns and logs about what is no concern of the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _export(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    name = type(module).__name__
    try:
        with torch.no_grad(), _quiet():
            logits_of(module(images), name)
            batch = ({0: torch.export.Dim("batch", min=1, max=1 << 16)},)
            program = torch.export.export(_Logits(module), (images,), dynamic_shapes=batch)
            return program.run_decompositions({}) if _writes_to_views(program) else program
    except SnnzooError:
        raise
    except Exception as error:  # whatever a user's own code raises, and torch.export's many kinds
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else reason[:300] + " ..."
        raise SnnzooError(
            f"{name} cannot be captured by torch.export on images {list(images.shape)}: {reason} (control flow that "
            f"depends on the data cannot be converted; the input may have the wrong size)"
        ) from error


def _writes_to_views(program: torch.export.ExportedProgram) -> bool:
    """Whether an operation in place changes a value that others share memory with."""
    for node in program.graph.nodes:
        if not is_in_place(node):
            continue
        changed = node.args[0]
        if _is_view(changed) or any(_is_view(user) for user in changed.users):
            return True
    return False


def _is_view(node: fx.Node) -> bool:
    """Whether the node's value may share memory with its input (or is a part of several that do)."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # getitem
    schema = node.target._schema
    return not schema.is_mutable and any(argument.alias_info is not None for argument in schema.arguments)


def _require_same(module: nn.Module, graph: Graph, left_out: str | None, images: Tensor) -> None:
    """What was read must compute what the module computes."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        expected = logits_of(module(images), type(module).__name__)
        actual = run_graph(graph, tensors, images)
    if expected.ndim != 2 or 0 in expected.shape:
        raise SnnzooError(
            f"{type(module).__name__} gives an output of shape {list(expected.shape)}: expected [N, classes]"
        )
    actual = actual if left_out is None else ENDINGS[left_out](actual)
    scale = expected.nan_to_num(0, 0, 0).abs().amax().clamp(min=1e-6).item()
    same = expected.shape == actual.shape and torch.allclose(expected, actual, 0, TOLERANCE * scale, equal_nan=True)
    if not same:
        raise SnnzooError(
            f"{type(module).__name__} was not captured rightly: its graph gives other logits; does its output depend "
            "on more than the image (random numbers, earlier calls)?"
        )
