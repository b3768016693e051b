"""The neuron equations in plain PyTorch: the truth that every faster path is tested against.

Shapes: `x_seq [T, N, ...]` with channels, where there are any, in dimension 2 (`[T, N, C, ...]`).
One step of the classic neurons (Fang et al. 2023, Science Advances, SpikingJelly, eqs. 1-3):

    h[t] = charge(v[t-1], x[t])
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = h[t] - s[t] * v_threshold                 soft reset (v_reset is None)
    v[t] = s[t] * v_reset + (1 - s[t]) * h[t]        hard reset
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Charge = Callable[[Tensor, Tensor], Tensor]


def channel_view(parameter: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a scalar or per-channel `[C]` parameter to broadcast over one step `x [N, C, ...]`.

    Raises:
        ValueError: if a per-channel parameter does not fit dimension 1 of `x`.
    """
    if not isinstance(parameter, Tensor):
        return parameter
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


def integrate_and_fire(
    x_seq: Tensor,
    v: Tensor,
    charge: Charge,
    *,
    v_threshold: float | Tensor,
    v_reset: float | None,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """Run an IF or LIF neuron over T steps.

    Args:
        x_seq: input current, `[T, N, ...]`.
        v: membrane potential before the first step, `[N, ...]`, in the dtype to compute in.
        charge: `(v, x) -> h`.
        v_threshold: scalar, or `[C]`.
        v_reset: hard reset value, None for soft reset.
        surrogate: spike function of `h - v_threshold`.
        detach_reset: keep the reset out of the gradient.

    Returns:
        spikes `[T, N, ...]` (0 or 1, dtype of `v`) and the final `v`.
    """
    threshold = channel_view(v_threshold, v)
    spikes = []
    for x in x_seq:
        h = charge(v, x.to(v.dtype))
        s = surrogate(h - threshold)
        s_reset = s.detach() if detach_reset else s
        if v_reset is None:
            v = h - s_reset * threshold
        else:
            v = s_reset * v_reset + (1 - s_reset) * h
        spikes.append(s)
    return torch.stack(spikes), v


def signed(
    x_seq: Tensor, v: Tensor, c: Tensor, *, v_threshold: float | Tensor, bias: float | Tensor = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a signed IF neuron: a negative spike takes back a positive one that was sent too early.

    v += x[t] + bias;  s = 1 if v >= theta, -1 if v < 0 and c > 0, else 0;  v -= s * theta;  c += s

    Args:
        x_seq: input current, `[T, N, C, ...]`.
        v: membrane potential before the first step, `[N, C, ...]`.
        c: spikes sent so far, positive minus negative, `[N, C, ...]`.
        v_threshold: theta, scalar or `[C]`.
        bias: added to every step, scalar or `[C]`.

    Returns:
        outputs `s * theta`, `[T, N, C, ...]` (their mean decodes), and the final `v` and `c`.
    """
    threshold, bias = channel_view(v_threshold, v), channel_view(bias, v)
    outputs = []
    for x in x_seq.to(v.dtype):
        v = v + (x + bias)
        s = (v >= threshold).to(v.dtype) - ((v < 0) & (c > 0)).to(v.dtype)
        payload = s * threshold
        v = v - payload
        c = c + s
        outputs.append(payload)
    return torch.stack(outputs), v, c


def _accumulate(
    m: Tensor, x: Tensor, t: int, bias: float | Tensor, offset: float | Tensor, differential: bool
) -> Tensor:
    """The input of a differential neuron until step t: biases enter once, at t = 0."""
    if not differential:
        return x + bias
    return m + (x + bias if t == 0 else x - offset)


def delta(
    x_seq: Tensor,
    m: Tensor,
    o: Tensor,
    t: int,
    *,
    v_threshold: float | Tensor,
    levels: int,
    gamma: float,
    bias: float | Tensor = 0.0,
    offset: float | Tensor = 0.0,
    differential: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a delta neuron: graded spikes that refine its estimate `o` of `relu(m)`.

    m += z[t];  q = v_threshold * gamma^t;  s = q * clip(round((max(m, 0) - o) / q), -K, K);  o += s

    Args:
        x_seq: input, `[T, N, C, ...]`; differential, or the signal itself if `differential` is False.
        m: input accumulated so far, `[N, C, ...]`.
        o: output emitted so far, `[N, C, ...]`.
        t: index of the first step.
        v_threshold: size of one level at t = 0, scalar or `[C]`.
        levels: K, the largest graded spike; 1 is ternary.
        gamma: ratio by which the level shrinks each step, in (0, 1].
        bias: added once, at t = 0, scalar or `[C]`.
        offset: what biases upstream add to every step, scalar or `[C]`. A bias enters a differential
            signal once, so it is taken off again at t > 0.
        differential: False for the neuron that encodes the input: m is then `x_seq[t]` itself.

    Returns:
        outputs `[T, N, C, ...]` (their sum decodes), and the final `m` and `o`.
    """
    threshold, bias, offset = (channel_view(value, m) for value in (v_threshold, bias, offset))
    outputs = []
    for step, x in enumerate(x_seq.to(m.dtype), start=t):
        m = _accumulate(m, x, step, bias, offset, differential)
        q = threshold * gamma**step
        s = q * ((m.clamp(min=0) - o) / q).round().clamp(-levels, levels)
        o = o + s
        outputs.append(s)
    return torch.stack(outputs), m, o


def differential(
    x_seq: Tensor,
    m: Tensor,
    o: Tensor,
    t: int,
    *,
    v_threshold: float | Tensor,
    levels: int,
    bias: float | Tensor = 0.0,
    offset: float | Tensor = 0.0,
    differential: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a multi-threshold neuron on differential signals (Huang et al. 2025, ICML, arXiv 2503.00301).

    m += z[t];  r = max(m, 0) - o;  s = sign(r) * theta * 2^-k for the smallest k in 0..n-1 with
    abs(r) >= 0.75 * theta * 2^-k, else 0;  o += s

    Arguments and results are those of `delta`, but `levels` is n, the number of thresholds.
    """
    threshold, bias, offset = (channel_view(value, m) for value in (v_threshold, bias, offset))
    outputs = []
    for step, x in enumerate(x_seq.to(m.dtype), start=t):
        m = _accumulate(m, x, step, bias, offset, differential)
        r = (m.clamp(min=0) - o) / threshold
        size = r.abs()
        s = torch.zeros_like(r)
        for k in reversed(range(levels)):  # the largest that is reached comes last, and stays
            s = torch.where(size >= 0.75 * 2.0**-k, 2.0**-k, s)
        s = s * r.sign() * threshold
        o = o + s
        outputs.append(s)
    return torch.stack(outputs), m, o
