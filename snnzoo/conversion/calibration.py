"""Layer-by-layer calibration: each neuron is fitted to what reaches it when those before it are converted.

The ANN and the spiking network run side by side, segment by segment (the stem, then block by block). Only
the input of the current segment is kept, and of what reaches a neuron a random sample of positions: memory
is bounded, whatever the network's depth and the number of images. Where activations are large, as at the
front of a VGG, fewer images are run; the others join, through all that is converted, where there is room.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.codings import RELU, Activation, Coding
from snnzoo.conversion.inputs import ann_input, network_input
from snnzoo.conversion.sites import accumulate_in_pools, make_node, neuron_sites, parameter_names, set_neuron
from snnzoo.converted_node import ConvertedNode
from snnzoo.errors import SnnzooError
from snnzoo.functional import reset_net, set_step_mode
from snnzoo.models.base import SpikingNet

Segment = Callable[[Tensor], Tensor]
Parameters = dict[str, dict[str, Tensor]]
Batches = list[tuple[Tensor, Tensor]]  # inputs of a segment: the ANN's [N, ...], the spiking network's [T, N, ...]

KEPT_BYTES = 2 << 30  # inputs of a segment, of both networks: more images than fit wait for a later one
FEWEST_IMAGES = 16  # that are run even so
SAMPLED_VALUES = 1 << 23  # inputs of one neuron site, T included
SAMPLED_POSITIONS = 1 << 14  # of each channel


@dataclass
class SiteReport:
    """How well one neuron site stands for the ANN's ReLU, on the sampled positions.

    `threshold` is the median over channels; `clipped` the share of activations beyond what T steps can
    represent; `error` the squared error of the decoded output over the mean square of the ANN's
    activation; `events` the share of neurons and steps with a spike.
    """

    site: str
    channels: int
    threshold: float
    clipped: float
    error: float
    events: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Site:
    """One neuron site to fit: what reaches it, and what it should send.

    Shapes: `x_seq [T, M, C]` inputs at M sampled positions, upstream converted; `target [M, C]` the ANN's
    activations there; `peak [C]` their maximum over all positions; `percentile [C]` the percentile that
    `calibrate` was asked for, over all positions; `offset [C]` what biases add to every step;
    `activation` what the neuron stands for.
    """

    name: str
    coding: Coding
    encodes_input: bool
    x_seq: Tensor
    target: Tensor
    peak: Tensor
    percentile: Tensor
    offset: Tensor
    activation: Activation = RELU

    def parameters(self, v_threshold: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Those of the neuron with this threshold and bias `[C]`."""
        bias = torch.zeros_like(v_threshold) if bias is None else bias
        known = {"v_threshold": v_threshold, "bias": bias, "offset": self.offset}
        return {name: known[name] for name in parameter_names(self.coding)}

    def make_node(self, parameters: dict[str, Tensor]) -> ConvertedNode:
        """Return the multi-step neuron with these parameters."""
        return make_node(self.coding, parameters, absolute=self.encodes_input, activation=self.activation)

    def run(self, v_threshold: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the neuron would send: `[T, M, C]`."""
        return self.make_node(self.parameters(v_threshold, bias))(self.x_seq)

    def residual(self, v_threshold: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the decoded output would lack: `[M, C]`."""
        return self.target - self.coding.decode(self.run(v_threshold, bias))

    def report(self, parameters: dict[str, Tensor]) -> SiteReport:
        theta = parameters["v_threshold"]
        outputs = self.run(theta, parameters["bias"])
        error = (self.target - self.coding.decode(outputs)).square().sum()
        clipped = self.target > theta * self.coding.span(len(self.x_seq)) * (1 + 1e-6)
        return SiteReport(
            self.name,
            len(theta),
            theta.median().item(),
            clipped.double().mean().item(),
            (error / self.target.square().sum().clamp(min=1e-30)).item(),
            (outputs.count_nonzero() / outputs.numel()).item(),
        )


def calibrate(
    ann: SpikingNet,
    images: Tensor,
    coding: Coding,
    fit: Callable[[Site], dict[str, Tensor]],
    time_steps: int,
    *,
    batch_size: int,
    seed: int,
    percentile: float = 100.0,
    report: Callable[[int, str], None] = lambda images, where: None,
) -> tuple[Parameters, list[SiteReport]]:
    """Fit every neuron site in turn.

    Args:
        ann: ReLU network, single-step, in eval mode.
        images: calibration images, `[N, C, H, W]`, or frames of events, `[N, T, C, H, W]`.
        coding: of all neurons.
        fit: chooses the parameters of one site.
        time_steps: T that the network is meant for.
        seed: of the sampled positions.
        percentile: of each channel's activations, for `Site.percentile`.
        report: called with the number of images done, `work(...)` in all, and the layer.

    Returns:
        for each site its parameters, and its report.

    Raises:
        SnnzooError: if an activation is NaN or infinite.
    """
    snn = copy.deepcopy(ann)
    accumulate_in_pools(snn)
    set_step_mode(snn, "m")
    weight = next(ann.parameters())
    fits = images_that_fit(ann, images, time_steps)
    images = images[: max(fits.values())].to(weight.device, weight.dtype)
    batches: Batches = []
    used = 0
    passed: list[tuple[Segment, Segment]] = []
    offsets = resting_inputs(ann)
    generator = torch.Generator().manual_seed(seed)
    parameters: Parameters = {}
    reports: list[SiteReport] = []
    segments, sites = snn.segments(), neuron_sites(snn)
    with torch.inference_mode():
        for segment, ann_segment in ann.segments().items():
            for start in range(used, fits[segment], batch_size):
                part = images[start : min(start + batch_size, fits[segment])]
                x, x_seq = ann_input(part), network_input(part, coding, time_steps)
                reset_net(snn)
                for ann_before, before in passed:
                    x, x_seq = ann_before(x), before(x_seq)
                batches.append((x, x_seq))
            used = fits[segment]
            for name in _sites_in(segment, sites):
                collector = _Collector(ann.get_submodule(name), snn.get_submodule(name), percentile, generator)
                for x, x_seq in batches:
                    reset_net(snn)
                    collector.run(ann_segment, segments[segment], x, x_seq, used)
                    report(len(x), name)
                site = collector.site(name, coding, name == sites[0], offsets[name])
                parameters[name] = fit(site)
                reports.append(site.report(parameters[name]))
                set_neuron(snn, name, site.make_node(parameters[name]))
            for i, (x, x_seq) in enumerate(batches):
                reset_net(snn)
                batches[i] = ann_segment(x), segments[segment](x_seq)
                report(len(x), segment or "stem")
            passed.append((ann_segment, segments[segment]))
    return parameters, reports


def _sites_in(segment: str, sites: list[str]) -> list[str]:
    return [site for site in sites if site.rpartition(".")[0] == segment]


def work(ann: SpikingNet, images: Tensor, time_steps: int) -> int:
    """What `calibrate` reports in all."""
    sites = neuron_sites(ann)
    fits = images_that_fit(ann, images, time_steps)
    return sum(count * (len(_sites_in(segment, sites)) + 1) for segment, count in fits.items())


def images_that_fit(ann: SpikingNet, images: Tensor, time_steps: int) -> dict[str, int]:
    """How many of `images` each segment is given, so that what is kept before and after it fits `KEPT_BYTES`.

    Never fewer than the segment before it: an image stays to the end.
    """
    weight = next(ann.parameters())
    x = ann_input(images[:1].to(weight.device, weight.dtype))
    sizes: dict[str, int] = {}
    size = 0  # the images themselves are held anyway
    with torch.inference_mode():
        for name, segment in ann.segments().items():
            x = segment(x)
            size, before = x.numel() * x.element_size() * (time_steps + 1), size
            sizes[name] = max(size, before)
    fits: dict[str, int] = {}
    fewest = len(images)
    for name in reversed(sizes):
        fewest = min(fewest, max(FEWEST_IMAGES, KEPT_BYTES // sizes[name]))
        fits[name] = fewest
    return {name: fits[name] for name in sizes}


class _Collector:
    """Gathers what reaches one neuron site, batch by batch."""

    def __init__(self, relu: nn.Module, neuron: nn.Module, percentile: float, generator: torch.Generator) -> None:
        self.relu, self.neuron, self.percentile, self.generator = relu, neuron, percentile, generator
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.largest: Tensor | None = None  # [C, k], sorted

    def run(
        self,
        ann_segment: Callable[[Tensor], Tensor],
        segment: Callable[[Tensor], Tensor],
        x: Tensor,
        x_seq: Tensor,
        images: int,
    ) -> None:
        """Run one batch through a segment of both networks; `images` is the number of all images."""
        caught: dict[str, Tensor] = {}
        handles = [
            self.relu.register_forward_hook(lambda _, inputs, output: caught.update(target=output)),
            self.neuron.register_forward_hook(lambda _, inputs, output: caught.update(x_seq=inputs[0])),
        ]
        try:
            ann_segment(x)
            segment(x_seq)
        finally:
            for handle in handles:
                handle.remove()
        self._keep(caught["target"], caught["x_seq"], images)

    def _keep(self, target: Tensor, x_seq: Tensor, images: int) -> None:
        time_steps, channels = len(x_seq), target.shape[1]
        values = target.movedim(1, -1).flatten(0, -2)  # [positions, C]
        wanted = min(SAMPLED_POSITIONS, SAMPLED_VALUES // (time_steps * channels))
        count = min(len(values), math.ceil(wanted * len(target) / images))
        chosen = torch.randperm(len(values), generator=self.generator)[:count].to(values.device)
        self.targets.append(values[chosen])
        self.inputs.append(x_seq.movedim(2, -1).flatten(1, -2)[:, chosen])
        kept = math.floor(images * len(values) // len(target) * (1 - self.percentile / 100)) + 1
        candidates = values.T if self.largest is None else torch.cat([self.largest, values.T], 1)
        self.largest = candidates.topk(min(kept, candidates.shape[1]), dim=1).values

    def site(self, name: str, coding: Coding, encodes_input: bool, offset: Tensor) -> Site:
        """What was gathered."""
        assert self.largest is not None
        peak, percentile = self.largest[:, 0], self.largest[:, -1]
        if not bool(peak.isfinite().all()):
            raise SnnzooError(f"activations at {name} are NaN or infinite: check the weights and the preprocessing")
        percentile = torch.where(percentile > 0, percentile, peak)  # a channel that fires more rarely than that
        x_seq, target = torch.cat(self.inputs, 1), torch.cat(self.targets)
        return Site(name, coding, encodes_input, x_seq, target, fill_dead(peak), fill_dead(percentile), offset)


def fill_dead(thresholds: Tensor) -> Tensor:
    """Give channels that never fired on the calibration images the median threshold of their layer."""
    alive = thresholds[thresholds > 0]
    fallback = alive.median() if len(alive) else torch.ones_like(thresholds[0])
    return torch.where(thresholds > 0, thresholds, fallback)


def resting_inputs(ann: SpikingNet) -> dict[str, Tensor]:
    """What reaches each neuron when nothing fires: the sum of the biases on its way, `{site: [C]}`."""
    resting: dict[str, Tensor] = {}

    def silence(site: str) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(_: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            resting[site] = inputs[0][0].reshape(output.shape[1], -1)[:, 0].clone()
            return torch.zeros_like(output)

        return hook

    weight = next(ann.parameters())
    handles = [ann.get_submodule(site).register_forward_hook(silence(site)) for site in neuron_sites(ann)]
    try:
        with torch.inference_mode():
            ann(weight.new_zeros(1, weight.shape[1], 32, 32))
    finally:
        for handle in handles:
            handle.remove()
    return resting
