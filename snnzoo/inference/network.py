"""The folded forms of the zoo's networks: the same module names, without BN, and residuals added by the neuron.

Each kind of block and network that can be prepared is listed in `_BLOCKS` and `_NETWORKS`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.errors import UsageError
from snnzoo.functional import seq_to_ann_forward
from snnzoo.inference.folding import FoldedNeuron, fold
from snnzoo.models.cifar_resnet import CifarResNet, OptionAShortcut
from snnzoo.models.resnet import BasicBlock, Bottleneck, ResNet, SpikingNet
from snnzoo.neuron import ThresholdNode


class FoldedResidualBlock(nn.Module):
    """A basic or bottleneck block: convolutions with a neuron each, the identity added before the last neuron."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.depth = sum(isinstance(child, nn.Conv2d) for child in block.children())
        self.downsample, shortcut_bias = _fold_shortcut(block.downsample)
        for i in range(1, self.depth + 1):
            conv, bias = fold(block.get_submodule(f"conv{i}"), block.get_submodule(f"bn{i}"))  # type: ignore[arg-type]
            if i == self.depth and shortcut_bias is not None:
                bias = bias + shortcut_bias
            self.add_module(f"conv{i}", conv)
            self.add_module(f"sn{i}", _fold_neuron(block.get_submodule(f"sn{i}"), bias))

    def forward(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        """`[T, N, C, H, W] -> [T, N, C', H', W']`, or the sum over time of it."""
        identity = x_seq if self.downsample is None else seq_to_ann_forward(x_seq, self.downsample)
        for i in range(1, self.depth):
            x_seq = self.get_submodule(f"sn{i}")(seq_to_ann_forward(x_seq, self.get_submodule(f"conv{i}")))
        current = seq_to_ann_forward(x_seq, self.get_submodule(f"conv{self.depth}"))
        return self.get_submodule(f"sn{self.depth}")(current, residual=identity, output=output)


class FoldedNetwork(nn.Module):
    """What every folded network shares; multi-step, with state from call to call, as the network it was made from."""

    readout: nn.Module

    def fold_rest(self, net: SpikingNet) -> None:
        """Add what comes after the stem: modules are registered in the order in which they run."""
        for name, child in net.named_children():
            if name.startswith("layer"):
                self.add_module(name, nn.Sequential(*(_fold_block(block) for block in child.children())))
        self.avgpool, self.readout, self.fc = (copy.deepcopy(m).eval() for m in (net.avgpool, net.readout, net.fc))
        self.requires_grad_(False)

    def stem(self, x_seq: Tensor) -> Tensor:
        """From the image to the first neuron's output."""
        raise NotImplementedError

    def features(self, x_seq: Tensor, output: str = "sequence") -> Tensor:
        """From the image to the last neuron's output, `[T, N, C, H, W]`, or its sum over time."""
        stages = (module for name, module in self.named_children() if name.startswith("layer"))
        *blocks, last = (block for stage in stages for block in stage.children())
        x_seq = self.stem(x_seq)
        for block in blocks:
            x_seq = block(x_seq)
        return last(x_seq, output=output)

    def forward(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, H, W] -> [T, N, classes]`."""
        pooled = seq_to_ann_forward(self.features(x_seq), self.avgpool).flatten(-3)
        return seq_to_ann_forward(self.readout(pooled.to(self.head_dtype)), self.fc)

    def classify_total(self, total: Tensor, time_steps: int) -> Tensor:
        """Logits `[N, classes]` from the last neuron's outputs, summed over `time_steps`: `[N, C, H, W]`."""
        pooled = self.avgpool(total).flatten(-3).to(self.head_dtype)
        return self.fc(pooled if getattr(self.readout, "kind", "mean") == "sum" else pooled / time_steps)

    @property
    def totals_suffice(self) -> bool:
        """Whether the last readout depends on the sum over time alone."""
        return not isinstance(self.readout, nn.Identity) or isinstance(self.fc, nn.Linear)

    @property
    def head_dtype(self) -> torch.dtype:
        return next(self.fc.parameters()).dtype


class FoldedResNet(FoldedNetwork):
    """torchvision's ResNet and those for CIFAR, which have no max pool."""

    def __init__(self, net: ResNet | CifarResNet) -> None:
        super().__init__()
        self.conv1, bias = fold(net.conv1, net.bn1)
        self.maxpool = copy.deepcopy(getattr(net, "maxpool", nn.Identity()))
        self.sn1 = _fold_neuron(net.sn1, bias)
        self.fold_rest(net)

    def stem(self, x_seq: Tensor) -> Tensor:
        # the maximum of x + bias is that of x, plus bias: the neuron adds it after the pool
        return self.sn1(seq_to_ann_forward(x_seq, [self.conv1, self.maxpool]))


_BLOCKS: dict[type, Any] = {BasicBlock: FoldedResidualBlock, Bottleneck: FoldedResidualBlock}
_NETWORKS: dict[type, Any] = {ResNet: FoldedResNet, CifarResNet: FoldedResNet}


def fold_network(net: SpikingNet) -> FoldedNetwork:
    """The folded form of a network, in float64 on its device; `net` is not changed.

    Raises:
        UsageError: for a network, block or neuron that has no folded form.
    """
    if type(net) not in _NETWORKS:
        raise _unknown("network", net, _NETWORKS)
    with torch.no_grad():
        folded: FoldedNetwork = _NETWORKS[type(net)](net)
        return folded.eval()


def _fold_block(block: nn.Module) -> nn.Module:
    if type(block) not in _BLOCKS:
        raise _unknown("block", block, _BLOCKS)
    return _BLOCKS[type(block)](block)


def _fold_neuron(node: nn.Module, bias: Tensor) -> FoldedNeuron:
    if not isinstance(node, ThresholdNode):
        raise _unknown("neuron", node, {ThresholdNode: None})
    return FoldedNeuron(node, bias)


def _fold_shortcut(shortcut: Any) -> tuple[nn.Module | None, Tensor | None]:
    """A shortcut without BN, and the bias that it lacks then."""
    if shortcut is None:
        return None, None
    if isinstance(shortcut, OptionAShortcut):
        return copy.deepcopy(shortcut).eval(), None
    conv, bias = fold(*shortcut)
    return nn.Sequential(conv), bias


def _unknown(what: str, module: nn.Module, known: dict[type, Any]) -> UsageError:
    names = ", ".join(kind.__name__ for kind in known)
    return UsageError(
        f"no fast form of {what} {type(module).__name__} is known (only of {names}): run the network itself instead"
    )
