"""The multi-step neuron in plain PyTorch, step by step: the truth that every faster path is tested against.

The equations are the codings' own (`Coding.step`). All of it is computed in `state_dtype`, operation by operation as
written there: other implementations give equal results, not close ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import Coding, Step
from snnzoo.ops.spec import Arguments, Gradients, NeuronOutput, state_dtype


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Return what `ops.multi_step_neuron` does; differentiable."""
    outputs: list[Tensor] = []
    total: Tensor | None = None
    state: tuple[Tensor, ...] = ()
    for counts, values, after in run(x_seq, coding, arguments):
        if arguments.output != "sequence":
            added = values if arguments.scaled else counts
            total = added if total is None else total + added
        if arguments.output != "sum":
            outputs.append((values if arguments.sequence_scaled else counts).to(arguments.out_dtype))
        state = after if arguments.keep_state else ()
    sequence = torch.stack(outputs) if outputs else None
    return NeuronOutput(sequence, None if total is None else total.to(x_seq.dtype), state)


def backward(grads: Gradients, x_seq: Tensor, coding: Coding, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input (and the residual), of the initial v, and of 1/tau, of the IF family.

    They are autograd's, for where it does not see `forward` itself.
    """
    dtype = state_dtype(x_seq.dtype)
    with torch.enable_grad():
        x = x_seq.detach().requires_grad_()
        tau = torch.as_tensor(getattr(coding, "reciprocal_tau", 1.0), dtype=dtype).detach().requires_grad_()
        if hasattr(coding, "reciprocal_tau"):
            coding = dataclasses.replace(coding, reciprocal_tau=tau)  # type: ignore[call-arg]
        if arguments.state is None:
            like = torch.empty_like(x_seq[0], dtype=dtype)
            (v,) = initial_state(coding, like, torch.as_tensor(channel_view(arguments.v_threshold, like)))
        else:
            (v,) = arguments.state
        v = v.detach().requires_grad_()
        result = forward(x, coding, dataclasses.replace(arguments, state=(v,), output="both", keep_state=True))
        outputs: Any = (*result[:2], *result[2])
        used = [i for i, grad in enumerate(grads) if grad is not None]
        found = torch.autograd.grad(
            [outputs[i] for i in used], (x, v, tau), [grads[i] for i in used], materialize_grads=True
        )
    return found[0], found[1], found[2]


def run(x_seq: Tensor, coding: Coding, arguments: Arguments) -> Iterator[Step]:
    """Yield what each step in turn gives."""
    dtype = state_dtype(x_seq.dtype)
    like = torch.empty_like(x_seq[0], dtype=dtype)
    theta, bias = (channel_view(value, like) for value in arguments.parameters)
    if not isinstance(theta, Tensor):
        theta = like.new_full((), theta)  # on the device: it divides by a number of the CPU by multiplying
    state = arguments.state
    state = initial_state(coding, like, theta) if state is None else tuple(part.to(dtype) for part in state)
    for t in range(arguments.t, arguments.t + len(x_seq)):
        x = x_seq[t - arguments.t].to(dtype)
        if arguments.residual is not None:
            x = x + arguments.residual[t - arguments.t].to(dtype)
        if not bias_is_past(coding, arguments, t):
            x = x + bias
        if coding.bias_once and arguments.absolute:
            state = (torch.zeros_like(state[0]), *state[1:])  # of the inputs before, nothing is kept
        result = coding.step(x, state, theta, t, arguments.activation)
        state = result[-1]
        yield result


def bias_is_past(coding: Coding, arguments: Arguments, t: int) -> bool:
    """Return whether biases have entered before step t, once and for all."""
    return coding.bias_once and not arguments.absolute and t > 0


def initial_state(coding: Coding, step: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    """Return the state before t = 0, for steps like `step`, in its dtype."""
    first = torch.zeros_like(step) + coding.initial(theta)
    return (first, *(torch.zeros_like(step) for _ in coding.state[1:]))


def channel_view(parameter: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a scalar or per-channel `[C]` parameter to broadcast over one step `x [N, C, ...]`.

    Raises:
        ValueError: if a per-channel parameter does not fit dimension 1 of `x`.
    """
    if not isinstance(parameter, Tensor):
        return parameter
    if parameter.ndim == 0:
        return parameter.to(x.dtype)
    if x.ndim < 2 or x.shape[1] != parameter.numel():
        raise ValueError(
            f"a parameter of {parameter.numel()} channels does not fit a step of shape {list(x.shape)}: "
            f"expected [N, {parameter.numel()}, ...]"
        )
    return parameter.to(x.dtype).view(-1, *[1] * (x.ndim - 2))
