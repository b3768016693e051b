"""Multi-threshold neurons on differential signals: spikes of powers of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnzoo.codings.activations import Activation
from snnzoo.codings.base import Coding, Step, register
from snnzoo.errors import UsageError

__all__ = ["Differential"]


@register
@dataclass(frozen=True)
class Differential(Coding):
    """Multi-threshold spikes (Huang et al. 2025, ICML, arXiv 2503.00301) that refine an estimate `o` of f(m).

    m += x;  r = (f(m) - o) / theta;  s = sign(r) * theta * 2^-k for the smallest k in 0..n-1 with
    abs(r) >= 0.75 * 2^-k, else 0;  o += s.  A unit is worth theta * 2^-(n-1).

    Args:
        levels: n >= 1, the number of thresholds theta, theta/2, ..., theta * 2^-(n-1).

    Raises:
        UsageError: if `levels` is out of range.
    """

    levels: int = 8

    name = "differential"
    state = ("m", "o")
    differentiable = False
    readout = "sum"
    bias_once = True
    any_activation = True

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UsageError(f"levels must be at least 1, got {self.levels}")

    def step(self, x: Tensor, state: tuple[Tensor, ...], theta: Tensor, t: int, activation: Activation) -> Step:
        m, o = state
        m = m + x
        r = (activation(m) - o) / theta
        size = r.abs()
        s = torch.zeros_like(r)
        for k in reversed(range(self.levels)):  # the largest that is reached comes last, and stays
            s = torch.where(size >= 0.75 * 2.0**-k, 2.0**-k, s)
        s = s * r.sign()
        value = s * theta
        return s * 2.0 ** (self.levels - 1), value, (m, o + value)

    @property
    def default_time_steps(self) -> int:
        return 4

    @property
    def spikes(self) -> str:
        return f"graded spikes of {self.levels} sizes"

    @property
    def event_bits(self) -> int:
        return max(1, (self.levels - 1).bit_length())  # which of n sizes

    @property
    def largest_unit(self) -> int:
        return 1 << (self.levels - 1)

    def spike_value(self, t: int, dtype: torch.dtype) -> float:
        return 2.0 ** -(self.levels - 1)

    def span(self, time_steps: int) -> float:
        return float(time_steps)
