"""The neuron equations in plain PyTorch: the truth that every faster path is tested against.

Shapes: `x_seq [T, N, ...]` with channels, where there are any, in dimension 2 (`[T, N, C, ...]`). Each step
function maps one input `x [N, ...]`, residual and bias added, and the state before it to the output in
units, what the output is worth, and the state after it; `theta` is the threshold. All of it is computed in
`state_dtype`, operation by operation as written: other implementations give equal results, not close ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from snnzoo.ops.spec import IF, LIF, Arguments, Coding, Delta, Differential, NeuronOutput, Signed, state_dtype

Parameter = float | Tensor  # a scalar, or one that broadcasts over a step
Step = tuple[Tensor, Tensor, tuple[Tensor, ...]]

SMALLEST_LEVEL = 2.0**-100  # of theta: gamma^t stays above it, so that levels remain normal numbers


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


def charge_if(v: Tensor, x: Tensor) -> Tensor:
    """Integrate-and-fire: h = v + x."""
    return v + x


def charge_lif(
    v: Tensor, x: Tensor, *, reciprocal_tau: float | Tensor, v_reset: float | None, decay_input: bool
) -> Tensor:
    """Leaky integrate-and-fire, 1/tau = `reciprocal_tau`, resting at `v_reset` (0 if None).

    h = v + (x - (v - v_reset)) / tau        if decay_input
    h = v - (v - v_reset) / tau + x          otherwise
    """
    leak = v - (v_reset or 0.0)
    if decay_input:
        return v + (x - leak) * reciprocal_tau
    return v - leak * reciprocal_tau + x


def _charge(coding: IF, v: Tensor, x: Tensor) -> Tensor:
    if coding.charge is not None:
        return coding.charge(v, x)
    if isinstance(coding, LIF):
        tau = coding.reciprocal_tau
        tau = tau.to(v.dtype) if isinstance(tau, Tensor) else tau
        return charge_lif(v, x, reciprocal_tau=tau, v_reset=coding.v_reset, decay_input=coding.decay_input)
    return charge_if(v, x)


def integrate_and_fire(coding: IF, x: Tensor, state: tuple[Tensor, ...], theta: Parameter) -> Step:
    """Binary spikes (Fang et al. 2023, Science Advances, SpikingJelly, eqs. 1-3).

    h[t] = charge(v[t-1], x[t])
    s[t] = 1 if h[t] >= theta else 0
    v[t] = h[t] - s[t] * theta                    soft reset (v_reset is None)
    v[t] = s[t] * v_reset + (1 - s[t]) * h[t]     hard reset
    """
    (v,) = state
    h = _charge(coding, v, x)
    s = coding.surrogate(h - theta)
    return s, s * theta, (reset(h, s, theta, coding.v_reset, coding.detach_reset),)


def reset(h: Tensor, s: Tensor, theta: Parameter, v_reset: float | None, detach_reset: bool) -> Tensor:
    """The membrane behind the spikes `s`, as in `integrate_and_fire`."""
    s = s.detach() if detach_reset else s
    return h - s * theta if v_reset is None else s * v_reset + (1 - s) * h


def integrate_and_fire_backward(coding: IF, h: Tensor, theta: Parameter, grad_s: Tensor, grad_v: Tensor) -> Tensor:
    """The gradient of h[t], from those of s[t] and v[t]; `surrogate'` stands in for ds/dh.

    dv/dh = 1 - theta * surrogate'(h - theta)                          soft reset
    dv/dh = 1 - s + (v_reset - h) * surrogate'(h - theta)              hard reset
    without the terms in surrogate' if the reset is detached
    """
    surrogate: Any = coding.surrogate
    slope = surrogate.gradient(h - theta)
    if coding.v_reset is None:
        through = 1 - theta * slope if not coding.detach_reset else torch.ones_like(h)
    else:
        through = (h < theta).to(h.dtype)
        if not coding.detach_reset:
            through = through + (coding.v_reset - h) * slope
    return grad_s * slope + grad_v * through


def charge_backward(coding: IF, v: Tensor, x: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x[t] and v[t-1], and of a 1/tau to be learned at each neuron, from that of h[t]."""
    if not isinstance(coding, LIF):
        return grad_h, grad_h, None
    tau = coding.reciprocal_tau
    grad_x = grad_h * tau if coding.decay_input else grad_h
    if not isinstance(tau, Tensor):
        return grad_x, grad_h * (1 - tau), None
    leak = v - (coding.v_reset or 0.0)
    return grad_x, grad_h * (1 - tau), grad_h * (x - leak if coding.decay_input else -leak)


def signed(x: Tensor, state: tuple[Tensor, ...], theta: Parameter) -> Step:
    """A negative spike takes back a positive one that was sent too early (after Wang et al. 2022, IJCAI).

    v += x;  s = 1 if v >= theta, -1 if v < 0 and c > 0, else 0;  v -= s * theta;  c += s
    """
    v, c = state
    v = v + x
    s = (v >= theta).to(v.dtype) - ((v < 0) & (c > 0)).to(v.dtype)
    payload = s * theta
    return s, payload, (v - payload, c + s)


