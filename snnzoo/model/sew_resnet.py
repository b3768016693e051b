"""Spike-element-wise ResNets by their classic constructors; keys and numbers of SpikingJelly 0.0.0.0.12.

    sew_resnet18(pretrained, progress, cnf, single_step_neuron, **kwargs)
    multi_step_sew_resnet18(pretrained, progress, T, cnf, multi_step_neuron, **kwargs)

`cnf` is "ADD", "AND" or "IAND". The other arguments: `snnzoo.model.classic.build`.
"""

from __future__ import annotations

from typing import Any

from snnzoo.model.classic import Network, Neuron, build, described
from snnzoo.models.base import SpikingNet


def _constructors(name: str, arch: str | None = None, **widths: int) -> tuple[Network, Network]:
    """Those called `name`: of the model `arch` of the zoo, with other widths."""
    arch, ann = arch or name, name.removeprefix("sew_")

    def single_step(
        pretrained: bool = False,
        progress: bool = True,
        cnf: str | None = None,
        single_step_neuron: Neuron | None = None,
        **kwargs: Any,
    ) -> SpikingNet:
        common: dict[str, Any] = {
            "pretrained": pretrained,
            "pretrained_arch": ann,
            "progress": progress,
            "connect": cnf,
            **widths,
        }
        return build(arch, single_step_neuron, "s", **common, **kwargs)

    def multi_step(
        pretrained: bool = False,
        progress: bool = True,
        T: int | None = None,
        cnf: str | None = None,
        multi_step_neuron: Neuron | None = None,
        **kwargs: Any,
    ) -> SpikingNet:
        common: dict[str, Any] = {
            "pretrained": pretrained,
            "pretrained_arch": ann,
            "progress": progress,
            "T": T,
            "connect": cnf,
            **widths,
        }
        return build(arch, multi_step_neuron, "m", **common, **kwargs)

    return described(single_step, name), described(multi_step, f"multi_step_{name}")


sew_resnet18, multi_step_sew_resnet18 = _constructors("sew_resnet18")
sew_resnet34, multi_step_sew_resnet34 = _constructors("sew_resnet34")
sew_resnet50, multi_step_sew_resnet50 = _constructors("sew_resnet50")
sew_resnet101, multi_step_sew_resnet101 = _constructors("sew_resnet101")
sew_resnet152, multi_step_sew_resnet152 = _constructors("sew_resnet152")
sew_resnext50_32x4d, multi_step_sew_resnext50_32x4d = _constructors(
    "sew_resnext50_32x4d", "sew_resnet50", groups=32, width_per_group=4
)
sew_resnext101_32x8d, multi_step_sew_resnext101_32x8d = _constructors(
    "sew_resnext101_32x8d", "sew_resnet101", groups=32, width_per_group=8
)
sew_wide_resnet50_2, multi_step_sew_wide_resnet50_2 = _constructors(
    "sew_wide_resnet50_2", "sew_resnet50", width_per_group=128
)
sew_wide_resnet101_2, multi_step_sew_wide_resnet101_2 = _constructors(
    "sew_wide_resnet101_2", "sew_resnet101", width_per_group=128
)
