"""The neuron equations on a CPU in one pass over memory: `compiled_kernels.cpp`, where there is a C++ compiler."""

from __future__ import annotations

import ctypes
import functools
import math
from ctypes import POINTER, c_char_p, c_double, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from snnzoo.codings import IF, LIF, Activation, Coding, Delta, Differential, Rate, Signed
from snnzoo.codings.activations import Clamp, Hardsigmoid, Hardswish, LeakyReLU, ReLU
from snnzoo.ops import compiler
from snnzoo.ops.memory import MemoryOrder, memory_order
from snnzoo.ops.reference import bias_is_past
from snnzoo.ops.spec import MOST_THRESHOLDS, Arguments, NeuronOutput

SOURCE = Path(__file__).with_name("compiled_kernels.cpp")
NAMES = {torch.float32: "float", torch.float64: "double"}  # of dtypes in C++
CODINGS = (IF, LIF, Rate, Signed, Delta, Differential)  # no subclasses: they may have other equations
ACTIVATIONS = (ReLU, Clamp, LeakyReLU, Hardswish, Hardsigmoid)  # those whose every operation rounds in one way
WORK_OF_A_THREAD = 1 << 15  # elements: fewer are not worth waking one


_Pair = c_void_p * 2


class Call(ctypes.Structure):
    """As `Call` in the C++ source, which says what each field is."""

    _fields_ = (
        *((name, c_char_p) for name in ("coding", "activation")),
        *((name, POINTER(c_double)) for name in ("coding_numbers", "activation_numbers", "spike_values")),
        *((name, c_void_p) for name in ("x", "residual", "theta", "bias", "first")),
        ("before", _Pair),
        *((name, c_void_p) for name in ("sequence", "total")),
        ("after", _Pair),
        ("events", c_void_p),
        *((name, c_int64) for name in ("x_stride", "residual_stride", "sequence_stride")),
        *((name, c_int64) for name in ("time_steps", "elements", "channels", "inner", "biased_steps")),
        *((name, c_int64) for name in ("position_run", "positions", "forgets", "scaled", "is_int8", "threads")),
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
    result = order.allocate(x_seq, coding, arguments)
    if arguments.counts_events and order.position_run is not None:
        result = result._replace(events=x_seq.new_zeros((len(x_seq), *x_seq.shape[3:]), dtype=torch.int64))
    if order.numel > 0:
        library = _library(x_seq.dtype)
        assert library is not None
        _run(library, order, x_seq, coding, arguments, result)
    return result


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    return compiler.load(SOURCE, f"-DSNNZOO_DTYPE={NAMES[dtype]}")


def _run(
    library: ctypes.CDLL, order: MemoryOrder, x_seq: Tensor, coding: Coding, arguments: Arguments, result: NeuronOutput
) -> None:
    dtype, steps = x_seq.dtype, range(arguments.t, arguments.t + x_seq.shape[0])
    held = []  # what the call points at, until it is done

    def pointer(value: Tensor | None) -> int | None:
        if value is None:
            return None
        held.append(value)
        return value.data_ptr()

    def cast(value: Tensor) -> Tensor:
        return value if value.dtype == dtype else value.to(dtype)

    def of_channels(value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor) and value.dtype == dtype and value.is_contiguous():
            return value
        return torch.as_tensor(value, dtype=dtype).expand(order.channels).contiguous()

    def states(parts: tuple[Tensor, ...]) -> ctypes.Array[c_void_p]:
        return _Pair(*(pointer(order.laid_step(cast(part))) for part in parts))

    name, settings = _of_coding(coding, dtype)
    function, its_settings = _of_activation(arguments.activation)
    x, theta = order.laid(x_seq), of_channels(arguments.v_threshold)
    residual = None if arguments.residual is None else order.laid(cast(arguments.residual))
    sequence = None if result.sequence is None else order.laid(result.sequence)
    call = Call(
        coding=name,
        activation=function,
        coding_numbers=_numbers(*settings),
        activation_numbers=_numbers(*its_settings),
        spike_values=_numbers(*(coding.spike_value(t, dtype) for t in steps)),
        x=pointer(x),
        residual=pointer(residual),
        theta=pointer(theta),
        bias=pointer(of_channels(arguments.bias)),
        first=pointer(of_channels(coding.initial(theta))) if arguments.state is None else None,
        before=states(arguments.state or ()),
        sequence=pointer(sequence),
        total=pointer(result.total),
        after=states(result.state),
        x_stride=x.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        sequence_stride=0 if sequence is None else sequence.stride(0),
        time_steps=len(steps),
        elements=order.numel,
        channels=order.channels,
        inner=order.inner,
        biased_steps=sum(not bias_is_past(coding, arguments, t) for t in steps),
        forgets=coding.bias_once and arguments.absolute,
        scaled=arguments.scaled,
        is_int8=arguments.out_dtype == torch.int8,
        threads=min(torch.get_num_threads(), 1 + x_seq.numel() // WORK_OF_A_THREAD),
    )
    if result.events is not None:
        call.events = pointer(result.events)
        call.position_run, call.positions = order.position_run, result.events[0].numel()
    library.snnzoo_multi_step_neuron(ctypes.byref(call))


@functools.lru_cache(maxsize=1024)
def _numbers(*values: float) -> ctypes.Array[c_double]:
    """Return numbers as the call has them; a network asks for few others again and again."""
    return (c_double * len(values))(*values)


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
