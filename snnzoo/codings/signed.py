"""Signed integrate-and-fire: ternary spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from snnzoo.codings.activations import Activation
from snnzoo.codings.base import Coding, Step, register

__all__ = ["Signed"]


@register
@dataclass(frozen=True)
class Signed(Coding):
    """IF neuron that takes back a spike sent too early, from v = theta / 2 (after Wang et al. 2022, IJCAI).

    v += x;  s = 1 if v >= theta, -1 if v < 0 and c > 0, else 0;  v -= s * theta;  c += s
    """

    name = "signed"
    state = ("v", "c")
    differentiable = False
    v_init: ClassVar[float] = 0.5  # in thresholds

    def step(self, x: Tensor, state: tuple[Tensor, ...], theta: Tensor, t: int, activation: Activation) -> Step:
        v, c = state
        v = v + x
        s = (v >= theta).to(v.dtype) - ((v < 0) & (c > 0)).to(v.dtype)
        value = s * theta
        return s, value, (v - value, c + s)

    def initial(self, theta: float | Tensor) -> float | Tensor:
        return self.v_init * theta

    @property
    def spikes(self) -> str:
        return "ternary spikes"
