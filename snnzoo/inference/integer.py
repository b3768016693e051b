"""Convolutions with integer weights, for CPUs, whose 8-bit multiplications are several times as fast as float32's.

Spikes are small whole numbers as they are, so nothing is lost of them: only weights are rounded, to 8 bits, or to
16, as two pieces of 8 bits that are convolved one after the other. Sums are exact; neurons stay float32.
"""

from __future__ import annotations

import platform
from typing import Any, cast

import torch
from torch import Tensor, nn

from snnzoo.errors import UsageError
from snnzoo.inference.folding import FoldedNeuron
from snnzoo.inference.network import FoldedNetwork, FoldedResNet

PIECES = {torch.int8: 1, torch.int16: 2}  # of 8 bits
MOST_UNITS = 64  # of a spike: pairs of products are added up in 16 bits where a CPU lacks VNNI


class IntegerConv2d(nn.Conv2d):
    """A convolution of int8 spikes `[T * N, C, H, W]`, in units, to a float32 current. It has no bias.

    Args:
        conv: with float weights and without bias; padded with zeros, by numbers.
        source: the neuron whose spikes it sees.
        pieces: of 8 bits that make up a weight, 1 or 2; the largest weight of an output channel takes all of them.
    """

    def __init__(self, conv: nn.Conv2d, source: FoldedNeuron, pieces: int) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            device="meta",
        )
        self.register_parameter("weight", None)
        self._source = (source,)  # in a tuple: it is no part of this module
        self.zero_point = source.coding.largest_unit if source.coding.signed else 0
        weight = conv.weight.detach().double() * _of_inputs(source.spike_value(0, torch.float64), conv)
        top = 127 * sum(256**i for i in range(pieces))
        scale = weight.abs().amax((1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny) / top
        rounded = (weight / scale.view(-1, 1, 1, 1)).round().long()
        self.no_offsets = torch.zeros(conv.out_channels, dtype=torch.int32)
        self.pieces: list[tuple[Tensor, Tensor]] = []  # packed weights, and what their units are worth, `[C']`
        for i in range(pieces):
            low = (rounded + 128) % 256 - 128 if i < pieces - 1 else rounded
            rounded = (rounded - low) // 256
            worth = (scale * 256**i).float()
            packed = torch.ops.onednn.qconv_prepack(low.to(torch.int8), worth, 1.0, self.zero_point, *self._geometry)
            self.pieces.append((packed, worth))

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), [int(p) for p in self.padding], list(self.dilation), self.groups

    def forward(self, x: Tensor) -> Tensor:
        unsigned = x.view(torch.uint8)
        if self.zero_point:
            unsigned = unsigned + self.zero_point  # modulo 256: from -K ... K to 0 ... 2K
        (first, worth), *others = self.pieces
        before = (unsigned, 1.0, self.zero_point)
        after = (*self._geometry, 1.0, 0, torch.float32)
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *before, first, worth, self.no_offsets, None, *after, "none", [], ""
        )
        for packed, worth in others:
            y = torch.ops.onednn.qconv2d_pointwise.binary(
                *before, packed, worth, self.no_offsets, y, None, *after, 1.0, 0, "sum", 1.0, "none", [], ""
            )
        return self._source[0].shrink(y)


class SpikeValues(nn.Module):
    """int8 spikes of a neuron, in units, as what they are worth, float32: the identity of a residual block."""

    def __init__(self, source: FoldedNeuron) -> None:
        super().__init__()
        self._source = (source,)

    def forward(self, x: Tensor) -> Tensor:
        source = self._source[0]
        value = source.spike_value(0, torch.float32)
        values = x * value.view(-1, 1, 1) if isinstance(value, Tensor) else x.float() * value
        return source.shrink(values)


def round_weights(network: FoldedNetwork, dtype: torch.dtype) -> None:
    """Give the blocks of a folded ResNet integer weights, in place; the stem and the classifier see no spikes.

    Args:
        network: on a CPU, in float32.
        dtype: torch.int8 or torch.int16.

    Raises:
        UsageError: for another network, spikes that are too large, or a PyTorch without such convolutions.
    """
    name = str(dtype).removeprefix("torch.")
    if type(network) is not FoldedResNet:
        raise UsageError(f"{name} weights: only ResNets can have them, not a {type(network).__name__}: use float32")
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise") or platform.machine() not in ("x86_64", "AMD64"):
        raise UsageError(f"{name} weights need PyTorch with oneDNN on an x86-64 CPU: use float32")
    source: FoldedNeuron = network.sn1
    for block in network.blocks:
        source = _round_block(block, source, PIECES[dtype])


def _round_block(block: Any, source: FoldedNeuron, pieces: int) -> FoldedNeuron:
    """A `FoldedBlock` behind the neuron `source`; returns the block's last neuron."""

    def rounded(conv: nn.Conv2d, source: FoldedNeuron) -> IntegerConv2d:
        if source.coding.largest_unit > MOST_UNITS:
            raise UsageError(
                f"integer weights need spikes of at most {MOST_UNITS} units, {source.coding} has "
                f"{source.coding.largest_unit}: use fewer levels or float32"
            )
        source.sends_counts = True
        return IntegerConv2d(conv, source, pieces)

    if isinstance(block.downsample, nn.Sequential):
        block.downsample[0] = rounded(cast(nn.Conv2d, block.downsample[0]), source)
    else:  # the identity, or a shortcut of option A
        block.downsample = nn.Sequential(SpikeValues(source), *filter(None, [block.downsample]))
    for i in range(1, block.depth + 1):
        setattr(block, f"conv{i}", rounded(getattr(block, f"conv{i}"), source))
        source = getattr(block, f"sn{i}")
    return source


def _of_inputs(values: float | Tensor, conv: nn.Conv2d) -> float | Tensor:
    """A value for each input channel, in the shape of the weights `[C', C / groups, ...]`."""
    if not isinstance(values, Tensor):
        return values
    in_group = values.double().view(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1)
    return in_group.reshape(conv.out_channels, -1, 1, 1)
