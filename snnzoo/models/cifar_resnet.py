"""Spiking ResNets for CIFAR: resnet20/32/44/56/110/1202 (He et al. 2015, arXiv 1512.03385, section 4.2).

A 3x3 stem, three stages of 16, 32 and 64 channels. Where a stage begins, the shortcut has either no
weights (option A: every second pixel, channels padded with zeros, as in the paper) or a 1x1
convolution (option B, keys `downsample.0`, `downsample.1`).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from snnzoo.models import heads
from snnzoo.models.base import NeuronFactory, SpikingNet
from snnzoo.models.resnet import BasicBlock, conv3x3, make_stage, normalisation, projection


class OptionAShortcut(nn.Module):
    """Subsample by 2 and pad channels with zeros on both sides: `[N, C, H, W] -> [N, 2C, H/2, W/2]`."""

    def __init__(self, in_planes: int, out_planes: int, stride: int = 2) -> None:
        super().__init__()
        self.stride, self.padding = stride, (out_planes - in_planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(SpikingNet):
    """ResNet of depth 6n + 2 for 32x32 images.

    Args:
        blocks: n, blocks in each of the three stages.
        option: shortcut "A" (no weights) or "B" (1x1 convolution).
        num_classes, in_channels, neuron, step_mode, batch_norm, head: as `models.resnet.ResNet`.

    Raises:
        ValueError: if `option` is neither "A" nor "B".
    """

    def __init__(
        self,
        blocks: int,
        *,
        option: str = "A",
        num_classes: int = 10,
        in_channels: int = 3,
        neuron: NeuronFactory,
        step_mode: str = "m",
        batch_norm: bool = True,
        head: heads.Description | None = None,
    ) -> None:
        super().__init__()
        if option not in ("A", "B"):
            raise ValueError(f"option must be 'A' or 'B', got {option!r}")
        self.conv1 = conv3x3(in_channels, 16, bias=not batch_norm)
        self.bn1 = normalisation(16, batch_norm)
        self.sn1 = neuron()
        shortcut = OptionAShortcut if option == "A" else partial(projection, batch_norm=batch_norm)
        make_block = partial(BasicBlock, neuron=neuron, batch_norm=batch_norm)
        self.layer1 = make_stage(make_block, 16, 16, 16, blocks, 1, shortcut)
        self.layer2 = make_stage(make_block, 16, 32, 32, blocks, 2, shortcut)
        self.layer3 = make_stage(make_block, 32, 64, 64, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.readout = nn.Identity()
        self.fc = heads.classifier(64, num_classes, head)
        self.initialise(step_mode)

    def stem(self, x: Tensor) -> Tensor:
        return self.sn1(self.stateless(x, self.conv1, self.bn1))
