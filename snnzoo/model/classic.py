"""What the classic constructors share: their arguments, and habits of the networks that were trained with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from snnzoo.checkpoints import manifest
from snnzoo.errors import UsageError
from snnzoo.models import factory, registry
from snnzoo.models.base import SpikingNet
from snnzoo.models.resnet import BasicBlock, Bottleneck
from snnzoo.threshold_node import ThresholdNode

Neuron = Callable[..., nn.Module]
Network = Callable[..., SpikingNet]

# Arguments of networks; all others are the neurons'.
OF_NETWORKS = ("num_classes", "groups", "width_per_group")


def build(
    arch: str,
    neuron: Neuron | None,
    step_mode: str,
    *,
    pretrained: bool = False,
    pretrained_arch: str | None = None,
    progress: bool = True,
    T: int | None = None,
    norm_layer: Callable[[int], nn.Module] | None = None,
    zero_init_residual: bool = False,
    replace_stride_with_dilation: list[bool] | None = None,
    **kwargs: Any,
) -> SpikingNet:
    """Build model `arch` of the zoo, with max pools behind neurons where it pools before them by default.

    Args:
        neuron: called with those of `kwargs` that are not the network's.
        step_mode: "s" or "m".
        pretrained: load torchvision's weights of the ANN with these shapes (IMAGENET1K_V1).
        pretrained_arch: the ANN, if it is not called `arch`.
        progress: taken for the sake of classic code.
        T: how often a multi-step network is shown an input without time, `[N, C, H, W]`.
        norm_layer: called with a number of channels instead of `nn.BatchNorm2d`.
        zero_init_residual: begin with blocks that add nothing.
        replace_stride_with_dilation: not known here.
        kwargs: `num_classes`, `groups`, `width_per_group`, `connect` and `pool_first` of the network, and those
            of the neuron.

    Raises:
        UsageError: without a neuron, or for dilated stages.
        CheckpointError: if weights cannot be fetched or do not fit.
    """
    if neuron is None:
        kind = "single_step_neuron=neuron.IFNode" if step_mode == "s" else "multi_step_neuron=neuron.MultiStepIFNode"
        raise UsageError(f"{arch} needs neurons: give {kind}")
    if any(replace_stride_with_dilation or ()):
        raise UsageError("replace_stride_with_dilation: stages with dilated convolutions are not known here")
    of_network = {key: kwargs.pop(key) for key in (*OF_NETWORKS, "connect", "pool_first") if key in kwargs}
    neurons: list[tuple[nn.Module, Any]] = []

    def make() -> nn.Module:
        node = neuron(**kwargs)
        neurons.append((node, getattr(node, "step_mode", None)))
        return node

    net = factory.build(arch, make, step_mode=step_mode, **of_network)
    for node, own_mode in neurons:
        if own_mode and type(node).forward is not ThresholdNode.forward:  # goes through time by itself
            setattr(node, "step_mode", own_mode)  # noqa: B010 - of any class
    if norm_layer is not None:
        _replace_norms(net, norm_layer)
    if zero_init_residual:
        _begin_with_identities(net)
    if T is not None:
        net.T = T  # type: ignore[assignment]
        net.register_forward_pre_hook(_show_repeatedly)
    if pretrained:
        entry = manifest.find(pretrained_arch or arch, "IMAGENET1K_V1", registry.list_weights())
        factory.load_ann_weights(net, factory.weights_of(entry), entry.tag)
    return net


def _show_repeatedly(net: Any, inputs: tuple[Tensor, ...]) -> Tensor | None:
    (x,) = inputs
    return x.expand(net.T, *x.shape) if net.step_mode == "m" and x.ndim == 4 else None


def _replace_norms(net: nn.Module, norm_layer: Callable[[int], nn.Module]) -> None:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, norm_layer(child.num_features))


def _begin_with_identities(net: nn.Module) -> None:
    for block in net.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last: Any = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last.weight)


def described(function: Network, name: str) -> Network:
    """Return `function` under the name that it is imported by."""
    function.__name__ = function.__qualname__ = name
    return function
