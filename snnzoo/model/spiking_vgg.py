"""torchvision's VGGs with neurons, by their classic constructors; keys and numbers of SpikingJelly 0.0.0.0.12.

    spiking_vgg11(pretrained, progress, single_step_neuron, **kwargs)
    spiking_vgg11_bn(pretrained, progress, norm_layer, single_step_neuron, **kwargs)
    multi_step_spiking_vgg11(pretrained, progress, T, multi_step_neuron, **kwargs)
    multi_step_spiking_vgg11_bn(pretrained, progress, norm_layer, T, multi_step_neuron, **kwargs)

Max pools are behind neurons, and dropout draws a mask for each step. Arguments: `snnzoo.model.classic.build`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from snnzoo.model.classic import Network, Neuron, build, described
from snnzoo.models.base import SpikingNet
from snnzoo.models.vgg import Activation

_OURS = re.compile(r"\b((?:features|classifier)\.\d+)\.sn\.")  # the neurons' keys
_THEIRS = re.compile(r"\b((?:features|classifier)\.\d+)\.")


def _build(arch: str, neuron: Neuron | None, step_mode: str, init_weights: bool = True, **kwargs: Any) -> SpikingNet:
    net = build(arch, neuron, step_mode, pool_first=False, **kwargs)
    classifier: Any = net.classifier
    for i in (2, 5):
        classifier[i] = nn.Dropout()
    net.register_state_dict_post_hook(_name_theirs)
    net.register_load_state_dict_pre_hook(_name_ours)
    return net


def _name_theirs(net: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    for key in list(state_dict):
        if key.startswith(prefix):
            state_dict[_OURS.sub(r"\1.", key)] = state_dict.pop(key)


def _name_ours(net: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        place = _THEIRS.match(name)
        if key.startswith(prefix) and place and isinstance(net.get_submodule(place[1]), Activation):
            state_dict[f"{prefix}{place[1]}.sn.{name[place.end() :]}"] = state_dict.pop(key)


def _plain(arch: str) -> tuple[Network, Network]:
    def single_step(
        pretrained: bool = False, progress: bool = True, single_step_neuron: Neuron | None = None, **kwargs: Any
    ) -> SpikingNet:
        return _build(arch, single_step_neuron, "s", pretrained=pretrained, progress=progress, **kwargs)

    def multi_step(
        pretrained: bool = False,
        progress: bool = True,
        T: int | None = None,
        multi_step_neuron: Neuron | None = None,
        **kwargs: Any,
    ) -> SpikingNet:
        return _build(arch, multi_step_neuron, "m", pretrained=pretrained, progress=progress, T=T, **kwargs)

    return described(single_step, f"spiking_{arch}"), described(multi_step, f"multi_step_spiking_{arch}")


def _with_norm(arch: str) -> tuple[Network, Network]:
    def single_step(
        pretrained: bool = False,
        progress: bool = True,
        norm_layer: Callable[[int], nn.Module] | None = None,
        single_step_neuron: Neuron | None = None,
        **kwargs: Any,
    ) -> SpikingNet:
        common: dict[str, Any] = {"pretrained": pretrained, "progress": progress, "norm_layer": norm_layer}
        return _build(arch, single_step_neuron, "s", **common, **kwargs)

    def multi_step(
        pretrained: bool = False,
        progress: bool = True,
        norm_layer: Callable[[int], nn.Module] | None = None,
        T: int | None = None,
        multi_step_neuron: Neuron | None = None,
        **kwargs: Any,
    ) -> SpikingNet:
        common: dict[str, Any] = {"pretrained": pretrained, "progress": progress, "norm_layer": norm_layer, "T": T}
        return _build(arch, multi_step_neuron, "m", **common, **kwargs)

    return described(single_step, f"spiking_{arch}"), described(multi_step, f"multi_step_spiking_{arch}")


spiking_vgg11, multi_step_spiking_vgg11 = _plain("vgg11")
spiking_vgg13, multi_step_spiking_vgg13 = _plain("vgg13")
spiking_vgg16, multi_step_spiking_vgg16 = _plain("vgg16")
spiking_vgg19, multi_step_spiking_vgg19 = _plain("vgg19")
spiking_vgg11_bn, multi_step_spiking_vgg11_bn = _with_norm("vgg11_bn")
spiking_vgg13_bn, multi_step_spiking_vgg13_bn = _with_norm("vgg13_bn")
spiking_vgg16_bn, multi_step_spiking_vgg16_bn = _with_norm("vgg16_bn")
spiking_vgg19_bn, multi_step_spiking_vgg19_bn = _with_norm("vgg19_bn")
