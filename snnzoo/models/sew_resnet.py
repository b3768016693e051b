"""Spike-element-wise ResNets (Fang et al. 2021, arXiv 2102.04159) with the keys and shapes of torchvision's ResNets.

The shortcut joins after a block's last neuron, spikes with spikes, by a function without weights. So they
are networks to train: no ANN computes the same. The stem is the paper's, its max pool behind its neuron.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from snnzoo.models.base import NeuronFactory
from snnzoo.models.resnet import BasicBlock, Bottleneck, ResNet

Connect = Callable[[Tensor, Tensor], Tensor]


def iand(out: Tensor, identity: Tensor) -> Tensor:
    """Return `identity and not out`, of spikes."""
    return identity * (1 - out)


# ADD gives whole numbers, up to one more each block; AND and IAND keep spikes binary.
CONNECT: dict[str, Connect] = {"ADD": operator.add, "AND": operator.mul, "IAND": iand}


class SEWBasicBlock(BasicBlock):
    """Two 3x3 convolutions, each with a neuron; then `connect(out, identity)`."""

    connect: Connect = operator.add

    def __init__(
        self,
        in_planes: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        neuron: NeuronFactory,
        batch_norm: bool = True,
    ) -> None:
        super().__init__(in_planes, planes, stride, downsample, neuron, batch_norm)
        self.downsample_sn = None if downsample is None else neuron()

    def forward(self, x: Tensor) -> Tensor:
        out = self.sn1(self.stateless(x, self.conv1, self.bn1))
        out = self.sn2(self.stateless(out, self.conv2, self.bn2))
        return self.connect(out, shortcut(self, x))


class SEWBottleneck(Bottleneck):
    """1x1, 3x3 and 1x1 convolutions, each with a neuron; then `connect(out, identity)`."""

    connect: Connect = operator.add

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
        super().__init__(in_planes, planes, stride, downsample, neuron, groups, base_width, batch_norm)
        self.downsample_sn = None if downsample is None else neuron()

    def forward(self, x: Tensor) -> Tensor:
        out = self.sn1(self.stateless(x, self.conv1, self.bn1))
        out = self.sn2(self.stateless(out, self.conv2, self.bn2))
        out = self.sn3(self.stateless(out, self.conv3, self.bn3))
        return self.connect(out, shortcut(self, x))


def shortcut(block: SEWBasicBlock | SEWBottleneck, x: Tensor) -> Tensor:
    """Return the block's input, or where shapes change the spikes of its projection."""
    if block.downsample is None or block.downsample_sn is None:
        return x
    return block.downsample_sn(block.stateless(x, block.downsample))


class SEWResNet(ResNet):
    """ResNet whose blocks join spikes.

    Args:
        block, layers: as `models.resnet.ResNet`.
        connect: "ADD", "AND" or "IAND".
        kwargs: `groups`, `width_per_group`, `num_classes`, `in_channels`, `neuron`, `step_mode`, `stem`,
            `batch_norm` and `head` of `models.resnet.ResNet`.

    Raises:
        ValueError: for another `connect`.
    """

    blocks: ClassVar[dict[str, Any]] = {"basic": SEWBasicBlock, "bottleneck": SEWBottleneck}

    def __init__(self, block: str, layers: tuple[int, int, int, int], *, connect: str = "ADD", **kwargs: Any) -> None:
        if connect not in CONNECT:
            raise ValueError(f"connect must be one of {', '.join(CONNECT)}, got {connect!r}")
        super().__init__(block, layers, pool_first=False, **kwargs)
        for module in self.modules():
            if isinstance(module, (SEWBasicBlock, SEWBottleneck)):
                module.connect = CONNECT[connect]
