"""`multi_step_neuron`: one function for everything that fires, on every device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snnzoo.ops import reference
from snnzoo.ops.spec import Coding

__all__ = ["NeuronOutput", "multi_step_neuron"]

OUTPUTS = ("sequence", "sum", "both")


class NeuronOutput(NamedTuple):
    """Outputs `[T, N, ...]` and their sum over time `[N, ...]`, where asked for, and the state after them."""

    sequence: Tensor | None
    total: Tensor | None
    state: tuple[Tensor, ...]


def multi_step_neuron(
    x_seq: Tensor,
    coding: Coding,
    *,
    v_threshold: float | Tensor = 1.0,
    bias: float | Tensor = 0.0,
    offset: float | Tensor = 0.0,
    residual: Tensor | None = None,
    state: tuple[Tensor, ...] | None = None,
    t: int = 0,
    output: str = "sequence",
    payload: bool = False,
    out_dtype: torch.dtype | None = None,
) -> NeuronOutput:
    """Run one layer of neurons over all T steps.

    Args:
        x_seq: input, `[T, N, C, ...]` or, without per-channel parameters, `[T, N, ...]`; contiguous or
            channels-last; a stride-0 time axis is read once.
        coding: what the neurons do.
        v_threshold: theta, positive; scalar or `[C]`.
        bias: added to the input, scalar or `[C]`: at every step, but in differential codings at t = 0 only.
        offset: taken off the input of differential codings at t > 0, scalar or `[C]`.
        residual: a second input of the same shape, added to the first (its time stride may be 0, too).
        state: that of an earlier call, None to start anew.
        t: index of the first step (gamma^t; biases that enter at t = 0).
        output: "sequence", "sum" (over time) or "both".
        payload: whether an output carries what it is worth, or whole units (`spec` says what units are worth).
        out_dtype: of the sequence; None for that of `x_seq`. torch.int8 holds whole units, whatever `payload`
            says of the sum, which has the dtype of `x_seq`.

    Returns:
        the outputs asked for and the final state, in float32 (float64 for float64 input).

    Raises:
        ValueError: if shapes do not fit each other, or outputs do not fit `out_dtype`.
    """
    _check(x_seq, coding, residual, state, output, out_dtype)
    dtype = out_dtype or x_seq.dtype
    outputs: list[Tensor] = []
    total: Tensor | None = None
    steps = reference.run(
        x_seq, coding, v_threshold=v_threshold, bias=bias, offset=offset, residual=residual, state=state, t=t
    )
    for units, worth, after in steps:
        if output != "sequence":
            value = worth if payload else units
            total = value if total is None else total + value
        if output != "sum":
            outputs.append((worth if payload and dtype != torch.int8 else units).to(dtype))
        state = after
    assert state is not None
    sequence = torch.stack(outputs) if outputs else None
    return NeuronOutput(sequence, None if total is None else total.to(x_seq.dtype), state)


def _check(
    x_seq: Tensor,
    coding: Coding,
    residual: Tensor | None,
    state: tuple[Tensor, ...] | None,
    output: str,
    out_dtype: torch.dtype | None,
) -> None:
    if x_seq.ndim < 2 or len(x_seq) == 0:
        raise ValueError(f"x_seq must have the shape [T, N, ...] with T >= 1, got {list(x_seq.shape)}")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if residual is not None and residual.shape != x_seq.shape:
        raise ValueError(f"residual has shape {list(residual.shape)}, x_seq {list(x_seq.shape)}: they must be equal")
    if state is not None and (len(state) != len(coding.state) or any(part.shape != x_seq.shape[1:] for part in state)):
        raise ValueError(
            f"the state of {type(coding).__name__} is {', '.join(coding.state)}, each of shape "
            f"{list(x_seq.shape[1:])}, got {[list(part.shape) for part in state]}"
        )
    if out_dtype == torch.int8:
        coding.check_int8()
