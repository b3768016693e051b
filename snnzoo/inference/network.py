"""The folded forms of the zoo's networks: the same module names, without BN, and residuals added by the neuron.

Each kind of block and network that can be prepared is listed in `_BLOCKS` and `_NETWORKS`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.base import StepModule
from snnzoo.errors import UsageError
from snnzoo.functional import reset_net, seq_to_ann_forward
from snnzoo.inference.folding import FoldedNeuron, fold
from snnzoo.models.base import SpikingNet
from snnzoo.models.cifar_resnet import CifarResNet, OptionAShortcut
from snnzoo.models.resnet import BasicBlock, Bottleneck, ResNet
from snnzoo.models.sew_resnet import SEWBasicBlock, SEWBottleneck, SEWResNet
from snnzoo.models.vgg import VGG, Activation
from snnzoo.threshold_node import ThresholdNode


class FoldedBlock(nn.Module):
    """A basic or bottleneck block: convolutions with a neuron each, the identity added before the last neuron."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.depth = sum(isinstance(child, nn.Conv2d) for child in block.children())
        self.downsample, shortcut_bias = _fold_shortcut(block.downsample)
        for i in range(1, self.depth + 1):
            conv, bias = fold(block.get_submodule(f"conv{i}"), block.get_submodule(f"bn{i}"))
            if i == self.depth and shortcut_bias is not None:
                bias = self.place_shortcut_bias(block, bias, shortcut_bias)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"sn{i}", _fold_neuron(block.get_submodule(f"sn{i}"), bias))

    def place_shortcut_bias(self, block: nn.Module, bias: Tensor, shortcut_bias: Tensor) -> Tensor:
        """The bias of the last neuron, of the last BN's and the shortcut's."""
        return bias + shortcut_bias

    def shortcut(self, x_seq: Tensor) -> Tensor:
        return x_seq if self.downsample is None else seq_to_ann_forward(x_seq, self.downsample)

    def current(self, x_seq: Tensor) -> Tensor:
        """What reaches the last neuron through the convolutions."""
        for i in range(1, self.depth):
            x_seq = self.get_submodule(f"sn{i}")(seq_to_ann_forward(x_seq, self.get_submodule(f"conv{i}")))
        return seq_to_ann_forward(x_seq, self.get_submodule(f"conv{self.depth}"))

    def forward(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        """`[T, N, C, H, W] -> [T, N, C', H', W']`, or the sum over time of it."""
        last = self.get_submodule(f"sn{self.depth}")
        return last(self.current(x_seq), residual=self.shortcut(x_seq), output=output)


class FoldedSEWBlock(FoldedBlock):
    """A block that joins spikes with spikes, behind its last neuron."""

    def __init__(self, block: SEWBasicBlock | SEWBottleneck) -> None:
        self.downsample_sn: nn.Module | None
        super().__init__(block)
        self.connect = block.connect
        if self.downsample is None:
            self.downsample_sn = None

    def place_shortcut_bias(self, block: nn.Module, bias: Tensor, shortcut_bias: Tensor) -> Tensor:
        self.downsample_sn = _fold_neuron(block.get_submodule("downsample_sn"), shortcut_bias)
        return bias

    def shortcut(self, x_seq: Tensor) -> Tensor:
        identity = super().shortcut(x_seq)
        return identity if self.downsample_sn is None else self.downsample_sn(identity)

    def forward(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        spikes = self.get_submodule(f"sn{self.depth}")(self.current(x_seq))
        joined = self.connect(spikes, self.shortcut(x_seq))
        return joined.sum(0) if output == "sum" else joined


class FoldedNetwork(nn.Module):
    """What every folded network shares; multi-step, with state from call to call, as the network it was made from.

    Modules are registered in the order in which they run, under the names that they have there.
    """

    readout: nn.Module

    def run(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        """From the image to the last neuron's output, `[T, N, ...]`, or its sum over time."""
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """What is read out of the last neuron's output, `[N, ...] -> [N, features]`."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Module:
        """What follows the readout."""
        raise NotImplementedError

    def forward(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [T, N, classes]`."""
        y_seq = self.run(x_seq)
        pooled = self.pool(y_seq.flatten(0, 1)).unflatten(0, y_seq.shape[:2])
        return seq_to_ann_forward(self.readout(pooled.to(self.head_dtype)), self.head)

    def run_total(self, x_seq: Tensor, is_last: bool) -> Tensor:
        """The sum over time of the last neuron's output, `[N, ...]`; in the end extrapolated as the readout does."""
        extrapolation = getattr(self.readout, "extrapolation", 0.0)
        if not (extrapolation and is_last):
            return self.run(x_seq, output="sum")
        y_seq = self.run(x_seq)
        return y_seq.sum(0) + extrapolation * y_seq[-1]

    def classify_total(self, total: Tensor, time_steps: int) -> Tensor:
        """Logits `[N, classes]` from the last neuron's outputs, summed over `time_steps`: `[N, ...]`."""
        pooled = self.pool(total).to(self.head_dtype)
        return self.head(pooled if getattr(self.readout, "kind", "mean") == "sum" else pooled / time_steps)

    @property
    def totals_suffice(self) -> bool:
        """Whether the last readout depends on the sum over time alone."""
        return not isinstance(self.readout, nn.Identity) or isinstance(self.head, nn.Linear)

    @property
    def head_dtype(self) -> torch.dtype:
        return next(self.head.parameters()).dtype


class FoldedResNet(FoldedNetwork):
    """torchvision's ResNet, and those for CIFAR, which have no max pool."""

    def __init__(self, net: ResNet | CifarResNet) -> None:
        super().__init__()
        self.conv1, bias = fold(net.conv1, net.bn1)
        self.maxpool = copy.deepcopy(getattr(net, "maxpool", nn.Identity()))
        self.pool_first = getattr(net, "pool_first", True)
        self.sn1 = _fold_neuron(net.sn1, bias)
        self.blocks: list[nn.Module] = []
        for name, child in net.named_children():
            if name.startswith("layer"):
                stage = nn.Sequential(*(_fold_block(block) for block in child.children()))
                self.add_module(name, stage)
                self.blocks += stage
        self.avgpool, self.readout, self.fc = (copy.deepcopy(m) for m in (net.avgpool, net.readout, net.fc))

    def stem(self, x_seq: Tensor) -> Tensor:
        """From the image to the first neuron's output."""
        if not self.pool_first:
            return seq_to_ann_forward(self.sn1(seq_to_ann_forward(x_seq, self.conv1)), self.maxpool)
        # the maximum of x + bias is that of x, plus bias: the neuron adds it after the pool
        return self.sn1(seq_to_ann_forward(x_seq, [self.conv1, self.maxpool]))

    def run(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        x_seq = self.stem(x_seq)
        for block in self.blocks[:-1]:
            x_seq = block(x_seq)
        return self.blocks[-1](x_seq, output=output)

    def pool(self, x: Tensor) -> Tensor:
        return self.avgpool(x).flatten(1)

    @property
    def head(self) -> nn.Module:
        return self.fc


class FoldedVGG(FoldedNetwork):
    """Pools before a neuron commute with the bias that it adds; so do pools of sums."""

    def __init__(self, net: VGG) -> None:
        super().__init__()
        self.features, self.avgpool = _fold_chain(net.features), copy.deepcopy(net.avgpool)
        self.readout, self.classifier = copy.deepcopy(net.readout), _fold_chain(net.classifier[:-1])
        self.classifier.append(copy.deepcopy(net.classifier[-1]))
        self.pool_first = net.pool_first
        starts = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        self.units = [range(*ends) for ends in pairwise([*starts, len(self.features)])]

    def run(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        for unit in self.units:
            layers = [self.features[i] for i in unit]
            if self.pool_first:
                layers.sort(key=lambda layer: isinstance(layer, Activation))  # the neuron last
            for layer in layers:
                x_seq = (
                    layer(x_seq) if isinstance(layer, (StepModule, Activation)) else seq_to_ann_forward(x_seq, layer)
                )
        x_seq = seq_to_ann_forward(x_seq, self.avgpool).flatten(-3)
        hidden = self.classifier[1](seq_to_ann_forward(x_seq, self.classifier[0]))
        hidden = self.classifier[4](seq_to_ann_forward(hidden, self.classifier[3]))
        return hidden.sum(0) if output == "sum" else hidden

    def pool(self, x: Tensor) -> Tensor:
        return x

    @property
    def head(self) -> nn.Module:
        return self.classifier[-1]


_BLOCKS: dict[type, Any] = {
    BasicBlock: FoldedBlock,
    Bottleneck: FoldedBlock,
    SEWBasicBlock: FoldedSEWBlock,
    SEWBottleneck: FoldedSEWBlock,
}
_NETWORKS: dict[type, Any] = {
    ResNet: FoldedResNet,
    CifarResNet: FoldedResNet,
    SEWResNet: FoldedResNet,
    VGG: FoldedVGG,
}


def fold_network(net: SpikingNet) -> FoldedNetwork:
    """The folded form of a network, in float64 on its device, from a fresh state; `net` is not changed.

    Raises:
        UsageError: for a network, block or neuron that has no folded form.
    """
    if type(net) not in _NETWORKS:
        raise _unknown("network", net, _NETWORKS)
    with torch.no_grad():
        folded: FoldedNetwork = _NETWORKS[type(net)](net)
    reset_net(folded)
    return folded.eval().requires_grad_(False)


def _fold_block(block: nn.Module) -> nn.Module:
    if type(block) not in _BLOCKS:
        raise _unknown("block", block, _BLOCKS)
    return _BLOCKS[type(block)](block)


def _fold_chain(layers: Iterable[nn.Module]) -> nn.Sequential:
    """Layers in a row, each under its old number; where a BN was is an identity."""
    layers, chain, bias = list(layers), nn.Sequential(), torch.zeros(())
    for layer, after in zip_longest(layers, layers[1:]):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer, bias = fold(layer, after if isinstance(after, nn.BatchNorm2d) else None)
        elif isinstance(layer, Activation):
            layer = Activation(partial(_fold_neuron, layer.sn, bias))
        elif isinstance(layer, nn.BatchNorm2d):
            layer = nn.Identity()
        chain.append(copy.deepcopy(layer))
    return chain


def _fold_neuron(node: nn.Module, bias: Tensor) -> FoldedNeuron:
    if not isinstance(node, ThresholdNode):
        raise _unknown("neuron", node, {ThresholdNode: None})
    return FoldedNeuron(node, bias)


def _fold_shortcut(shortcut: Any) -> tuple[nn.Module | None, Tensor | None]:
    """A shortcut without BN, and the bias that it lacks then."""
    if shortcut is None:
        return None, None
    if isinstance(shortcut, OptionAShortcut):
        return copy.deepcopy(shortcut), None
    conv, bias = fold(*shortcut)
    return nn.Sequential(conv), bias


def _unknown(what: str, module: nn.Module, known: dict[type, Any]) -> UsageError:
    names = ", ".join(kind.__name__ for kind in known)
    return UsageError(
        f"no fast form of {what} {type(module).__name__} is known (only of {names}): run the network itself instead"
    )
