"""Surrogate gradients: a Heaviside step forward, a smooth derivative backward.

A spike is `s = 1 if x >= 0 else 0` with `x = v - v_threshold`. Its derivative is zero almost
everywhere, so the backward pass uses that of a smooth primitive instead (Neftci et al. 2019,
arXiv 1901.09948).

Names, defaults and equations are those of SpikingJelly 0.0.0.0.12, where `PiecewiseLeakyReLU` and `S2NN`
have gradients that are not quite the derivatives of their primitives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Gradient = Callable[..., Tensor]


def heaviside(x: Tensor) -> Tensor:
    """Return 1 where `x >= 0` and 0 elsewhere, in the dtype of `x`."""
    return (x >= 0).to(x.dtype)


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Gradient, settings: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradient, ctx.settings = gradient, settings
        return heaviside(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad_output * ctx.gradient(x, *ctx.settings), None, None


class MultiArgsSurrogateFunctionBase(nn.Module):
    """Base class: `forward(x)` gives spikes (0 or 1, same shape and dtype as `x`), or the primitive itself.

    A subclass defines `primitive_function(x, *settings)` and `gradient_function(x, *settings)`, both static, or
    a static `spiking_function(x, *settings)` of its own instead of the latter.

    Args:
        spiking: False for the primitive forward and its own derivative backward: a network without spikes.
    """

    setting_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spiking: bool = True) -> None:
        super().__init__()
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        """Choose between spikes (True) and the primitive (False)."""
        self.spiking = spiking

    @property
    def settings(self) -> tuple[Any, ...]:
        """The values of `setting_names`."""
        return tuple(getattr(self, name) for name in self.setting_names)

    @staticmethod
    def primitive_function(x: Tensor, *settings: Any) -> Tensor:
        """Return the smooth step that stands in for the Heaviside function."""
        raise NotImplementedError

    @staticmethod
    def gradient_function(x: Tensor, *settings: Any) -> Tensor:
        """Return what the backward pass takes for the derivative of the Heaviside function."""
        raise NotImplementedError

    @classmethod
    def spiking_function(cls, x: Tensor, *settings: Any) -> Tensor:
        """Return spikes, whose backward pass is `gradient_function`."""
        return _Heaviside.apply(x, cls.gradient_function, settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.spiking_function(x, *self.settings) if self.spiking else self.primitive(x)

    def primitive(self, x: Tensor) -> Tensor:
        """Return `primitive_function` with this function's settings."""
        return self.primitive_function(x, *self.settings)

    def gradient(self, x: Tensor) -> Tensor:
        """Return `gradient_function` with this function's settings."""
        return self.gradient_function(x, *self.settings)

    def extra_repr(self) -> str:
        shown = [f"{name}={value}" for name, value in zip(self.setting_names, self.settings, strict=True)]
        return ", ".join([*shown, *([] if self.spiking else ["spiking=False"])])


class SurrogateFunctionBase(MultiArgsSurrogateFunctionBase):
    """Base class of surrogates with one setting.

    Args:
        alpha: steepness of the primitive at x = 0; positive.
        spiking: as in `MultiArgsSurrogateFunctionBase`.

    Raises:
        ValueError: if `alpha` is not positive.
    """

    setting_names = ("alpha",)

    def __init__(self, alpha: float, spiking: bool = True) -> None:
        super().__init__(spiking)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = float(alpha)


