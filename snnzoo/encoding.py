"""Encoders: from numbers in [0, 1] to spikes, a step at each call."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnzoo.base import MemoryModule


class StatelessEncoder(nn.Module):
    """Base class of encoders that draw each step anew: `x -> spikes`, of the shape of `x`."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class PoissonEncoder(StatelessEncoder):
    """Spikes whose probability at each step is the value of `x`, in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rand_like(x).le(x).to(x)


class StatefulEncoder(MemoryModule):
    """Base class of encoders that turn `x` into T steps at once, and give one at each call, over and over.

    The first call after a reset encodes its `x`; later ones need none.

    Args:
        T: steps of a period, >= 1.

    Raises:
        ValueError: if `T` is less than 1, or the first call brings no input.
    """

    spike: Tensor | None
    t: int

    def __init__(self, T: int) -> None:
        super().__init__()
        if T < 1:
            raise ValueError(f"T must be at least 1, got {T}")
        self.T = T
        self.register_memory("spike", None)
        self.register_memory("t", 0)

    def encode(self, x: Tensor) -> None:
        """Set `self.spike [T, ...]`."""
        raise NotImplementedError

    def forward(self, x: Tensor | None = None) -> Tensor:
        if self.spike is None:
            if x is None:
                raise ValueError(f"{type(self).__name__} has nothing to send: give the first call after a reset an x")
            self.encode(x)
        assert self.spike is not None
        step = self.spike[self.t]
        self.t = (self.t + 1) % self.T
        return step

    def extra_repr(self) -> str:
        return f"T={self.T}"


class PeriodicEncoder(StatefulEncoder):
    """Sends given spikes over and over, also after a reset.

    Args:
        spike: `[T, ...]`.
    """

    def __init__(self, spike: Tensor) -> None:
        super().__init__(len(spike))
        self.encode(spike)

    def encode(self, x: Tensor) -> None:
        """Send `x [T, ...]` from now on."""
        self.spike, self.T = x, len(x)
        self.set_reset_value("spike", x.detach())


class LatencyEncoder(StatefulEncoder):
    """One spike a period: the larger `x`, in [0, 1], the earlier.

    Args:
        T: steps of a period, >= 1.
        enc_function: "linear", at t = (T - 1) * (1 - x); or "log", at t = T - 1 - ln(a * x + 1), a = exp(T - 1) - 1.

    Raises:
        ValueError: for another `enc_function`.
    """

    def __init__(self, T: int, enc_function: str = "linear") -> None:
        super().__init__(T)
        if enc_function not in ("linear", "log"):
            raise ValueError(f"enc_function must be 'linear' or 'log', got {enc_function!r}")
        self.enc_function = enc_function

    def encode(self, x: Tensor) -> None:
        last = self.T - 1.0
        if self.enc_function == "log":
            fires_at = last - torch.log(math.expm1(last) * x + 1)
        else:
            fires_at = last * (1 - x)
        self.spike = F.one_hot(fires_at.round().long(), num_classes=self.T).to(x).movedim(-1, 0)


class WeightedPhaseEncoder(StatefulEncoder):
    """The binary digits of `x`, from 1/2 on (Kim et al. 2018, Deep neural networks with weighted spikes).

    Args:
        K: digits, and steps of a period.

    Raises:
        ValueError: if a value is not in [0, 1 - 2^-K].
    """

    def __init__(self, K: int) -> None:
        super().__init__(K)

    def encode(self, x: Tensor) -> None:
        if not bool(((x >= 0) & (x <= 1 - 2.0**-self.T)).all()):
            raise ValueError(f"WeightedPhaseEncoder needs values in [0, 1 - 2^-{self.T}]")
        digits, rest = [], x
        for weight in (2.0 ** -(i + 1) for i in range(self.T)):
            digits.append((rest >= weight).to(x))
            rest = rest - weight * digits[-1]
        self.spike = torch.stack(digits)
