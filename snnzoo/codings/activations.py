"""The scalar functions that a neuron can stand for: what the ANN's activation layers compute."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from snnzoo.codings.registered import Registered, from_dict, registrar

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "GELU",
    "RELU",
    "Activation",
    "Clamp",
    "Hardsigmoid",
    "Hardswish",
    "LeakyReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "activation_from_dict",
    "register",
]


@dataclass(frozen=True)
class Activation(Registered):
    """Base class: a function of one value, applied to each of `[N, C, ...]`.

    Facts:
        per_channel: whether it differs from channel to channel (dimension 1).
        homogeneous: whether f(a x) = a f(x) for all a > 0.
    """

    homogeneous: ClassVar[bool] = False

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return f(x), in `out` where that is given; `out` has the shape and dtype of `x`."""
        raise NotImplementedError

    @property
    def per_channel(self) -> bool:
        return False


ACTIVATIONS: dict[str, type[Activation]] = {}
register = registrar(ACTIVATIONS)


def activation_from_dict(fields: Mapping[str, Any], source: str) -> Activation:
    """Return the inverse of `Activation.to_dict`.

    Raises:
        CheckpointError: for an activation that is not known, or settings out of range; `source` is what was read.
    """
    return from_dict(ACTIVATIONS, "activation", fields, source)


@register
@dataclass(frozen=True)
class ReLU(Activation):
    """max(x, 0)."""

    name = "relu"
    homogeneous = True

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.clamp(x, min=0, out=out)


@register
@dataclass(frozen=True)
class Clamp(Activation):
    """min(max(x, minimum), maximum): ReLU6 and hardtanh.

    Raises:
        ValueError: unless minimum < maximum.
    """

    minimum: float = 0.0
    maximum: float = 6.0

    name = "clamp"

    def __post_init__(self) -> None:
        if not self.minimum < self.maximum:
            raise ValueError(f"minimum must be less than maximum, got {self.minimum} and {self.maximum}")

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.clamp(x, self.minimum, self.maximum, out=out)


@register
@dataclass(frozen=True)
class LeakyReLU(Activation):
    """x if x > 0, else slope * x: LeakyReLU and PReLU.

    Args:
        slope: a number, or one for each channel (a tensor `[C]`, kept as numbers).
    """

    slope: float | tuple[float, ...] = 0.01

    name = "leaky_relu"
    homogeneous = True

    def __post_init__(self) -> None:
        slope: Any = self.slope
        if isinstance(slope, Tensor):
            slope = slope.flatten().tolist()
        if isinstance(slope, Sequence):
            slope = slope[0] if len(slope) == 1 else tuple(slope)
        object.__setattr__(self, "slope", slope)

    @property
    def per_channel(self) -> bool:
        return isinstance(self.slope, tuple)

    def settings(self) -> dict[str, Any]:
        return {"slope": list(self.slope) if isinstance(self.slope, tuple) else self.slope}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        slope = settings.get("slope")
        if not isinstance(slope, list):
            return super().from_settings(settings)
        for value in slope:
            super().from_settings({**settings, "slope": value})
        return cls(slope)  # type: ignore[arg-type]

    def numbers(self) -> list[float] | None:
        return None if self.per_channel else super().numbers()

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if isinstance(self.slope, tuple):
            y = functional.prelu(x, _tensor(self.slope, x.dtype, x.device))
            return y if out is None else out.copy_(y)
        y, inplace = _target(x, out)
        return functional.leaky_relu(y, self.slope, inplace)


@register
@dataclass(frozen=True)
class SiLU(Activation):
    """x * sigmoid(x)."""

    name = "silu"

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return functional.silu(*_target(x, out))


@register
@dataclass(frozen=True)
class Hardswish(Activation):
    """x * min(max(x + 3, 0), 6) / 6."""

    name = "hardswish"

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return functional.hardswish(*_target(x, out))


@register
@dataclass(frozen=True)
class Tanh(Activation):
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""

    name = "tanh"

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.tanh(x, out=out)


@register
@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    name = "sigmoid"

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.sigmoid(x, out=out)


@register
@dataclass(frozen=True)
class Hardsigmoid(Activation):
    """min(max(x + 3, 0), 6) / 6."""

    name = "hardsigmoid"

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return functional.hardsigmoid(*_target(x, out))


@register
@dataclass(frozen=True)
class GELU(Activation):
    """x times the normal distribution's share below x; `approximate` is "none" or "tanh".

    Raises:
        ValueError: if `approximate` is neither.
    """

    approximate: str = "none"

    name = "gelu"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {self.approximate!r}")

    def numbers(self) -> list[float] | None:
        return [float(self.approximate == "tanh")]

    @classmethod
    def from_numbers(cls, numbers: list[float]) -> Self:
        return cls("tanh" if numbers[0] else "none")

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        y = functional.gelu(x, approximate=self.approximate)
        return y if out is None else out.copy_(y)


@register
@dataclass(frozen=True)
class ELU(Activation):
    """x if x > 0, else alpha * (exp(x) - 1)."""

    alpha: float = 1.0

    name = "elu"

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        y, inplace = _target(x, out)
        return functional.elu(y, self.alpha, inplace)


RELU = ReLU()


def _target(x: Tensor, out: Tensor | None) -> tuple[Tensor, bool]:
    """Return what a function that works in place is to be given, and whether it is to do so."""
    return (x, False) if out is None else (out.copy_(x), True)


@functools.lru_cache(maxsize=256)
def _tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values on the device: kept, since a CUDA graph cannot copy them there."""
    return torch.tensor(values, dtype=dtype, device=device)
