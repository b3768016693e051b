"""Where the neurons of a network are, and putting a coding's neurons there.

The parameters of each neuron site (`v_threshold [C]` ...) are buffers in the state_dict; what all sites share, the
coding and the readout, goes into the file's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from snnzoo.codings import RELU, Activation, Coding
from snnzoo.converted_node import ConvertedNode
from snnzoo.functional import set_step_mode
from snnzoo.layer import AccumulatingMaxPool2d, Readout
from snnzoo.models.base import SpikingNet

_SITE = re.compile(r"sn\d*")


def parameter_names(coding: Coding) -> tuple[str, ...]:
    """Return those of each neuron: biases upstream reach one with `bias_once` at every step: `offset` undoes that."""
    return ("v_threshold", "bias", "offset") if coding.bias_once else ("v_threshold", "bias")


def make_node(
    coding: Coding, parameters: Mapping[str, Tensor], *, absolute: bool, activation: Activation = RELU
) -> ConvertedNode:
    """Return the multi-step neuron with these per-channel parameters."""
    given = {name: parameters[name] for name in parameter_names(coding)}
    return ConvertedNode(coding, **given, activation=activation, absolute=absolute, step_mode="m")


def neuron_sites(net: nn.Module) -> list[str]:
    """Return the neurons' names (`sn1`, `layer1.0.sn1`, `features.1.sn` ...), in the order in which they run."""
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
    """Replace one neuron of `net`, in place."""
    parent, _, last = site.rpartition(".")
    setattr(net.get_submodule(parent), last, neuron)


def install(
    net: SpikingNet, coding: Coding, parameters: Mapping[str, Mapping[str, Tensor]], extrapolation: float = 0.0
) -> None:
    """Replace every neuron of `net` by the coding's, pools and readout with it, in place; `net` is multi-step then.

    Args:
        parameters: for each site, its per-channel parameters.
        extrapolation: of the readout.
    """
    for i, site in enumerate(neuron_sites(net)):
        set_neuron(net, site, make_node(coding, parameters[site], absolute=i == 0))
    accumulate_in_pools(net)
    net.readout = Readout(coding.readout, extrapolation=extrapolation)
    set_step_mode(net, "m")
