"""How the neurons of a converted network send activations: the coding, and the neurons that carry it.

The parameters of each neuron site (`v_threshold [C]` ...) are buffers in the state_dict; what all
sites share (levels, gamma ...) is here, and goes into the file's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from snnzoo.errors import CheckpointError, suggestion
from snnzoo.functional import set_step_mode
from snnzoo.layer import Readout
from snnzoo.models.resnet import SpikingNet
from snnzoo.neuron import DeltaNode, RateNode


@dataclass(frozen=True)
class Coding:
    """Base class. `readout` says how outputs over time decode: their "mean" or their "sum"."""

    name: ClassVar[str]
    readout: ClassVar[str]

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        """The neuron with these per-channel parameters."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value:g}" for key, value in asdict(self).items())
        return f"{self.name}({settings})" if settings else self.name


@dataclass(frozen=True)
class RateCoding(Coding):
    """Binary spikes of an IF neuron with soft reset; their mean decodes."""

    name = "rate"
    readout = "mean"

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        return RateNode(parameters["v_threshold"])


@dataclass(frozen=True)
class DeltaCoding(Coding):
    """Graded spikes of up to `levels` levels that shrink by `gamma` each step; their sum decodes."""

    levels: int = 3
    gamma: float = 0.5

    name = "delta"
    readout = "sum"

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        return DeltaNode(
            parameters["v_threshold"],
            self.levels,
            self.gamma,
            parameters["offset"],
            differential=not encodes_input,
        )


CODINGS: dict[str, type[Coding]] = {coding.name: coding for coding in (RateCoding, DeltaCoding)}


def coding_from_dict(fields: Mapping[str, Any], source: str) -> Coding:
    """The inverse of `Coding.to_dict`.

    Raises:
        CheckpointError: for a coding that this version does not know.
    """
    settings = dict(fields)
    name = str(settings.pop("name", None))
    if name not in CODINGS:
        raise CheckpointError(f"{source}: unknown coding {name!r}: {suggestion(name, CODINGS, 'update snnzoo')}")
    try:
        return CODINGS[name](**settings)
    except TypeError as error:
        raise CheckpointError(f"{source}: coding {name}: {error}") from None


def neuron_sites(net: SpikingNet) -> list[str]:
    """Names of the network's neurons (`sn1`, `layer1.0.sn1`, ...), in the order in which they run."""
    last_names = ((name, name.rpartition(".")[2]) for name, _ in net.named_modules())
    return [name for name, last in last_names if last.startswith("sn") and last[2:].isdigit()]


def install(net: SpikingNet, coding: Coding, parameters: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replace every neuron of `net` by the coding's and set the readout, in place; `net` is multi-step then.

    Args:
        parameters: for each site, its per-channel parameters.
    """
    for i, site in enumerate(neuron_sites(net)):
        parent, _, last = site.rpartition(".")
        setattr(net.get_submodule(parent), last, coding.make_node(parameters[site], encodes_input=i == 0))
    net.readout = Readout(coding.readout)
    set_step_mode(net, "m")
