"""The multi-step neuron as operators of `torch.library`: what autograd, `torch.compile` and CUDA graphs see.

A coding crosses the operator's boundary as its kind and a list of numbers, since schemas know no dataclasses.
Outputs that are not asked for are empty tensors there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from snnzoo.ops import backends
from snnzoo.ops.memory import layout_of
from snnzoo.ops.spec import (
    IF,
    LIF,
    Arguments,
    Coding,
    Delta,
    Differential,
    Gradients,
    NeuronOutput,
    Signed,
    state_dtype,
)
from snnzoo.surrogate import ATan, PiecewiseQuadratic, Sigmoid, SurrogateFunctionBase

SURROGATES: tuple[type[SurrogateFunctionBase], ...] = (ATan, Sigmoid, PiecewiseQuadratic)
MOST_LEVELS = 1 << 21  # that round to integers in float32
MOST_THRESHOLDS = 100  # powers of two that are normal numbers in float32

_COMMON = """Tensor x_seq, Tensor? residual, Tensor? state_0, Tensor? state_1, Tensor? v_threshold, Tensor? bias,
    Tensor? offset, Tensor? reciprocal_tau, float[] scalars, str kind, float[] numbers, int t, bool payload"""


def supports(x_seq: Tensor, coding: Coding, arguments: Arguments) -> bool:
    """Whether the operator does this; where it does not, the reference does."""
    if arguments.output == "both" and arguments.payload != arguments.sequence_payload:
        return False
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in arguments.parameters):
        return False
    if isinstance(coding, IF):
        surrogate: Any = coding.surrogate
        return coding.charge is None and type(surrogate) in SURROGATES and surrogate.spiking
    if isinstance(coding, Delta):
        return coding.levels <= MOST_LEVELS
    return not isinstance(coding, Differential) or coding.levels <= MOST_THRESHOLDS


def needs_gradient(x_seq: Tensor, coding: Coding, arguments: Arguments) -> bool:
    """Whether autograd must see the call: only binary spikes have a surrogate gradient."""
    if not isinstance(coding, IF) or not torch.is_grad_enabled():
        return False
    tensors = (x_seq, arguments.residual, *(arguments.state or ()), getattr(coding, "reciprocal_tau", None))
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def encode(coding: Coding) -> tuple[str, list[float], Tensor | None]:
    """A coding as kind and numbers; a learnable 1/tau by itself."""
    if isinstance(coding, IF):
        surrogate: Any = coding.surrogate
        v_reset = math.nan if coding.v_reset is None else coding.v_reset
        chosen = SURROGATES.index(type(surrogate))
        numbers = [v_reset, coding.half_start, chosen, surrogate.alpha, coding.detach_reset]
        if not isinstance(coding, LIF):
            return "if", numbers, None
        tau = coding.reciprocal_tau
        if isinstance(tau, Tensor):
            return "lif", [*numbers, 0.0, coding.decay_input], tau
        return "lif", [*numbers, tau, coding.decay_input], None
    if isinstance(coding, Delta):
        return "delta", [coding.levels, coding.gamma, coding.differential], None
    if isinstance(coding, Differential):
        return "differential", [coding.levels, coding.differential], None
    return "signed", [], None


def decode(kind: str, numbers: list[float], reciprocal_tau: Tensor | None) -> Coding:
    """The inverse of `encode`."""
    if kind in ("if", "lif"):
        v_reset, half_start, chosen, alpha, detach_reset, *leak = numbers
        common = (None if math.isnan(v_reset) else v_reset, bool(half_start))
        surrogate = SURROGATES[int(chosen)](alpha)
        if kind == "if":
            return IF(*common, surrogate, bool(detach_reset))
        tau = leak[0] if reciprocal_tau is None else reciprocal_tau
        return LIF(*common, surrogate, bool(detach_reset), reciprocal_tau=tau, decay_input=bool(leak[1]))
    if kind == "delta":
        return Delta(int(numbers[0]), numbers[1], bool(numbers[2]))
    if kind == "differential":
        return Differential(int(numbers[0]), bool(numbers[1]))
    return Signed()


def call(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """`ops.multi_step_neuron` through the operator."""
    kind, numbers, reciprocal_tau = encode(coding)
    tensors, scalars = [], []
    for value in arguments.parameters:
        tensors.append(value if isinstance(value, Tensor) else None)
        scalars.append(0.0 if isinstance(value, Tensor) else float(value))
    before = (*(arguments.state or ()), None, None)[:2]
    sequence, total, *after = torch.ops.snnzoo.multi_step_neuron(
        x_seq,
        arguments.residual,
        *before,
        *tensors,
        reciprocal_tau,
        scalars,
        kind,
        numbers,
        arguments.t,
        arguments.payload,
        arguments.output,
        arguments.out_dtype,
        arguments.keep_state,
    )
    return NeuronOutput(
        None if arguments.output == "sum" else sequence,
        None if arguments.output == "sequence" else total,
        tuple(after[: len(coding.state)]) if arguments.keep_state else (),
    )


def _read(
    residual: Tensor | None,
    state_0: Tensor | None,
    state_1: Tensor | None,
    v_threshold: Tensor | None,
    bias: Tensor | None,
    offset: Tensor | None,
    reciprocal_tau: Tensor | None,
    scalars: list[float],
    kind: str,
    numbers: list[float],
    t: int,
    payload: bool,
    output: str = "sequence",
    out_dtype: torch.dtype = torch.float32,
    keep_state: bool = False,
) -> tuple[Coding, Arguments]:
    """The inverse of what `call` does to its arguments."""
    values = zip((v_threshold, bias, offset), scalars, strict=True)
    theta, shift, taken_off = (scalar if tensor is None else tensor for tensor, scalar in values)
    state = tuple(part for part in (state_0, state_1) if part is not None) or None
    arguments = Arguments(theta, shift, taken_off, residual, state, t, output, payload, out_dtype, keep_state)
    return decode(kind, numbers, reciprocal_tau), arguments


def _four(x_seq: Tensor, result: NeuronOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = (result.sequence, result.total, *result.state, None, None)[:4]
    sequence, total, state_0, state_1 = (x_seq.new_empty(0) if part is None else part for part in parts)
    return sequence, total, state_0, state_1


@torch.library.custom_op(
    "snnzoo::multi_step_neuron",
    mutates_args=(),
    schema=f"({_COMMON}, str output, ScalarType out_dtype, bool keep_state) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(x_seq: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _four(x_seq, backends.forward(x_seq, *_read(*rest)))


@_forward.register_fake
def _(x_seq: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _four(x_seq, layout_of(x_seq).allocate(x_seq, *_read(*rest)))


@torch.library.custom_op(
    "snnzoo::multi_step_neuron_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_sequence, Tensor? grad_total, Tensor? grad_state, {_COMMON}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad_sequence: Tensor | None, grad_total: Tensor | None, grad_state: Tensor | None, x_seq: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.backward(Gradients(grad_sequence, grad_total, grad_state), x_seq, *_read(*rest))


@_backward.register_fake
def _(
    grad_sequence: Tensor | None, grad_total: Tensor | None, grad_state: Tensor | None, x_seq: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    layout, dtype = layout_of(x_seq), state_dtype(x_seq.dtype)
    grad_x = layout.empty(x_seq, x_seq.dtype, len(x_seq))
    return grad_x, layout.empty(x_seq, dtype), x_seq.new_empty((), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:8])
    ctx.settings = inputs[8:13]


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.settings[1] not in ("if", "lif"):
        return (None,) * 16  # only binary spikes have a surrogate gradient
    _, residual, state_0, *_, tau = ctx.saved_tensors
    grad_sequence, grad_total, grad_state = (None if g is None or g.numel() == 0 else g for g in grads[:3])
    grad_x, grad_v, grad_tau = torch.ops.snnzoo.multi_step_neuron_backward(
        grad_sequence, grad_total, grad_state, *ctx.saved_tensors, *ctx.settings
    )
    return (
        grad_x,
        None if residual is None else grad_x.to(residual.dtype),
        None if state_0 is None else grad_v.to(state_0.dtype),
        *(None,) * 4,  # state_1, v_threshold, bias, offset
        None if tau is None else grad_tau.to(tau.dtype),
        *(None,) * 8,
    )


_forward.register_autograd(_differentiate, setup_context=_save)
