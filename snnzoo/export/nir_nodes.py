"""What a NIR graph is put together from: layers whose weights still change, and sums of nodes' outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor


@dataclass
class Draft:
    """A convolution or linear layer whose weights still change: BN, spike values and thresholds are folded in."""

    weight: Tensor
    bias: Tensor
    input_size: tuple[int, ...]
    conv: dict[str, Any] | None  # stride, padding and dilation; None of a linear layer

    def scale(self, factor: Tensor) -> None:
        """Multiply output channel c by `factor[c]`."""
        self.weight = self.weight * factor.view(-1, *[1] * (self.weight.ndim - 1))
        self.bias = self.bias * factor

    def node(self) -> nir.NIRNode:
        """Return the NIR node."""
        weight, bias = array(self.weight), array(self.bias)
        if self.conv is None:
            return nir.Affine(weight, bias)
        stride, padding, dilation = (self.conv[name] for name in ("stride", "padding", "dilation"))
        padding = padding if isinstance(padding, str) else tuple(padding)
        return nir.Conv2d(self.input_size, weight, tuple(stride), padding, tuple(dilation), 1, bias)


@dataclass
class Signal:
    """A sum of the outputs of nodes. `shape` is that of one image; `stride` says which rows and columns are taken."""

    shape: tuple[int, ...]
    sources: list[str]
    stride: tuple[int, int] = (1, 1)


def plain_conv(stride: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Return the settings of a convolution without padding."""
    return {"stride": list(stride), "padding": [0, 0], "dilation": [1, 1], "groups": 1}


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """Return the weights of a grouped convolution as of one without groups, zeros between the groups.

    NIR 1.0.8 takes the channels of a grouped convolution's input to be those of one group, and cannot read it back.
    """
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        whole[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return whole


def ones(channels: int) -> Tensor:
    """Return 1 for each channel, in float64."""
    return torch.ones(channels, dtype=torch.float64)


def per_neuron(values: Tensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return `[C]` spread over `shape`."""
    return array(values.view(-1, *[1] * (len(shape) - 1)).expand(shape))


def array(values: Tensor) -> np.ndarray[Any, Any]:
    """Return float32 values as NIR has them."""
    return np.ascontiguousarray(values.detach().float().numpy())
