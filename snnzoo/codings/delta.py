"""Delta coding: graded spikes that shrink from step to step."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snnzoo.codings.activations import Activation
from snnzoo.codings.base import Coding, Step, register
from snnzoo.errors import UsageError

__all__ = ["Delta"]

SMALLEST_LEVEL = 2.0**-100  # of theta: gamma^t stays above it, so that levels remain normal numbers


def _rounded(x: float, dtype: torch.dtype) -> float:
    """Return x > 0 as a float32, unless `dtype` is float64; in plain Python, which `torch.compile` sees through."""
    if dtype == torch.float64:
        return x
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, 24)), exponent - 24)


@functools.cache
def _powers(gamma: float, count: int, dtype: torch.dtype) -> tuple[float, ...]:
    """Return gamma^0 ... gamma^(count - 1), each the one before times gamma, rounded to `dtype`."""
    table = [1.0]
    while len(table) < count:
        table.append(max(_rounded(table[-1] * _rounded(gamma, dtype), dtype), SMALLEST_LEVEL))
    return tuple(table)


@register
@dataclass(frozen=True)
class Delta(Coding):
    """Graded spikes of up to K levels that refine an estimate `o` of f(m), each step by a finer level.

    m += x;  q = theta * gamma^t;  r = f(m) - o;  n = clip(round(r / q), -K, K) if abs(r) > dead_zone * q, else 0;
    s = q * n;  o += s

    In a deep network the last spikes come before their causes have all arrived: a readout may extrapolate.

    Args:
        levels: K >= 1, the largest spike; 1 is ternary.
        gamma: ratio by which a level shrinks each step, in (0, 1].
        dead_zone: what is missing must exceed so much of a level to be sent now, in [0.5, 1]. With 0.5 all is sent that
            brings the estimate closer; with more a neuron waits for the finer levels to come, and sends fewer events:
            2/3 gives the fewest non-zero digits where gamma is 0.5 (the non-adjacent form; Reitwiesner 1960, Advances
            in Computers 1).

    Raises:
        UsageError: if an argument is out of range.
    """

    levels: int = 3
    gamma: float = 0.5
    dead_zone: float = 0.5

    name = "delta"
    state = ("m", "o")
    differentiable = False
    readout = "sum"
    bias_once = True
    any_activation = True
    extrapolates = True

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UsageError(f"levels must be at least 1, got {self.levels}")
        if not 0 < self.gamma <= 1:
            raise UsageError(f"gamma must be in (0, 1], got {self.gamma}")
        if not 0.5 <= self.dead_zone <= 1:
            raise UsageError(f"dead_zone must be in [0.5, 1], got {self.dead_zone}")

    def step(self, x: Tensor, state: tuple[Tensor, ...], theta: Tensor, t: int, activation: Activation) -> Step:
        m, o = state
        m = m + x
        q = theta * self.spike_value(t, m.dtype)
        r = activation(m) - o
        n = (r / q).round().clamp(-self.levels, self.levels)
        n = torch.where(r.abs() <= self.dead_zone * q, 0.0, n)
        s = n * q
        return n, s, (m, o + s)

    def __str__(self) -> str:
        told = super().__str__()  # but for a dead zone that is none
        return told.removesuffix(", dead_zone=0.5)") + ")" if self.dead_zone == 0.5 else told

    @property
    def default_time_steps(self) -> int:
        return 8 if self.levels == 1 else 4

    @property
    def spikes(self) -> str:
        return "ternary spikes" if self.levels == 1 else f"graded spikes of up to {self.levels} levels"

    @property
    def event_bits(self) -> int:
        return self.levels.bit_length()  # sizes 1 to K

    @property
    def largest_unit(self) -> int:
        return self.levels

    def spike_value(self, t: int, dtype: torch.dtype) -> float:
        return _powers(self.gamma, 1 << max(6, t.bit_length()), dtype)[t]

    def span(self, time_steps: int) -> float:
        return self.levels * sum(self.gamma**t for t in range(time_steps))
