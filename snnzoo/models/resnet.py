"""Spiking ResNets with torchvision's module names, key order and shapes.

torchvision's family (He et al. 2015, arXiv 1512.03385; ResNeXt, arXiv 1611.05431; Wide ResNet,
arXiv 1605.07146), each ReLU replaced by a neuron `sn*`. The stem runs conv1, bn1, maxpool, sn1: with
ReLU that equals torchvision's order, and a static image passes all of it once, whatever T is. Networks that were
trained as spiking ones, with other libraries, pool the spikes instead: `pool_first=False`. For small images the stem is
often a 3x3 convolution with no pool, `stem="cifar"`; where each BN was folded into the convolution before it,
convolutions have biases: `batch_norm=False`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from snnzoo.models import heads
from snnzoo.models.base import NeuronFactory, SpikingModule, SpikingNet

STEMS = ("imagenet", "cifar")


def conv3x3(in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, padding=1, groups=groups, bias=bias)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 1x1 convolution."""
    return nn.Conv2d(in_planes, out_planes, 1, stride, bias=bias)


def normalisation(planes: int, batch_norm: bool) -> nn.Module:
    """Return the BN behind a convolution, or nothing where it was folded into that."""
    return nn.BatchNorm2d(planes) if batch_norm else nn.Identity()


class BasicBlock(SpikingModule):
    """Two 3x3 convolutions; the identity is added before the second neuron."""

    expansion = 1

    def __init__(
        self,
        in_planes: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        neuron: NeuronFactory,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, planes, stride, bias=not batch_norm)
        self.bn1 = normalisation(planes, batch_norm)
        self.sn1 = neuron()
        self.conv2 = conv3x3(planes, planes, bias=not batch_norm)
        self.bn2 = normalisation(planes, batch_norm)
        self.sn2 = neuron()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [T, N, planes, H', W']`, without T in single-step mode."""
        identity = x if self.downsample is None else self.stateless(x, self.downsample)
        out = self.sn1(self.stateless(x, self.conv1, self.bn1))
        out = self.stateless(out, self.conv2, self.bn2)
        return self.sn2(out + identity)


class Bottleneck(SpikingModule):
    """1x1, 3x3 (with the stride, as torchvision's "v1.5") and 1x1 convolutions."""

    expansion = 4

    def __init__(
        self,
        in_planes: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        neuron: NeuronFactory,
        groups: int = 1,
        base_width: int = 64,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        width = planes * base_width // 64 * groups
        self.conv1 = conv1x1(in_planes, width, bias=not batch_norm)
        self.bn1 = normalisation(width, batch_norm)
        self.sn1 = neuron()
        self.conv2 = conv3x3(width, width, stride, groups, bias=not batch_norm)
        self.bn2 = normalisation(width, batch_norm)
        self.sn2 = neuron()
        self.conv3 = conv1x1(width, planes * self.expansion, bias=not batch_norm)
        self.bn3 = normalisation(planes * self.expansion, batch_norm)
        self.sn3 = neuron()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [T, N, 4 * planes, H', W']`, without T in single-step mode."""
        identity = x if self.downsample is None else self.stateless(x, self.downsample)
        out = self.sn1(self.stateless(x, self.conv1, self.bn1))
        out = self.sn2(self.stateless(out, self.conv2, self.bn2))
        out = self.stateless(out, self.conv3, self.bn3)
        return self.sn3(out + identity)


def projection(in_planes: int, out_planes: int, stride: int, batch_norm: bool = True) -> nn.Sequential:
    """Return the shortcut with weights: a 1x1 convolution and its BN; keys `downsample.0`, `downsample.1`."""
    convolution = conv1x1(in_planes, out_planes, stride, bias=not batch_norm)
    return nn.Sequential(convolution, normalisation(out_planes, batch_norm))


def make_stage(
    block: Callable[..., nn.Module],
    in_planes: int,
    planes: int,
    out_planes: int,
    blocks: int,
    stride: int,
    shortcut: Callable[[int, int, int], nn.Module] = projection,
) -> nn.Sequential:
    """Return `blocks` blocks of one width; the first one takes the stride, and a `shortcut` where shapes change."""
    changes = stride != 1 or in_planes != out_planes
    downsample = shortcut(in_planes, out_planes, stride) if changes else None
    stage = nn.Sequential(block(in_planes, planes, stride, downsample))
    for _ in range(blocks - 1):
        stage.append(block(out_planes, planes, 1, None))
    return stage


class ResNet(SpikingNet):
    """torchvision's ResNet with neurons.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks in each of the four stages.
        groups, width_per_group: of the 3x3 convolutions in bottlenecks (basic blocks have none).
        num_classes: outputs of the classifier.
        in_channels: channels of the input.
        neuron: called once for each neuron; `nn.ReLU` gives the ANN.
        step_mode: "m" (layer-by-layer) or "s" (step-by-step).
        pool_first: whether the max pool runs before the stem's neuron, on its current, or behind it, on its spikes.
        stem: "imagenet", a 7x7 convolution of stride 2 and a max pool; or "cifar", a 3x3 convolution alone.
        batch_norm: whether a BN is behind each convolution; else these have biases.
        head: description of another classifier (`models.heads`) in place of one Linear layer.

    Raises:
        ValueError: for another `stem`.
    """

    blocks: ClassVar[dict[str, Any]] = {"basic": BasicBlock, "bottleneck": Bottleneck}

    def __init__(
        self,
        block: str,
        layers: tuple[int, int, int, int],
        groups: int = 1,
        width_per_group: int = 64,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        neuron: NeuronFactory,
        step_mode: str = "m",
        pool_first: bool = True,
        stem: str = "imagenet",
        batch_norm: bool = True,
        head: heads.Description | None = None,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
        self.pool_first = pool_first
        make_block = partial(self.blocks[block], neuron=neuron, batch_norm=batch_norm)
        if block == "bottleneck":
            make_block = partial(make_block, groups=groups, base_width=width_per_group)
        out_planes = [planes * self.blocks[block].expansion for planes in (64, 128, 256, 512)]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=not batch_norm)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1, self.maxpool = conv3x3(in_channels, 64, bias=not batch_norm), nn.Identity()
        self.bn1 = normalisation(64, batch_norm)
        self.sn1 = neuron()
        shortcut = partial(projection, batch_norm=batch_norm)
        self.layer1 = make_stage(make_block, 64, 64, out_planes[0], layers[0], 1, shortcut)
        self.layer2 = make_stage(make_block, out_planes[0], 128, out_planes[1], layers[1], 2, shortcut)
        self.layer3 = make_stage(make_block, out_planes[1], 256, out_planes[2], layers[2], 2, shortcut)
        self.layer4 = make_stage(make_block, out_planes[2], 512, out_planes[3], layers[3], 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.readout = nn.Identity()
        self.fc = heads.classifier(out_planes[3], num_classes, head)
        self.initialise(step_mode)

    def stem(self, x: Tensor) -> Tensor:
        if self.pool_first:
            return self.sn1(self.stateless(x, self.conv1, self.bn1, self.maxpool))
        return self.stateless(self.sn1(self.stateless(x, self.conv1, self.bn1)), self.maxpool)
