"""torchvision's ResNets with neurons, by their classic constructors; keys and numbers of SpikingJelly 0.0.0.0.12.

    spiking_resnet18(pretrained, progress, single_step_neuron, **kwargs)
    multi_step_spiking_resnet18(pretrained, progress, T, multi_step_neuron, **kwargs)

The max pool is behind the first neuron. Arguments: `snnzoo.model.classic.build`.
"""

from __future__ import annotations

from typing import Any

from snnzoo.model.classic import Network, Neuron, build, described
from snnzoo.models.base import SpikingNet


def _constructors(arch: str) -> tuple[Network, Network]:
    def single_step(
        pretrained: bool = False, progress: bool = True, single_step_neuron: Neuron | None = None, **kwargs: Any
    ) -> SpikingNet:
        common: dict[str, Any] = {"pretrained": pretrained, "progress": progress, "pool_first": False}
        return build(arch, single_step_neuron, "s", **common, **kwargs)

    def multi_step(
        pretrained: bool = False,
        progress: bool = True,
        T: int | None = None,
        multi_step_neuron: Neuron | None = None,
        **kwargs: Any,
    ) -> SpikingNet:
        common: dict[str, Any] = {"pretrained": pretrained, "progress": progress, "T": T, "pool_first": False}
        return build(arch, multi_step_neuron, "m", **common, **kwargs)

    return described(single_step, f"spiking_{arch}"), described(multi_step, f"multi_step_spiking_{arch}")


spiking_resnet18, multi_step_spiking_resnet18 = _constructors("resnet18")
spiking_resnet34, multi_step_spiking_resnet34 = _constructors("resnet34")
spiking_resnet50, multi_step_spiking_resnet50 = _constructors("resnet50")
spiking_resnet101, multi_step_spiking_resnet101 = _constructors("resnet101")
spiking_resnet152, multi_step_spiking_resnet152 = _constructors("resnet152")
spiking_resnext50_32x4d, multi_step_spiking_resnext50_32x4d = _constructors("resnext50_32x4d")
spiking_resnext101_32x8d, multi_step_spiking_resnext101_32x8d = _constructors("resnext101_32x8d")
spiking_wide_resnet50_2, multi_step_spiking_wide_resnet50_2 = _constructors("wide_resnet50_2")
spiking_wide_resnet101_2, multi_step_spiking_wide_resnet101_2 = _constructors("wide_resnet101_2")
