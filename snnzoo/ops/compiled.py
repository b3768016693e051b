"""The neuron equations on a CPU in one pass over memory: `compiled_kernels.cpp`, where there is a C++ compiler."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from ctypes import c_char_p, c_double, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from snnzoo.codings import IF, LIF, Activation, Coding, Delta, Differential, Rate, Signed
from snnzoo.codings.activations import Clamp, Hardsigmoid, Hardswish, LeakyReLU, ReLU
from snnzoo.ops import compiler
from snnzoo.ops.memory import MemoryOrder, memory_order
from snnzoo.ops.reference import bias_is_past
from snnzoo.ops.spec import MOST_THRESHOLDS, Arguments, Memo, NeuronOutput

SOURCE = Path(__file__).with_name("compiled_kernels.cpp")
NAMES = {torch.float32: "float", torch.float64: "double"}  # of dtypes in C++
CODINGS = (IF, LIF, Rate, Signed, Delta, Differential)  # no subclasses: they may have other equations
ACTIVATIONS = (ReLU, Clamp, LeakyReLU, Hardswish, Hardsigmoid)  # those whose every operation rounds in one way
WORK_OF_A_THREAD = 1 << 15  # elements: fewer are not worth waking one


class Call(ctypes.Structure):
    """As `Call` in the C++ source, which says what each field is."""

    _fields_ = (
        *((name, c_char_p) for name in ("coding", "activation")),
        *((name, c_void_p) for name in ("coding_numbers", "activation_numbers", "spike_values")),
        *((name, c_void_p) for name in ("x", "residual", "theta", "bias", "first")),
        ("before", c_void_p * 2),
        *((name, c_void_p) for name in ("sequence", "total")),
        ("after", c_void_p * 2),
        *((name, c_void_p) for name in ("events", "rows")),
        *((name, c_int64) for name in ("x_stride", "residual_stride", "sequence_stride")),
        *((name, c_int64) for name in ("time_steps", "elements", "channels", "inner", "biased_steps")),
        *((name, c_int64) for name in ("position_run", "positions", "row_elements", "forgets", "scaled")),
        *((name, c_int64) for name in ("is_int8", "threads")),
    )


def unavailable() -> str | None:
    """Return why there are no kernels on this machine; None if there are. They are built, if need be."""
    return None if _library(torch.float32) else "its kernels cannot be built here; a warning has said why"


def refuses(x_seq: Tensor, coding: Coding, arguments: Arguments, gradient: bool) -> str | None:
    """Return why this implementation does not take the call; None if it does."""
    if x_seq.device.type != "cpu" or type(x_seq) not in (Tensor, torch.nn.Parameter):
        return f"a {type(x_seq).__name__} on {x_seq.device}"
    if type(coding) not in CODINGS:
        return f"the coding {type(coding).__name__}, for which it has no kernel"
    if isinstance(coding, Differential) and coding.levels > MOST_THRESHOLDS:
        return f"more than {MOST_THRESHOLDS} thresholds"
    activation = arguments.activation
    if type(activation) not in ACTIVATIONS or activation.per_channel:
        return f"{activation}, for which it has no kernel"
    if x_seq.dtype not in NAMES or arguments.out_dtype not in (x_seq.dtype, torch.int8):
        return f"{x_seq.dtype} with outputs in {arguments.out_dtype}"
    return unavailable()


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Return what `ops.multi_step_neuron` does, outside autograd."""
    order = memory_order(x_seq)
    if arguments.rows is not None and not order.holds_some_of(arguments.state or (), x_seq.dtype):
        arguments = arguments.of_rows()
    result = order.allocate(x_seq, coding, arguments)
    if arguments.counts_events and order.position_run is not None:
        result = result._replace(events=x_seq.new_zeros((len(x_seq), *x_seq.shape[3:]), dtype=torch.int64))
    if order.numel > 0:
        library = _library(x_seq.dtype)
        assert library is not None
        call, held = call_of(order.laid(x_seq), order, coding, arguments, result)
        library.snnzoo_multi_step_neuron(ctypes.byref(call))
        del held
    return result


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    return compiler.load(SOURCE, f"-DSNNZOO_DTYPE={NAMES[dtype]}")


