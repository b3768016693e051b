"""The multi-step neuron as operators of `torch.library`: what `torch.compile` and `torch.export` see.

Codings and activations cross the operator's boundary as names and numbers, since schemas know no dataclasses.
Outputs that are not asked for are empty tensors there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import ACTIVATIONS, CODINGS, IF, LIF, Activation, Coding
from snnzoo.ops import backends
from snnzoo.ops.memory import memory_order
from snnzoo.ops.spec import Arguments, Gradients, NeuronOutput, state_dtype

_COMMON = """Tensor x_seq, Tensor? residual, Tensor? state_0, Tensor? state_1, Tensor? v_threshold, Tensor? bias,
    Tensor? reciprocal_tau, float[] scalars, str coding, float[] coding_numbers, str activation,
    float[] activation_numbers, int t, bool scaled, bool absolute"""
_TENSORS, _SETTINGS = 7, 8


def refuses(coding: Coding, arguments: Arguments, gradient: bool) -> str | None:
    """Return why a call cannot cross the operator's boundary; None if it can."""
    if _codings().get(coding.name) is not type(coding) or coding.numbers() is None:
        return f"{coding} under torch.compile, which knows registered codings with numbers as settings"
    activation = arguments.activation
    if ACTIVATIONS.get(activation.name) is not type(activation) or activation.numbers() is None:
        return f"{activation} under torch.compile"
    if len(coding.state) > 2:
        return "more than two state tensors under torch.compile"
    if gradient and not isinstance(coding, IF):
        return f"gradients of {coding} under torch.compile"
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in arguments.parameters):
        return "gradients of the threshold or the bias"
    return None


def _codings() -> dict[str, type[Coding]]:
    return {IF.name: IF, LIF.name: LIF, **CODINGS}


def encode(coding: Coding) -> tuple[str, list[float], Tensor | None]:
    """Return a coding as its name and numbers; a learnable 1/tau by itself."""
    tau = getattr(coding, "reciprocal_tau", None)
    return coding.name, coding.numbers() or [], tau if isinstance(tau, Tensor) else None


def decode(name: str, numbers: list[float], reciprocal_tau: Tensor | None) -> Coding:
    """Return the inverse of `encode`."""
    coding = _codings()[name].from_numbers(numbers)
    if reciprocal_tau is None:
        return coding
    return dataclasses.replace(coding, reciprocal_tau=reciprocal_tau)  # type: ignore[call-arg]


def call(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Return what `ops.multi_step_neuron` does, through the operator."""
    name, numbers, reciprocal_tau = encode(coding)
    activation: Activation = arguments.activation
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
        name,
        numbers,
        activation.name,
        activation.numbers() or [],
        arguments.t,
        arguments.scaled,
        arguments.absolute,
        arguments.output,
        arguments.out_dtype,
        arguments.keep_state,
    )
    return NeuronOutput(
        None if arguments.output == "sum" else sequence,
        None if arguments.output == "sequence" else total,
        tuple(after[: len(coding.state)]) if arguments.keep_state else (),
    )


def _arguments(
    residual: Tensor | None,
    state_0: Tensor | None,
    state_1: Tensor | None,
    v_threshold: Tensor | None,
    bias: Tensor | None,
    reciprocal_tau: Tensor | None,
    scalars: list[float],
    coding: str,
    coding_numbers: list[float],
    activation: str,
    activation_numbers: list[float],
    t: int,
    scaled: bool,
    absolute: bool,
    output: str = "sequence",
    out_dtype: torch.dtype = torch.float32,
    keep_state: bool = False,
) -> tuple[Coding, Arguments]:
    """Return the inverse of what `call` does to its arguments."""
    values = zip((v_threshold, bias), scalars, strict=True)
    theta, shift = (scalar if tensor is None else tensor for tensor, scalar in values)
    state = tuple(part for part in (state_0, state_1) if part is not None) or None
    function = ACTIVATIONS[activation].from_numbers(activation_numbers)
    arguments = Arguments(theta, shift, residual, state, t, output, scaled, out_dtype, keep_state, function, absolute)
    return decode(coding, coding_numbers, reciprocal_tau), arguments


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
    call = x_seq, *_arguments(*rest)
    backend = backends.choose(*call, gradient=False)
    result = backend.forward(*call)
    return _four(x_seq, memory_order(x_seq).arrange(x_seq, result) if backend.name == "reference" else result)


@_forward.register_fake
def _(x_seq: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _four(x_seq, memory_order(x_seq).allocate(x_seq, *_arguments(*rest)))


@torch.library.custom_op(
    "snnzoo::multi_step_neuron_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_sequence, Tensor? grad_total, Tensor? grad_state, {_COMMON}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad_sequence: Tensor | None, grad_total: Tensor | None, grad_state: Tensor | None, x_seq: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    call = x_seq, *_arguments(*rest)
    backend = backends.choose(*call, gradient=True)
    return backend.backward(Gradients(grad_sequence, grad_total, grad_state), *call)


@_backward.register_fake
def _(
    grad_sequence: Tensor | None, grad_total: Tensor | None, grad_state: Tensor | None, x_seq: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    order, dtype = memory_order(x_seq), state_dtype(x_seq.dtype)
    grad_x = order.empty(x_seq, x_seq.dtype, len(x_seq))
    return grad_x, order.empty(x_seq, dtype), x_seq.new_empty((), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.settings = inputs[_TENSORS : _TENSORS + _SETTINGS]


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not issubclass(_codings()[ctx.settings[1]], IF):
        return (None,) * 18  # only binary spikes have a surrogate gradient
    _, residual, state_0, *_, tau = ctx.saved_tensors
    grad_sequence, grad_total, grad_state = (None if g is None or g.numel() == 0 else g for g in grads[:3])
    grad_x, grad_v, grad_tau = torch.ops.snnzoo.multi_step_neuron_backward(
        grad_sequence, grad_total, grad_state, *ctx.saved_tensors, *ctx.settings
    )
    return (
        grad_x,
        None if residual is None else grad_x.to(residual.dtype),
        None if state_0 is None else grad_v.to(state_0.dtype),
        *(None,) * 3,  # state_1, v_threshold, bias
        None if tau is None else grad_tau.to(tau.dtype),
        *(None,) * 11,
    )


_forward.register_autograd(_differentiate, setup_context=_save)
