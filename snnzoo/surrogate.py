"""Surrogate gradients: a Heaviside step forward, a smooth derivative backward.

A spike is `s = 1 if x >= 0 else 0` with `x = v - v_threshold`. Its derivative is zero almost
everywhere, so the backward pass uses that of a smooth `primitive` instead (Neftci et al. 2019,
arXiv 1901.09948). `gradient` is exactly the derivative of `primitive`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: SurrogateFunction) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad_output * ctx.surrogate.gradient(x), None


class SurrogateFunction(nn.Module):
    """Base class. `forward(x)` gives spikes (0 or 1, same shape and dtype as `x`).

    Args:
        alpha: steepness of the primitive at x = 0; positive.

    Raises:
        ValueError: if `alpha` is not positive.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = float(alpha)

    def forward(self, x: Tensor) -> Tensor:
        return _Heaviside.apply(x, self)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step that stands in for the Heaviside function."""
        raise NotImplementedError

    def gradient(self, x: Tensor) -> Tensor:
        """The derivative of `primitive`, used in the backward pass."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class ATan(SurrogateFunction):
    """primitive(x) = atan(pi/2 * alpha * x) / pi + 1/2 (Fang et al. 2021, arXiv 2007.05785)."""

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__(alpha)

    def primitive(self, x: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * x) / math.pi + 0.5

    def gradient(self, x: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x).square())


class Sigmoid(SurrogateFunction):
    """primitive(x) = 1 / (1 + exp(-alpha * x)) (Zenke & Ganguli 2018, arXiv 1705.11146)."""

    def __init__(self, alpha: float = 4.0) -> None:
        super().__init__(alpha)

    def primitive(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * x)

    def gradient(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.alpha * x)
        return self.alpha * p * (1 - p)


class PiecewiseQuadratic(SurrogateFunction):
    """gradient(x) = max(0, alpha - alpha^2 * abs(x)), a triangle (Esser et al. 2016, Bellec et al. 2018).

    The primitive is 0 for x < -1/alpha, 1 for x > 1/alpha and a quadratic spline between.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def primitive(self, x: Tensor) -> Tensor:
        y = (self.alpha * x).clamp(-1, 1)
        return 0.5 + y - y * y.abs() / 2

    def gradient(self, x: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * x.abs()).clamp(min=0)
