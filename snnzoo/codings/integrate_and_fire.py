"""Integrate-and-fire, leaky or not, and the rate coding of converted networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from snnzoo.codings.activations import Activation
from snnzoo.codings.base import Coding, Step, register
from snnzoo.surrogate import ATan, PiecewiseQuadratic, Sigmoid, SurrogateFunctionBase

__all__ = ["IF", "LIF", "SURROGATES", "Rate", "charge_if", "charge_lif", "reset"]

SURROGATES: tuple[type[SurrogateFunctionBase], ...] = (ATan, Sigmoid, PiecewiseQuadratic)  # that numbers can tell
ATAN = ATan()


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


def reset(h: Tensor, s: Tensor, theta: float | Tensor, v_reset: float | None, detach_reset: bool) -> Tensor:
    """Return the membrane behind the spikes `s`, as in `IF`."""
    s = s.detach() if detach_reset else s
    return h - s * theta if v_reset is None else s * v_reset + (1 - s) * h


@dataclass(frozen=True)
class IF(Coding):
    """Integrate-and-fire with binary spikes, worth theta (Fang et al. 2023, Science Advances, eqs. 1-3).

    h[t] = charge(v[t-1], x[t]);  s[t] = 1 if h[t] >= theta else 0
    v[t] = h[t] - s[t] * theta                    soft reset (v_reset is None)
    v[t] = s[t] * v_reset + (1 - s[t]) * h[t]     hard reset

    Args:
        v_reset: hard reset value; None for soft reset (subtract the threshold).
        v_init: v before t = 0, in thresholds above v_reset (0 if None).
        surrogate: spike function of `h - theta`; its gradient is used in the backward pass.
        detach_reset: keep the reset out of the gradient.
        charge: `(v, x) -> h` of the user's own; None for the coding's equation.
    """

    v_reset: float | None = 0.0
    v_init: float = 0.0
    surrogate: Callable[[Tensor], Tensor] = dataclasses.field(default_factory=lambda: ATAN)  # for older torch.compile
    detach_reset: bool = False
    charge: Callable[[Tensor, Tensor], Tensor] | None = None

    name = "if"
    state = ("v",)
    signed = False

    @property
    def spikes(self) -> str:
        return "binary spikes"

    @property
    def rest(self) -> float:
        """v_reset, or 0."""
        return self.v_reset or 0.0

    def initial(self, theta: float | Tensor) -> float | Tensor:
        return self.v_init * theta + self.rest if self.v_init else self.rest

    def charged(self, v: Tensor, x: Tensor) -> Tensor:
        """Return the potential before firing."""
        return charge_if(v, x) if self.charge is None else self.charge(v, x)

    def step(self, x: Tensor, state: tuple[Tensor, ...], theta: Tensor, t: int, activation: Activation) -> Step:
        (v,) = state
        h = self.charged(v, x)
        s = self.surrogate(h - theta)
        return s, s * theta, (reset(h, s, theta, self.v_reset, self.detach_reset),)

    def step_backward(self, h: Tensor, theta: float | Tensor, grad_s: Tensor, grad_v: Tensor) -> Tensor:
        """Return the gradient of h[t], from those of s[t] and v[t]; `surrogate'` stands in for ds/dh.

        dv/dh = 1 - theta * surrogate'(h - theta)                          soft reset
        dv/dh = 1 - s + (v_reset - h) * surrogate'(h - theta)              hard reset
        without the terms in surrogate' if the reset is detached
        """
        surrogate: Any = self.surrogate
        slope = surrogate.gradient(h - theta)
        if self.v_reset is None:
            through = 1 - theta * slope if not self.detach_reset else torch.ones_like(h)
        else:
            through = (h < theta).to(h.dtype)
            if not self.detach_reset:
                through = through + (self.v_reset - h) * slope
        return grad_s * slope + grad_v * through

    def charge_backward(self, v: Tensor, x: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of x[t] and v[t-1], and of a 1/tau to be learned at each neuron, from that of h[t]."""
        return grad_h, grad_h, None

    def numbers(self) -> list[float] | None:
        surrogate: Any = self.surrogate
        if self.charge is not None or type(surrogate) not in SURROGATES or not surrogate.spiking:
            return None
        v_reset = math.nan if self.v_reset is None else self.v_reset
        chosen = SURROGATES.index(type(surrogate))
        return [v_reset, self.v_init, chosen, surrogate.alpha, self.detach_reset]

    @classmethod
    def from_numbers(cls, numbers: list[float]) -> Self:
        v_reset, v_init, chosen, alpha, detach_reset = numbers
        surrogate = SURROGATES[int(chosen)](alpha)
        return cls(None if math.isnan(v_reset) else v_reset, v_init, surrogate, bool(detach_reset))


@dataclass(frozen=True)
class LIF(IF):
    """Leaky integrate-and-fire, at rest at `v_reset` (0 if None); its charge is `charge_lif`.

    Args:
        reciprocal_tau: 1 / tau, a number or a 0-dim tensor (to be learned).
        decay_input: whether the input decays with the membrane.

    The others are those of `IF`.
    """

    reciprocal_tau: float | Tensor = 0.5
    decay_input: bool = True

    name = "lif"

    def charged(self, v: Tensor, x: Tensor) -> Tensor:
        if self.charge is not None:
            return self.charge(v, x)
        tau = self.reciprocal_tau
        tau = tau.to(v.dtype) if isinstance(tau, Tensor) else tau
        return charge_lif(v, x, reciprocal_tau=tau, v_reset=self.v_reset, decay_input=self.decay_input)

    def charge_backward(self, v: Tensor, x: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tau = self.reciprocal_tau
        grad_x = grad_h * tau if self.decay_input else grad_h
        if not isinstance(tau, Tensor):
            return grad_x, grad_h * (1 - tau), None
        leak = v - self.rest
        return grad_x, grad_h * (1 - tau), grad_h * (x - leak if self.decay_input else -leak)

    def numbers(self) -> list[float] | None:
        """As `Coding.numbers`; a 1/tau to be learned is 0 there, since it is a tensor of its own."""
        common, tau = super().numbers(), self.reciprocal_tau
        return None if common is None else [*common, 0.0 if isinstance(tau, Tensor) else tau, self.decay_input]

    @classmethod
    def from_numbers(cls, numbers: list[float]) -> Self:
        *common, tau, decay_input = numbers
        return dataclasses.replace(super().from_numbers(common), reciprocal_tau=tau, decay_input=bool(decay_input))


@register
@dataclass(frozen=True)
class Rate(IF):
    """The rate coding of converted networks: soft reset, v = theta/2 at first; the mean of spikes decodes.

    Starting at half the threshold makes the expected conversion error zero (Bu et al. 2022, arXiv 2303.04347).
    """

    v_reset: float | None = None
    v_init: float = 0.5

    name = "rate"

    def settings(self) -> dict[str, Any]:
        return {}  # what makes it this coding is no setting of a file

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        for name in settings:
            raise ValueError(f"no setting {name!r}, only none")
        return cls()

    @property
    def default_time_steps(self) -> int:
        return 32
