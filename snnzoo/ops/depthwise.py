"""Neurons, a depthwise convolution and the neurons behind it on a CPU, in one pass: `compiled_depthwise.cpp`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.ops import backends, compiled, compiler
from snnzoo.ops.memory import KEPT_BYTES, MemoryOrder
from snnzoo.ops.spec import Arguments, Memo, NeuronOutput

SOURCE = Path(__file__).with_name("compiled_depthwise.cpp")


class Convolution(ctypes.Structure):
    """As `Convolution` in the C++ source."""

    _fields_ = (
        ("weight", c_void_p),
        ("images", c_int64),
        *((name, c_int64 * 2) for name in ("size", "out_size", "kernel", "stride", "padding", "dilation")),
    )


def depthwise_neurons(
    x_seq: Tensor,
    coding: Coding,
    before: Arguments,
    weight: Tensor,
    settings: Mapping[str, Any],
    behind: Arguments,
    first: Callable[[Tensor], Tensor] | None = None,
) -> tuple[NeuronOutput, NeuronOutput] | None:
    """Return the state of neurons, and what others give behind a depthwise convolution of what the first send.

    None where no kernel does all three. Spikes are those of the three in turn, but for the rounding of the
    convolution's sums: products are added tap by tap, row by row.

    Args:
        x_seq: input of the first neurons, `[T, N, C, H, W]`, channels-last.
        coding: of both.
        before: of the first neurons, as `ops.multi_step_neuron` gives them; they keep no sequence.
        weight: of the convolution, `[C, 1, height, width]`; it has no bias.
        settings: of the convolution, as of its node.
        behind: of the neurons behind it. Their output may take the place of `x_seq`, if that has its shape.
        first: what the first neurons' input is made by, of `x_seq [T, N, channels in, H, W]`: for some images at a
            time, so that memory suffices that is at hand. What it gives is new.
    """
    if backends.forced() not in (None, "compiled") or _refuses(x_seq, coding, before, weight, settings, behind):
        return None
    library = _library(x_seq.dtype)
    if library is None:
        return None
    before, behind = before.of_rows(), behind.of_rows()
    batch, memo = x_seq.shape[1], Memo() if behind.memo is None else behind.memo
    shape = (len(x_seq), batch, len(weight), *x_seq.shape[3:])
    at_once = max(1, KEPT_BYTES * batch // (math.prod(shape) * x_seq.element_size())) if first else batch
    if first is not None and at_once >= batch:
        x_seq, first = first(x_seq), None
        behind = replace(behind, out=x_seq)

    def plan_of(images: int) -> _Plan:
        key = (shape[0], images, *shape[2:])
        plan: _Plan = memo.keep(("plan", key, id(weight)), lambda: _Plan(key, weight, settings))
        return plan

    plan = plan_of(batch)
    if not plan.may_overwrite or first is not None:
        behind = replace(behind, out=None)
    results = (
        NeuronOutput(None, None, plan.before.allocate_state(x_seq, coding, before)),
        plan.behind.allocate(x_seq, coding, behind),
    )
    for start in range(0, batch, at_once):
        part = slice(start, min(start + at_once, batch))
        x, plan = x_seq if first is None else first(x_seq[:, part]), plan_of(part.stop - part.start)
        x = plan.before.flatten(x)
        neurons = zip((plan.before, plan.behind), (before, behind), results, strict=True)
        calls = [
            compiled.call_of(x, order, coding, _of_images(arguments, part), _part_of(result, part))
            for order, arguments, result in neurons
        ]
        library.snnzoo_depthwise(*(ctypes.byref(call) for call, _ in calls), ctypes.byref(plan.convolution))
        del x, calls  # the next images take their memory
    return results


def _of_images(arguments: Arguments, part: slice) -> Arguments:
    if arguments.state is None:
        return arguments
    return replace(arguments, state=tuple(value[part] for value in arguments.state))


def _part_of(result: NeuronOutput, part: slice) -> NeuronOutput:
    sequence, total, state, _ = result
    return NeuronOutput(
        None if sequence is None else sequence[:, part],
        None if total is None else total[part],
        tuple(value[part] for value in state),
    )


class _Plan:
    """What is the same for all inputs of a shape `[T, N, C, H, W]`.

    `before`, `behind`: the orders of neurons; `may_overwrite`: whether the output may take the input's place.
    """

    def __init__(self, shape: Sequence[int], weight: Tensor, settings: Mapping[str, Any]) -> None:
        (_, batch, channels, *size), kernel = shape, weight.shape[2:]
        pairs = {"kernel": kernel, "size": size, **{name: settings[name] for name in ("stride", "padding", "dilation")}}
        out_size = [_out_size(*values) for values in zip(*pairs.values(), strict=True)]
        fields = {name: (c_int64 * 2)(*values) for name, values in {**pairs, "out_size": out_size}.items()}
        self._held = weight, weight.detach().flatten(1).t().contiguous()
        self.convolution = Convolution(weight=self._held[1].data_ptr(), images=batch, **fields)
        self.before, self.behind = (MemoryOrder((1, 3, 4, 2), (batch, *each, channels)) for each in (size, out_size))
        self.may_overwrite = settings["stride"] == [1, 1] and out_size == size  # else before it is read


def _refuses(
    x_seq: Tensor, coding: Coding, before: Arguments, weight: Tensor, settings: Mapping[str, Any], behind: Arguments
) -> str | None:
    """Return why the kernel does not take the call; None if it does."""
    if x_seq.ndim != 5 or x_seq.numel() == 0 or not x_seq[0].is_contiguous(memory_format=torch.channels_last):
        return "memory that is not channels-last"
    if weight.dtype != x_seq.dtype or weight.shape[1] != 1 or settings["groups"] != len(weight):
        return "a convolution that is not depthwise"
    if torch.is_grad_enabled() and x_seq.requires_grad:
        return "gradients"
    if isinstance(settings["padding"], str):
        return "padding by name"
    if before.activation != behind.activation or before.scaled != behind.scaled:
        return "neurons that differ"
    if any(a.residual is not None or a.counts_events or a.out_dtype != x_seq.dtype for a in (before, behind)):
        return "a residual, counts of events, or whole units"
    return next((reason for a in (before, behind) if (reason := _of_one(x_seq, coding, a)) is not None), None)


def _of_one(x_seq: Tensor, coding: Coding, arguments: Arguments) -> str | None:
    return backends.named("compiled").refuses(x_seq, coding, arguments, False)


def _out_size(kernel: int, size: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    return compiler.load(SOURCE, f"-DSNNZOO_DTYPE={compiled.NAMES[dtype]}")
