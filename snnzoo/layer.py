"""Containers, and dropout that holds still over time.

The containers give the two propagation patterns as modules. They rename state_dict keys
(`0.weight` becomes `0.0.weight`); `functional.seq_to_ann_forward` does the same without renaming.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snnzoo import functional
from snnzoo.base import MemoryModule, StepContainer


class SeqToANNContainer(StepContainer):
    """Stateless modules, applied to `[T, N, ...]` with time folded into the batch.

    Example:
        >>> SeqToANNContainer(nn.Linear(4, 2), nn.Linear(2, 3))(torch.rand(16, 8, 4)).shape
        torch.Size([16, 8, 3])
    """

    def forward(self, x_seq: Tensor) -> Tensor:
        return functional.seq_to_ann_forward(x_seq, list(self))


class MultiStepContainer(StepContainer):
    """Single-step modules, applied to `[T, N, ...]` one step after the other.

    Example:
        >>> MultiStepContainer(neuron.IFNode())(torch.rand(8, 4)).shape
        torch.Size([8, 4])
    """

    def forward(self, x_seq: Tensor) -> Tensor:
        return functional.multi_step_forward(x_seq, list(self))


class Dropout(MemoryModule):
    """Dropout whose mask, scaled by 1/(1-p), is drawn once and held until reset (Lee et al. 2020).

    Identity in eval mode. `[N, ...] -> [N, ...]`, or `[T, N, ...] -> [T, N, ...]` with `step_mode="m"`.

    Args:
        p: probability of dropping, in [0, 1).
        step_mode: "s" or "m".

    Raises:
        ValueError: if `p` is out of range, or the mask held does not fit the input.
    """

    mask: Tensor | None

    def __init__(self, p: float = 0.5, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), got {p}")
        self.p = p
        self.register_memory("mask", None)

    def draw_mask(self, x: Tensor) -> Tensor:
        return F.dropout(torch.ones_like(x), self.p, training=True)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        step = x if self.step_mode == "s" else x[0]
        if self.mask is None:
            self.mask = self.draw_mask(step)
        self.require_shape("mask", step.shape)
        return x * self.mask

    def extra_repr(self) -> str:
        return f"p={self.p}, step_mode={self.step_mode!r}"


class Dropout2d(Dropout):
    """As `Dropout`, dropping whole channels of `[N, C, H, W]`."""

    def __init__(self, p: float = 0.2, step_mode: str = "s") -> None:
        super().__init__(p, step_mode)

    def draw_mask(self, x: Tensor) -> Tensor:
        return F.dropout2d(torch.ones_like(x), self.p, training=True)


class MultiStepDropout(Dropout):
    """`Dropout(step_mode="m")`."""

    def __init__(self, p: float = 0.5, step_mode: str = "m") -> None:
        super().__init__(p, step_mode)


class MultiStepDropout2d(Dropout2d):
    """`Dropout2d(step_mode="m")`."""

    def __init__(self, p: float = 0.2, step_mode: str = "m") -> None:
        super().__init__(p, step_mode)


class Readout(MemoryModule):
    """Decode what neurons have sent so far: after each step, the mean or the sum of all steps until then.

    `[N, ...] -> [N, ...]`, or `[T, N, ...] -> [T, N, ...]` with `step_mode="m"`.

    Args:
        kind: "mean" (rate coding) or "sum" (differential codings).
        step_mode: "s" or "m".

    Raises:
        ValueError: if `kind` is neither, or the state held does not fit the input.
    """

    total: Tensor | None
    t: int

    def __init__(self, kind: str, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        if kind not in ("mean", "sum"):
            raise ValueError(f"kind must be 'mean' or 'sum', got {kind!r}")
        self.kind = kind
        self.register_memory("total", None)
        self.register_memory("t", 0)

    def forward(self, x: Tensor) -> Tensor:
        x_seq = x if self.step_mode == "m" else x.unsqueeze(0)
        totals = x_seq.cumsum(0)
        if self.total is not None:
            self.require_shape("total", x_seq.shape[1:])
            totals = totals + self.total
        self.total = totals[-1]
        steps = torch.arange(self.t + 1, self.t + len(x_seq) + 1, dtype=x.dtype, device=x.device)
        self.t += len(x_seq)
        if self.kind == "mean":
            totals = totals / steps.view(-1, *[1] * (x_seq.ndim - 1))
        return totals if self.step_mode == "m" else totals[0]

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, step_mode={self.step_mode!r}"
