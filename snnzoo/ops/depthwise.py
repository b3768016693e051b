"""Neurons, a depthwise convolution and the neurons behind it on a CPU, in one pass: `compiled_depthwise.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.ops import backends, compiled, compiler
from snnzoo.ops.memory import MemoryOrder
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
    """
    if backends.forced() not in (None, "compiled") or _refuses(x_seq, coding, before, weight, settings, behind):
        return None
    library = _library(x_seq.dtype)
    if library is None:
        return None
    memo = Memo() if behind.memo is None else behind.memo
    convolution, taps, orders, may_overwrite = memo.keep(
        ("convolution", x_seq.shape, id(weight)), lambda: _plan(x_seq.shape, weight, settings)
    )
    first = NeuronOutput(None, None, orders[0].allocate_state(x_seq, coding, before))
    second = orders[1].allocate(x_seq, coding, behind if may_overwrite else replace(behind, out=None))
    x = orders[0].flatten(x_seq)
    call, held = compiled.call_of(x, orders[0], coding, before, first)
    call_behind, held_behind = compiled.call_of(x, orders[1], coding, behind, second)
    library.snnzoo_depthwise(*(ctypes.byref(each) for each in (call, call_behind, convolution)))
    del held, held_behind, taps
    return first, second


def _plan(
    shape: Sequence[int], weight: Tensor, settings: Mapping[str, Any]
) -> tuple[Convolution, list[Tensor], list[MemoryOrder], bool]:
    """Return the convolution, what it points at, the orders before and behind it, and whether output may be input."""
    (_, batch, channels, *size), kernel = shape, weight.shape[2:]
    pairs = {"kernel": kernel, "size": size, **{name: settings[name] for name in ("stride", "padding", "dilation")}}
    out_size = [_out_size(*values) for values in zip(*pairs.values(), strict=True)]
    fields = {name: (c_int64 * 2)(*values) for name, values in {**pairs, "out_size": out_size}.items()}
    taps = weight.detach().flatten(1).t().contiguous()
    orders = [MemoryOrder((1, 3, 4, 2), (batch, *each, channels)) for each in (size, out_size)]
    # else rows would be written to before they were read
    may_overwrite = settings["stride"] == [1, 1] and out_size == size
    return Convolution(weight=taps.data_ptr(), images=batch, **fields), [weight, taps], orders, may_overwrite


def _refuses(
    x_seq: Tensor, coding: Coding, before: Arguments, weight: Tensor, settings: Mapping[str, Any], behind: Arguments
) -> str | None:
    """Return why the kernel does not take the call; None if it does."""
    if x_seq.ndim != 5 or x_seq.numel() == 0 or not x_seq[0].is_contiguous(memory_format=torch.channels_last):
        return "memory that is not channels-last"
    if weight.dtype != x_seq.dtype or len(weight) != x_seq.shape[2] or settings["groups"] != len(weight):
        return "a convolution that is not depthwise"
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