def delta(coding: Delta, x: Tensor, state: tuple[Tensor, ...], theta: Parameter, power: Tensor) -> Step:
    """Graded spikes that refine the estimate `o` of `relu(m)`; `power` is gamma^t.

    m += x;  q = theta * gamma^t;  n = clip(round((max(m, 0) - o) / q), -K, K);  s = q * n;  o += s
    """
    m, o = state
    m = m + x if coding.differential else x
    q = power * theta
    n = ((m.clamp(min=0) - o) / q).round().clamp(-coding.levels, coding.levels)
    s = n * q
    return n, s, (m, o + s)


def differential(coding: Differential, x: Tensor, state: tuple[Tensor, ...], theta: Parameter) -> Step:
    """Multi-threshold spikes (Huang et al. 2025, ICML, arXiv 2503.00301).

    m += x;  r = (max(m, 0) - o) / theta;  s = sign(r) * theta * 2^-k for the smallest k in 0..n-1 with
    abs(r) >= 0.75 * 2^-k, else 0;  o += s
    """
    m, o = state
    m = m + x if coding.differential else x
    r = (m.clamp(min=0) - o) / theta
    size = r.abs()
    s = torch.zeros_like(r)
    for k in reversed(range(coding.levels)):  # the largest that is reached comes last, and stays
        s = torch.where(size >= 0.75 * 2.0**-k, 2.0**-k, s)
    s = s * r.sign()
    return s * 2.0 ** (coding.levels - 1), s * theta, (m, o + s * theta)


@functools.cache
def _powers(gamma: float, count: int, dtype: torch.dtype) -> Tensor:
    table = [torch.ones((), dtype=dtype)]
    while len(table) < count:
        table.append((table[-1] * gamma).clamp(min=SMALLEST_LEVEL))
    return torch.stack(table)


def powers(gamma: float, t: int, count: int, dtype: torch.dtype) -> Tensor:
    """gamma^t ... gamma^(t + count - 1) on the CPU, each the one before times gamma, rounded to `dtype`."""
    length = 1 << max(6, (t + count - 1).bit_length())
    return _powers(gamma, length, dtype)[t : t + count]


def initial_value(coding: Coding, theta: Parameter) -> Parameter:
    """Of the first state tensor before t = 0; the others are zero."""
    if isinstance(coding, Signed) or (isinstance(coding, IF) and coding.half_start):
        return 0.5 * theta
    return (coding.v_reset or 0.0) if isinstance(coding, IF) else 0.0


def initial_state(coding: Coding, step: Tensor, theta: Parameter) -> tuple[Tensor, ...]:
    """The state before t = 0, for steps like `step`, in its dtype."""
    return (torch.zeros_like(step) + initial_value(coding, theta), *(torch.zeros_like(step) for _ in coding.state[1:]))


def enters_once(coding: Coding) -> bool:
    """Whether biases enter at t = 0 only."""
    return isinstance(coding, (Delta, Differential)) and coding.differential


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """`ops.multi_step_neuron`, differentiable."""
    outputs: list[Tensor] = []
    total: Tensor | None = None
    state: tuple[Tensor, ...] = ()
    for units, worth, after in run(x_seq, coding, arguments):
        if arguments.output != "sequence":
            value = worth if arguments.payload else units
            total = value if total is None else total + value
        if arguments.output != "sum":
            outputs.append((worth if arguments.sequence_payload else units).to(arguments.out_dtype))
        state = after if arguments.keep_state else ()
    sequence = torch.stack(outputs) if outputs else None
    return NeuronOutput(sequence, None if total is None else total.to(x_seq.dtype), state)


def run(x_seq: Tensor, coding: Coding, arguments: Arguments) -> Iterator[Step]:
    """Each step in turn."""
    dtype = state_dtype(x_seq.dtype)
    like = torch.empty_like(x_seq[0], dtype=dtype)
    theta, bias, offset = (channel_view(value, like) for value in arguments.parameters)
    if not isinstance(theta, Tensor):
        theta = like.new_full((), theta)  # on the device: it divides by a number of the CPU by multiplying
    state = arguments.state
    state = initial_state(coding, like, theta) if state is None else tuple(part.to(dtype) for part in state)
    once, t = enters_once(coding), arguments.t
    power = powers(coding.gamma, t, len(x_seq), dtype) if isinstance(coding, Delta) else None
    for step in range(len(x_seq)):
        x = x_seq[step].to(dtype)
        if arguments.residual is not None:
            x = x + arguments.residual[step].to(dtype)
        x = x - offset if once and t + step > 0 else x + bias
        if isinstance(coding, IF):
            result = integrate_and_fire(coding, x, state, theta)
        elif isinstance(coding, Delta):
            assert power is not None
            result = delta(coding, x, state, theta, power[step])
        elif isinstance(coding, Differential):
            result = differential(coding, x, state, theta)
        else:
            result = signed(x, state, theta)
        state = result[-1]
        yield result
