"""Calibration: one walk over the graph, both networks side by side, each neuron fitted to what reaches it.

A node is computed once for the ANN and once for the spiking network, which runs on accumulated signals
(`graph.accumulated`); values are freed after their last use. A neuron is fitted to a random sample of positions. Where
values are large, as at the front of a network, fewer images are run; the others join, through all that is converted,
where there is room. So memory is bounded, whatever the depth and the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import Activation, Coding
from snnzoo.conversion.inputs import ann_input, network_input
from snnzoo.conversion.neurons import Parameters, make_node
from snnzoo.errors import SnnzooError
from snnzoo.graph.accumulated import accumulate, current
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.network import is_static, node_each_step
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import run_graph, run_node

KEPT_BYTES = 2 << 30  # values of both networks that are held at a time: more images than fit wait for a later node
FEWEST_IMAGES = 16  # that are run even so
SAMPLED_VALUES = 1 << 22  # inputs of one site, T included
SAMPLED_POSITIONS = 1 << 13  # of each channel


@dataclass
class SiteReport:
    """How well one neuron stands for the ANN's activation, on the sampled positions.

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
    """One activation to fit a neuron to: what reaches it, and what it should send.

    Shapes: `x_seq [T, M, C]` what a neuron takes at M sampled positions, everything before it converted;
    `target [M, C]` the ANN's activations there; `peak [C]` their largest magnitude over all positions;
    `percentile [C]` the percentile that `calibrate` was asked for, over all positions.
    """

    name: str
    coding: Coding
    activation: Activation
    x_seq: Tensor
    target: Tensor
    peak: Tensor
    percentile: Tensor

    def parameters(self, v_threshold: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return those of the neuron with this threshold and bias `[C]`."""
        return {"v_threshold": v_threshold, "bias": torch.zeros_like(v_threshold) if bias is None else bias}

    def run(self, v_threshold: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what the neuron would send: `[T, M, C]`."""
        return make_node(self.coding, self.activation, self.parameters(v_threshold, bias))(self.x_seq)

    def residual(self, v_threshold: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what the decoded output would lack: `[M, C]`."""
        return self.target - self.coding.decode(self.run(v_threshold, bias))

    def report(self, parameters: dict[str, Tensor]) -> SiteReport:
        """Return how well the neuron with these parameters does."""
        theta = parameters["v_threshold"]
        outputs = self.run(theta, parameters["bias"])
        error = (self.target - self.coding.decode(outputs)).square().sum()
        clipped = self.target.abs() > theta * self.coding.span(len(self.x_seq)) * (1 + 1e-6)
        return SiteReport(
            self.name,
            len(theta),
            theta.median().item(),
            clipped.double().mean().item(),
            (error / self.target.square().sum().clamp(min=1e-30)).item(),
            (outputs.count_nonzero() / outputs.numel()).item(),
        )


def calibrate(
    graph: Graph,
    tensors: Mapping[str, Tensor],
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
    """Fit every neuron in turn.

    Args:
        graph: of the ANN.
        tensors: of its state_dict, floating point.
        images: calibration images, `[N, C, H, W]`, or frames of events, `[N, T, C, H, W]`.
        coding: of all neurons.
        fit: chooses the parameters of one site.
        time_steps: T that the network is meant for.
        batch_size: images that run at a time.
        seed: of the sampled positions.
        percentile: of each channel's activations, for `Site.percentile`.
        report: called with the number of images that a node has run, `work(...)` in all, and where it is.

    Returns:
        for each site its parameters, and its report.

    Raises:
        SnnzooError: if an activation is NaN or infinite.
    """
    walk = _Walk(graph, tensors, coding, time_steps)
    fits = images_that_fit(graph, tensors, images, time_steps)
    generator = torch.Generator().manual_seed(seed)
    reports: list[SiteReport] = []
    with torch.inference_mode():
        for place, node in enumerate(graph):
            while walk.images < fits[node.name]:
                walk.join(images[walk.images : min(walk.images + batch_size, fits[node.name])], place)
            if node.name in walk.sites:
                site = walk.collect(node, percentile, generator)
                parameters = fit(site)
                reports.append(site.report(parameters))
                walk.parameters[node.path] = parameters
            walk.run(node)
            report(walk.images, node.path or node.name)
    return walk.parameters, reports


def work(graph: Graph, tensors: Mapping[str, Tensor], images: Tensor, time_steps: int) -> int:
    """Return what `calibrate` reports in all."""
    return sum(images_that_fit(graph, tensors, images, time_steps).values())


def images_that_fit(graph: Graph, tensors: Mapping[str, Tensor], images: Tensor, time_steps: int) -> dict[str, int]:
    """Return how many of `images` each node is given, so that all that is held fits `KEPT_BYTES`.

    Never fewer than the node before it: an image stays to the end.
    """
    held = {INPUT: 0}  # the images themselves are there anyway
    sizes: dict[str, int] = {}

    def measure(node: Node, value: Tensor) -> None:
        copies = 1 if node.name in graph.before_neurons else time_steps + 1
        held[node.name] = value.numel() * value.element_size() * copies
        sizes[node.name] = sum(held.values())
        for name in graph.last_uses[node.name]:
            del held[name]

    first = next(iter(tensors.values()))
    with torch.inference_mode():
        run_graph(graph, tensors, ann_input(images[:1]).to(first.device, _dtype(tensors)), measure)
    fits: dict[str, int] = {}
    fewest = len(images)
    for name in reversed(sizes):
        fewest = min(fewest, max(FEWEST_IMAGES, KEPT_BYTES // max(1, sizes[name])))
        fits[name] = fewest
    return {name: fits[name] for name in sizes}


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next(value.dtype for value in tensors.values() if value.is_floating_point())


@dataclass
class _Batch:
    """The values of some images that are still needed: the ANN's `[N, ...]`, and the accumulated `[T, N, ...]`."""

    size: int
    ann: dict[str, Tensor] = field(default_factory=dict)
    snn: dict[str, Tensor] = field(default_factory=dict)


class _Walk:
    """Both networks, as far as they have been run."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], coding: Coding, time_steps: int) -> None:
        self.graph, self.tensors, self.coding, self.time_steps = graph, tensors, coding, time_steps
        self.sites = {node.name for node in graph.neurons}
        self.parameters: Parameters = {}
        self.batches: list[_Batch] = []

    @property
    def images(self) -> int:
        """How many have joined."""
        return sum(batch.size for batch in self.batches)

    def join(self, images: Tensor, place: int) -> None:
        """Take in more images, and run them through the nodes before `place`."""
        first = next(iter(self.tensors.values()))
        images = images.to(first.device, _dtype(self.tensors))
        batch = _Batch(len(images))
        batch.ann[INPUT] = ann_input(images)
        batch.snn[INPUT] = network_input(images, self.coding, self.time_steps, accumulated=True)
        for node in self.graph.nodes[:place]:
            self._run(node, batch)
        self.batches.append(batch)

    def run(self, node: Node) -> None:
        """Run a node on all images."""
        for batch in self.batches:
            self._run(node, batch)

    def _run(self, node: Node, batch: _Batch) -> None:
        of_ann = run_node(node, self.tensors, [batch.ann[name] for name in node.inputs])
        inputs = [batch.snn[name] for name in node.inputs]
        if node.name in self.sites:
            neuron = make_node(self.coding, node.activation, self.parameters[node.path])
            of_snn = accumulate(self.coding, neuron(current(self.coding, inputs[0])))
        elif node.name in self.graph.before_neurons and all(x.stride(0) == 0 for x in inputs):
            of_snn = of_ann.expand(self.time_steps, *of_ann.shape)  # a static image's are the ANN's
        else:
            of_snn = node_each_step(node, self.tensors, inputs)
        batch.ann[node.name], batch.snn[node.name] = of_ann, of_snn
        for name in self.graph.last_uses[node.name]:
            del batch.ann[name], batch.snn[name]

    def collect(self, node: Node, percentile: float, generator: torch.Generator) -> Site:
        """Sample what reaches an activation."""
        total = self.images
        inputs, targets = [], []
        largest: Tensor | None = None  # [C, k], sorted
        for batch in self.batches:
            before = batch.ann[node.inputs[0]]
            values = node.activation(before).movedim(1, -1).flatten(0, -2)  # [positions, C]
            channels = values.shape[1]
            wanted = min(SAMPLED_POSITIONS, SAMPLED_VALUES // (self.time_steps * channels))
            count = min(len(values), math.ceil(wanted * batch.size / total))
            chosen = torch.randperm(len(values), generator=generator)[:count].to(values.device)
            targets.append(values[chosen])
            inputs.append(_positions(batch.snn[node.inputs[0]], chosen))
            kept = math.floor(total * len(values) // batch.size * (1 - percentile / 100)) + 1
            magnitudes = values.abs().T if kept > 1 else values.abs().amax(0).unsqueeze(1)
            candidates = magnitudes if largest is None else torch.cat([largest, magnitudes], 1)
            largest = candidates.topk(min(kept, candidates.shape[1]), dim=1).values
        assert largest is not None
        peak, at_percentile = largest[:, 0], largest[:, -1]
        if not bool(peak.isfinite().all()):
            raise SnnzooError(
                f"activations at {node.path} are NaN or infinite: check the weights and the preprocessing"
            )
        at_percentile = torch.where(at_percentile > 0, at_percentile, peak)  # a channel that fires more rarely
        x_seq, target = current(self.coding, torch.cat(inputs, 1)), torch.cat(targets)
        return Site(node.path, self.coding, node.activation, x_seq, target, fill_dead(peak), fill_dead(at_percentile))


def _positions(x_seq: Tensor, chosen: Tensor) -> Tensor:
    """`[T, N, C, ...]` at some positions, `[T, M, C]`; what is static stays so."""
    if is_static(x_seq):
        once = _positions(x_seq[:1], chosen)
        return once.expand(len(x_seq), *once.shape[1:])
    return x_seq.movedim(2, -1).flatten(1, -2)[:, chosen]


def fill_dead(thresholds: Tensor) -> Tensor:
    """Give channels that never fired on the calibration images the median threshold of their layer."""
    alive = thresholds[thresholds > 0]
    fallback = alive.median() if len(alive) else torch.ones_like(thresholds[0])
    return torch.where(thresholds > 0, thresholds, fallback)
