"""How the neurons of a converted network send activations: the coding, and the neurons that carry it.

The parameters of each neuron site (`v_threshold [C]` ...) are buffers in the state_dict; what all
sites share (levels, gamma ...) is here, and goes into the file's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from snnzoo.conversion.neurons import DeltaNode, DifferentialNode, RateNode, SignedNode
from snnzoo.errors import CheckpointError, suggestion
from snnzoo.functional import set_step_mode
from snnzoo.layer import AccumulatingMaxPool2d, Readout
from snnzoo.models.base import SpikingNet

_SITE = re.compile(r"sn\d*")


@dataclass(frozen=True)
class Coding:
    """Base class. `readout` says how outputs over time decode: their "mean" or their "sum"."""

    name: ClassVar[str]
    readout: ClassVar[str]
    spikes: ClassVar[str]

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        """The neuron with these per-channel parameters."""
        raise NotImplementedError

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Of each neuron: biases upstream reach a differential one at every step, and `offset` undoes that."""
        return ("v_threshold", "bias", "offset") if self.readout == "sum" else ("v_threshold", "bias")

    @property
    def event_bits(self) -> int:
        """Bits of an event's size, its sign not counted: 1 for binary and ternary spikes."""
        return 1

    def span(self, time_steps: int) -> float:
        """The largest activation that `time_steps` steps can represent, in units of `v_threshold`."""
        raise NotImplementedError

    def decode(self, outputs: Tensor) -> Tensor:
        """What all of `outputs [T, ...]` mean."""
        return outputs.mean(0) if self.readout == "mean" else outputs.sum(0)

    def make_readout(self) -> Readout:
        """What decodes the last neurons' outputs, after each step."""
        return Readout(self.readout)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value:g}" for key, value in asdict(self).items() if value)
        return f"{self.name}({settings})" if settings else self.name


@dataclass(frozen=True)
class RateCoding(Coding):
    """Binary spikes of an IF neuron with soft reset; their mean decodes."""

    name = "rate"
    readout = "mean"
    spikes = "binary spikes"

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        return RateNode(parameters["v_threshold"], parameters["bias"])

    def span(self, time_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class SignedCoding(Coding):
    """Ternary spikes of an IF neuron that can take spikes back; their mean decodes."""

    name = "signed"
    readout = "mean"
    spikes = "ternary spikes"

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        return SignedNode(parameters["v_threshold"], parameters["bias"])

    def span(self, time_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class DeltaCoding(Coding):
    """Graded spikes of up to `levels` levels that shrink by `gamma` each step; their sum decodes.

    In a deep network the last spikes come before their causes have all arrived. So the readout adds those of the
    last step `lead` times more: it extrapolates.
    """

    levels: int = 3
    gamma: float = 0.5
    lead: float = 0.0

    name = "delta"
    readout = "sum"

    @property
    def spikes(self) -> str:  # type: ignore[override]
        return "ternary spikes" if self.levels == 1 else f"graded spikes of up to {self.levels} levels"

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        theta, bias, offset = (parameters[name] for name in self.parameter_names)
        return DeltaNode(theta, self.levels, self.gamma, bias, offset, differential=not encodes_input)

    def make_readout(self) -> Readout:
        return Readout(self.readout, lead=self.lead)

    @property
    def event_bits(self) -> int:
        return self.levels.bit_length()  # sizes 1 to K

    def span(self, time_steps: int) -> float:
        return self.levels * sum(self.gamma**t for t in range(time_steps))


@dataclass(frozen=True)
class DifferentialCoding(Coding):
    """Graded spikes, powers of two times a threshold; their sum decodes."""

    levels: int = 8

    name = "differential"
    readout = "sum"

    @property
    def spikes(self) -> str:  # type: ignore[override]
        return f"graded spikes of {self.levels} sizes"

    def make_node(self, parameters: Mapping[str, Tensor], encodes_input: bool) -> nn.Module:
        theta, bias, offset = (parameters[name] for name in self.parameter_names)
        return DifferentialNode(theta, self.levels, bias, offset, differential=not encodes_input)

    @property
    def event_bits(self) -> int:
        return max(1, (self.levels - 1).bit_length())  # which of n sizes

    def span(self, time_steps: int) -> float:
        return float(time_steps)


CODINGS: dict[str, type[Coding]] = {
    coding.name: coding for coding in (RateCoding, SignedCoding, DeltaCoding, DifferentialCoding)
}


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


def neuron_sites(net: nn.Module) -> list[str]:
    """Names of the network's neurons (`sn1`, `layer1.0.sn1`, `features.1.sn` ...), in the order in which they run."""
    return [name for name, _ in net.named_modules() if _SITE.fullmatch(name.rpartition(".")[2])]


def accumulate_in_pools(net: SpikingNet) -> None:
    """Make every max pool that sees spikes pool what they sum up to, in place: see `AccumulatingMaxPool2d`.

    A pool before the first neuron sees the image itself, and stays.
    """
    for name in net.pools_of_spikes():
        parent, _, last = name.rpartition(".")
        plain: Any = net.get_submodule(name)
        pool = AccumulatingMaxPool2d(plain.kernel_size, plain.stride, plain.padding, plain.dilation, plain.ceil_mode)
        setattr(net.get_submodule(parent), last, pool)
        set_step_mode(pool, "m")


def set_neuron(net: SpikingNet, site: str, neuron: nn.Module) -> None:
    """Replace one neuron of `net`, in place; it runs multi-step."""
    parent, _, last = site.rpartition(".")
    setattr(net.get_submodule(parent), last, neuron)
    set_step_mode(neuron, "m")


def install(net: SpikingNet, coding: Coding, parameters: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replace every neuron of `net` by the coding's, pools and readout with it, in place; `net` is multi-step then.

    Args:
        parameters: for each site, its per-channel parameters.
    """
    for i, site in enumerate(neuron_sites(net)):
        set_neuron(net, site, coding.make_node(parameters[site], encodes_input=i == 0))
    accumulate_in_pools(net)
    net.readout = coding.make_readout()
    set_step_mode(net, "m")
