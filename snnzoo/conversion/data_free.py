"""Thresholds without images: what batch normalisation says about the activations after it.

A BN output is taken as normal with the BN's own mean (`bias`) and standard deviation (`weight`), channel by
channel and independent of the identity that is added to it. What a ReLU passes on has the moments of the
rectified normal distribution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.codings import Coding
from snnzoo.conversion.calibration import Parameters, fill_dead, resting_inputs
from snnzoo.conversion.sites import neuron_sites, parameter_names
from snnzoo.models.base import SpikingNet
from snnzoo.models.cifar_resnet import OptionAShortcut

DEVIATIONS = 4.0  # of the normal distribution, up to which an activation is represented


def data_free_parameters(ann: SpikingNet, coding: Coding) -> Parameters:
    """For each neuron site its parameters, with thresholds from the BN statistics and no bias correction."""
    offsets = resting_inputs(ann)
    parameters = {}
    for site, (mean, deviation) in activation_moments(ann).items():
        peak = fill_dead((mean + DEVIATIONS * deviation).clamp(min=0))
        known = {"v_threshold": peak / coding.span(1), "bias": torch.zeros_like(peak), "offset": offsets[site]}
        parameters[site] = {name: known[name] for name in parameter_names(coding)}
    return parameters


def activation_moments(ann: SpikingNet) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of what reaches each neuron site, `{site: ([C], [C])}`."""
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    sites = neuron_sites(ann)
    passed = torch.empty(0), torch.empty(0)
    for segment in ann.segments():
        block: Any = ann.get_submodule(segment)
        own = [site for site in sites if site.rpartition(".")[0] == segment]
        for site in own:
            moments[site] = _normalised(getattr(block, f"bn{site.rpartition('.sn' if segment else 'sn')[2]}"))
        if segment:
            mean, deviation = _shortcut(block.downsample, *passed)
            last_mean, last_deviation = moments[own[-1]]
            moments[own[-1]] = last_mean + mean, (last_deviation.square() + deviation.square()).sqrt()
        passed = rectified(*moments[own[-1]])
    return moments


def rectified(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of max(x, 0) for normal x."""
    deviation = deviation.clamp(min=1e-12)
    z = mean / deviation
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    share = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    first = mean * share + deviation * density
    second = (mean.square() + deviation.square()) * share + mean * deviation * density
    return first, (second - first.square()).clamp(min=0).sqrt()


def _normalised(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return bn.bias.detach(), bn.weight.detach().abs()


def _shortcut(downsample: nn.Module | None, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """What the shortcut makes of the moments of a block's input."""
    if downsample is None:
        return mean, deviation
    if isinstance(downsample, OptionAShortcut):
        padding = (downsample.padding, downsample.padding)
        return nn.functional.pad(mean, padding), nn.functional.pad(deviation, padding)
    projection: Any = downsample
    return _normalised(projection[1])
