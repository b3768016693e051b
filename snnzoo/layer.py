"""Containers, layers of torch.nn with a step mode, dropout that holds still over time, and layers that look along it.

The containers give the two propagation patterns as modules. They rename state_dict keys
(`0.weight` becomes `0.0.weight`); `functional.seq_to_ann_forward` does the same without renaming.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnzoo import functional
from snnzoo.base import MemoryModule, StepContainer, StepModule


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


class StatelessLayer(StepModule):
    """A layer of torch.nn that takes `[N, ...]`, or with `step_mode="m"` `[T, N, ...]`, time folded into the batch.

    Args:
        args, kwargs: those of the layer of torch.nn; its parameters keep their keys.
        step_mode: "s" or "m".

    Raises:
        ValueError: if a sequence has no time axis.
    """

    kind: type[nn.Module]

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super(StepModule, self).__init__(*args, **kwargs)
        self.step_mode = step_mode

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return super().forward(x)
        dimensions = self.kind.__name__[-2]
        if self.kind.__name__.endswith("d") and dimensions in "23" and x.ndim != int(dimensions) + 3:
            raise ValueError(f"{self.kind.__name__} with step_mode='m' needs x_seq [T, N, C, ...], got {list(x.shape)}")
        deterministic = not self.training or functional.is_deterministic(self.kind)
        return functional.fold_time(x, super().forward, deterministic)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), f"step_mode={self.step_mode!r}"]))


def _with_step_mode(kind: type[nn.Module]) -> Any:
    """The class of that name."""
    described = f"`nn.{kind.__name__}` with a step mode: a `StatelessLayer`."
    return type(kind.__name__, (StatelessLayer, kind), {"kind": kind, "__doc__": described, "__module__": __name__})


Conv1d, Conv2d, Conv3d = (_with_step_mode(kind) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
ConvTranspose1d, ConvTranspose2d = (_with_step_mode(kind) for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d))
BatchNorm1d, BatchNorm2d, BatchNorm3d = (
    _with_step_mode(kind) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
)
MaxPool1d, MaxPool2d, MaxPool3d = (_with_step_mode(kind) for kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d))
AvgPool1d, AvgPool2d, AvgPool3d = (_with_step_mode(kind) for kind in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))
AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d = (
    _with_step_mode(kind) for kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
)
Linear, Flatten, GroupNorm, Upsample = (
    _with_step_mode(kind) for kind in (nn.Linear, nn.Flatten, nn.GroupNorm, nn.Upsample)
)


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
    """`Dropout2d(step_mode="m")`, with a default of its own."""

    def __init__(self, p: float = 0.5, step_mode: str = "m") -> None:
        super().__init__(p, step_mode)


class Readout(MemoryModule):
    """Decode what neurons have sent so far: after each step, the mean or the sum of all steps until then.

    `[N, ...] -> [N, ...]`, or `[T, N, ...] -> [T, N, ...]` with `step_mode="m"`.

    Args:
        kind: "mean" (rate coding) or "sum" (differential codings).
        step_mode: "s" or "m".
        extrapolation: how often the input of the step itself is added to the sum: what it changes goes on changing.

    Raises:
        ValueError: if `kind` is neither, a mean is to be extrapolated, or the state held does not fit the input.
    """

    total: Tensor | None
    t: int

    def __init__(self, kind: str, step_mode: str = "s", extrapolation: float = 0.0) -> None:
        super().__init__(step_mode)
        if kind not in ("mean", "sum"):
            raise ValueError(f"kind must be 'mean' or 'sum', got {kind!r}")
        if extrapolation and kind == "mean":
            raise ValueError(f"only a sum is extrapolated, got {extrapolation} with a mean")
        self.kind, self.extrapolation = kind, extrapolation
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
        if self.extrapolation:
            totals = totals + self.extrapolation * x_seq
        return totals if self.step_mode == "m" else totals[0]

    def extra_repr(self) -> str:
        extrapolation = f", extrapolation={self.extrapolation}" if self.extrapolation else ""
        return f"kind={self.kind!r}, step_mode={self.step_mode!r}{extrapolation}"


class TemporalConv(StepModule):
    """Convolution over time: each output step is a weighted sum of the inputs at several steps.

    Layer-by-layer, the outputs of a layer at all T are there at once, so they can be convolved along T
    (Zimmer et al. 2019, arXiv 1910.02732): `[T, N, C, ...] -> [T, N, out_channels, ...]`. It has no state:
    a sequence is taken as a whole, with zeros before and after it.

    Args:
        in_channels, out_channels: as in `nn.Conv1d`.
        kernel_size: steps that an output depends on.
        dilation: steps between them.
        groups: 1 mixes all channels; `in_channels` is depthwise, a filter of its own for each channel.
        causal: an output at t depends on t and earlier; False centres the kernel (for an even one, the
            later half is a step longer).
        bias: whether a bias is added.
        step_mode: "m"; single-step mode is an error, since a step alone has no past and no future.

    Raises:
        ValueError: if an argument is out of range, the mode is single-step, or the input has a wrong shape.

    Example:
        >>> TemporalConv(8, 8, 3, groups=8)(torch.rand(10, 2, 8, 5, 5)).shape
        torch.Size([10, 2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        groups: int = 1,
        causal: bool = True,
        bias: bool = True,
        step_mode: str = "m",
    ) -> None:
        super().__init__(step_mode)
        for name, value in (("kernel_size", kernel_size), ("dilation", dilation), ("groups", groups)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.dilation, self.groups, self.causal = dilation, groups, causal
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights as `nn.Conv1d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros before the first step and after the last one."""
        reach = (self.kernel_size - 1) * self.dilation
        before = reach if self.causal else reach // 2
        return before, reach - before

    def forward(self, x_seq: Tensor) -> Tensor:
        if self.step_mode == "s":
            raise ValueError(
                "TemporalConv has step_mode='s', but it convolves over time and a single step has none: run the "
                "network layer-by-layer, with snnzoo.functional.set_step_mode(net, 'm')"
            )
        if x_seq.ndim < 3 or x_seq.shape[2] != self.in_channels:
            raise ValueError(
                f"TemporalConv needs x_seq of shape [T, N, {self.in_channels}, ...], got {list(x_seq.shape)}"
            )
        others = x_seq.movedim((1, 2, 0), (0, -2, -1))  # [N, ..., C, T]
        x = F.pad(others.flatten(0, -3), self.padding)
        y = F.conv1d(x, self.weight, self.bias, dilation=self.dilation, groups=self.groups)
        return y.unflatten(0, others.shape[:-2]).movedim((0, -2, -1), (1, 2, 0))  # [T, N, C, ...]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"groups={self.groups}, causal={self.causal}, bias={self.bias is not None}, step_mode={self.step_mode!r}"
        )