class ATan(SurrogateFunctionBase):
    """primitive(x) = atan(pi/2 * alpha * x) / pi + 1/2 (Fang et al. 2021, arXiv 2007.05785)."""

    def __init__(self, alpha: float = 2.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        return torch.atan(math.pi / 2 * alpha * x) / math.pi + 0.5

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return alpha / 2 / (1 + (math.pi / 2 * alpha * x).square())


class Sigmoid(SurrogateFunctionBase):
    """primitive(x) = 1 / (1 + exp(-alpha * x)) (Zenke & Ganguli 2018, arXiv 1705.11146)."""

    def __init__(self, alpha: float = 4.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        return torch.sigmoid(alpha * x)

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        p = torch.sigmoid(alpha * x)
        return alpha * p * (1 - p)


class PiecewiseQuadratic(SurrogateFunctionBase):
    """gradient(x) = max(0, alpha - alpha^2 * abs(x)), a triangle (Esser et al. 2016, Bellec et al. 2018).

    The primitive is 0 for x < -1/alpha, 1 for x > 1/alpha and a quadratic spline between.
    """

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        y = (alpha * x).clamp(-1, 1)
        return 0.5 + y - y * y.abs() / 2

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return (alpha - alpha**2 * x.abs()).clamp(min=0)


class PiecewiseExp(SurrogateFunctionBase):
    """gradient(x) = alpha/2 * exp(-alpha * abs(x)) (Shrestha & Orchard 2018, arXiv 1810.08646)."""

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        tail = torch.exp(-alpha * x.abs()) / 2
        return torch.where(x >= 0, 1 - tail, tail)

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return alpha / 2 * torch.exp(-alpha * x.abs())


class SoftSign(SurrogateFunctionBase):
    """primitive(x) = (alpha * x / (1 + abs(alpha * x)) + 1) / 2."""

    def __init__(self, alpha: float = 2.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        return (F.softsign(alpha * x) + 1) / 2

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return 1 / (2 * alpha * (1 / alpha + x.abs()).square())


class NonzeroSignLogAbs(SurrogateFunctionBase):
    """primitive(x) = sign(x) * log(abs(alpha * x) + 1), with no bounds."""

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        size = torch.log(alpha * x.abs() + 1)
        return torch.where(x >= 0, size, -size)

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return 1 / (1 / alpha + x.abs())


class Erf(SurrogateFunctionBase):
    """primitive(x) = erfc(-alpha * x) / 2 (Esser et al. 2015; Yin et al. 2020)."""

    def __init__(self, alpha: float = 2.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        return torch.erfc(-alpha * x) / 2

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return alpha / math.sqrt(math.pi) * torch.exp(-(alpha * x).square())


class QPseudoSpike(SurrogateFunctionBase):
    """gradient(x) = (1 + 2 * abs(x) / (alpha - 1))^-alpha (Herranz-Celotti & Rouat 2022, arXiv 2202.00282)."""

    def __init__(self, alpha: float = 2.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        tail = (1 + 2 / (alpha - 1) * x.abs()).pow(1 - alpha) / 2
        return torch.where(x >= 0, 1 - tail, tail)

    @staticmethod
    def gradient_function(x: Tensor, alpha: float) -> Tensor:
        return (1 + 2 / (alpha - 1) * x.abs()).pow(-alpha)


class PiecewiseLeakyReLU(MultiArgsSurrogateFunctionBase):
    """gradient(x) = 1/w for abs(x) < w, else c (Yin et al. 2017; Wu et al. 2018).

    Args:
        w: half the width of the steep piece; positive.
        c: slope outside of it.
        spiking: as in `MultiArgsSurrogateFunctionBase`.

    Raises:
        ValueError: if `w` is not positive.
    """

    setting_names = ("w", "c")

    def __init__(self, w: float = 1.0, c: float = 0.01, spiking: bool = True) -> None:
        super().__init__(spiking)
        if not w > 0:
            raise ValueError(f"w must be positive, got {w}")
        self.w, self.c = float(w), float(c)

    @staticmethod
    def primitive_function(x: Tensor, w: float, c: float) -> Tensor:
        beyond = c * (x - x.clamp(-w, w))
        return x.clamp(-w, w) / (2 * w) + 0.5 + beyond

    @staticmethod
    def gradient_function(x: Tensor, w: float, c: float) -> Tensor:
        return torch.full_like(x, c).masked_fill(x.abs() < w, 1 / w)


class SquarewaveFourierSeries(MultiArgsSurrogateFunctionBase):
    """The first terms of a square wave's Fourier series.

    Args:
        n: terms, and one.
        T_period: period of the wave; positive.
        spiking: as in `MultiArgsSurrogateFunctionBase`.

    Raises:
        ValueError: if `T_period` is not positive.
    """

    setting_names = ("n", "T_period")

    def __init__(self, n: int = 2, T_period: float = 8, spiking: bool = True) -> None:
        super().__init__(spiking)
        if not T_period > 0:
            raise ValueError(f"T_period must be positive, got {T_period}")
        self.n, self.T_period = int(n), float(T_period)

    @staticmethod
    def primitive_function(x: Tensor, n: int, T_period: float) -> Tensor:
        odd = range(1, 2 * n - 2, 2)
        series = sum((torch.sin(k * 2 * math.pi / T_period * x) / k for k in odd), torch.zeros_like(x))
        return 0.5 + 2 / math.pi * series

    @staticmethod
    def gradient_function(x: Tensor, n: int, T_period: float) -> Tensor:
        odd = range(1, 2 * n - 2, 2)
        return 4 / T_period * sum((torch.cos(k * 2 * math.pi / T_period * x) for k in odd), torch.zeros_like(x))


class S2NN(MultiArgsSurrogateFunctionBase):
    """A sigmoid below 0, a logarithm above (Suetake et al. 2022, arXiv 2201.10879).

    Args:
        alpha: steepness below 0.
        beta: slope at and above 0.
        spiking: as in `MultiArgsSurrogateFunctionBase`.
    """

    setting_names = ("alpha", "beta")

    def __init__(self, alpha: float = 4.0, beta: float = 1.0, spiking: bool = True) -> None:
        super().__init__(spiking)
        self.alpha, self.beta = float(alpha), float(beta)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float, beta: float) -> Tensor:
        return torch.where(x < 0, torch.sigmoid(alpha * x), beta * torch.log((x + 1).abs() + 1e-5) + 0.5)

    @staticmethod
    def gradient_function(x: Tensor, alpha: float, beta: float) -> Tensor:
        return torch.where(x < 0, Sigmoid.gradient_function(x, alpha), beta / (x + 1))


# Under the names of the classic autograd functions, such as `surrogate.sigmoid.apply(x, alpha)`.
piecewise_quadratic = SimpleNamespace(apply=PiecewiseQuadratic.spiking_function)
piecewise_exp = SimpleNamespace(apply=PiecewiseExp.spiking_function)
sigmoid = SimpleNamespace(apply=Sigmoid.spiking_function)
soft_sign = SimpleNamespace(apply=SoftSign.spiking_function)
atan = SimpleNamespace(apply=ATan.spiking_function)
nonzero_sign_log_abs = SimpleNamespace(apply=NonzeroSignLogAbs.spiking_function)
erf = SimpleNamespace(apply=Erf.spiking_function)
q_pseudo_spike = SimpleNamespace(apply=QPseudoSpike.spiking_function)
piecewise_leaky_relu = SimpleNamespace(apply=PiecewiseLeakyReLU.spiking_function)
squarewave_fourier_series = SimpleNamespace(apply=SquarewaveFourierSeries.spiking_function)
s2nn = SimpleNamespace(apply=S2NN.spiking_function)