def call_of(
    x: Tensor, order: MemoryOrder, coding: Coding, arguments: Arguments, result: NeuronOutput
) -> tuple[Call, list[object]]:
    """Return what the C++ source is given, and what must live until it has run: the call points there.

    Args:
        x: the input in this order, `[T, elements]` or of any other shape: its address and `stride(0)` are taken.
        order: of the result.
    """
    dtype, elements, memo = x.dtype, order.numel, Memo() if arguments.memo is None else arguments.memo
    settings = x.shape[0], dtype, order.channels, order.inner, arguments.t, arguments.state is None
    call, constants = memo.keep((*settings, arguments.out_dtype), lambda: _constant_part(*settings, coding, arguments))
    call.elements, call.row_elements = elements, elements // order.shape[0]
    call.threads = min(torch.get_num_threads(), 1 + x.shape[0] * elements // WORK_OF_A_THREAD)
    residual = None if arguments.residual is None else order.laid(_cast(arguments.residual, dtype))
    sequence = None if result.sequence is None else order.laid(result.sequence)
    before = [order.laid_step(_cast(part, dtype)) for part in arguments.state or ()]
    rows = None if arguments.state is None else arguments.rows
    call.x, call.x_stride = x.data_ptr(), x.stride(0)
    call.residual, call.residual_stride = (None, 0) if residual is None else (residual.data_ptr(), residual.stride(0))
    call.sequence, call.sequence_stride = (None, 0) if sequence is None else (sequence.data_ptr(), sequence.stride(0))
    call.total = None if result.total is None else result.total.data_ptr()
    call.before[:] = _addresses(before)
    call.after[:] = _addresses(result.state)
    call.rows = None if rows is None else rows.data_ptr()
    call.events = None if result.events is None else result.events.data_ptr()
    if result.events is not None:
        call.position_run, call.positions = order.position_run, result.events[0].numel()
    return call, [x, constants, residual, sequence, before, rows]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # which looks at its arguments for longer


def _addresses(parts: Sequence[Tensor]) -> tuple[int | None, int | None]:
    return parts[0].data_ptr() if parts else None, parts[1].data_ptr() if len(parts) > 1 else None


def _constant_part(
    time_steps: int,
    dtype: torch.dtype,
    channels: int,
    inner: int,
    start: int,
    is_new: bool,
    coding: Coding,
    arguments: Arguments,
) -> tuple[Call, list[object]]:
    """Return the part of a call that is the same for any number of images, and what it points at."""
    held: list[object] = []
    steps = range(start, start + time_steps)

    def numbers(values: list[float]) -> int:
        array = (c_double * len(values))(*values)
        held.append(array)
        return ctypes.addressof(array)

    def of_channels(value: float | Tensor) -> int:
        values = torch.as_tensor(value, dtype=dtype).detach().expand(channels).contiguous()
        held.append(values)
        return values.data_ptr()

    name, settings = _of_coding(coding, dtype)
    function, its_settings = _of_activation(arguments.activation)
    theta = torch.as_tensor(arguments.v_threshold, dtype=dtype).detach()
    call = Call(
        coding=name,
        activation=function,
        coding_numbers=numbers(settings),
        activation_numbers=numbers(its_settings),
        spike_values=numbers([coding.spike_value(t, dtype) for t in steps]),
        theta=of_channels(theta),
        bias=of_channels(arguments.bias),
        first=of_channels(coding.initial(theta)) if is_new else None,
        time_steps=time_steps,
        channels=channels,
        inner=inner,
        biased_steps=sum(not bias_is_past(coding, arguments, t) for t in steps),
        forgets=coding.bias_once and arguments.absolute,
        scaled=arguments.scaled,
        is_int8=arguments.out_dtype == torch.int8,
    )
    return call, held


def _of_coding(coding: Coding, dtype: torch.dtype) -> tuple[bytes, list[float]]:
    """Return a coding's name and numbers in the C++ source."""
    if isinstance(coding, IF):
        v_reset = math.nan if coding.v_reset is None else coding.v_reset
        if not isinstance(coding, LIF):
            return b"integrate", [v_reset, 0.0]
        tau = torch.as_tensor(coding.reciprocal_tau, dtype=dtype).item()
        return b"leak with input" if coding.decay_input else b"leak", [v_reset, tau]
    if isinstance(coding, Delta):
        return b"delta", [0.0, coding.levels, coding.dead_zone]
    if isinstance(coding, Differential):
        return b"differential", [0.0, coding.spike_value(0, dtype)]
    return b"signed", [0.0, 0.0]


def _of_activation(activation: Activation) -> tuple[bytes, list[float]]:
    """Return an activation's name and numbers in the C++ source."""
    if isinstance(activation, ReLU):
        return b"clamp", [0.0, math.inf]
    return activation.name.encode(), activation.numbers() or []
