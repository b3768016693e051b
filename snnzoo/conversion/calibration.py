"""Calibration: one walk over the graph, both networks side by side, each neuron fitted to what reaches it.

The spiking network is the one that will be run: folded, with neurons that are set when their turn comes. A node is
computed once for each network; values are freed after their last use. A neuron is fitted to a random sample of
positions. Where values are large, as at the front of a network, fewer images are run; the others join, through all that
is converted, where there is room. So memory is bounded, whatever the depth and the number of images.

Nothing that the walk does waits for a value to be known: on a GPU it is launched as a whole. (Several processes do
wait for each other, at each neuron; and so does the choice of a gamma for each.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnzoo import ops
from snnzoo.codings import Activation, Coding
from snnzoo.conversion.inputs import ann_input, network_input
from snnzoo.conversion.neurons import Gammas, Parameters, install
from snnzoo.distributed import ALONE, Rank
from snnzoo.errors import SnnzooError
from snnzoo.functional import reset_net
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.network import Ann, is_static
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import run_node
from snnzoo.graph.shapes import site_channels, value_shapes
from snnzoo.inference.network import FoldedNetwork

KEPT_BYTES = 1 << 30  # values of both networks that are held at a time: more images than fit wait for a later node
FEWEST_IMAGES = 8  # that are run even so
RUNNING_BYTES = 1 << 28  # of the largest value of a batch, which is run at a time: beside it is what makes it
SAMPLED_VALUES = 1 << 22  # inputs of one site, T included
SAMPLED_POSITIONS = 1 << 11  # of each channel
VALUES_AT_ONCE = 1 << 22  # inputs of neurons that a fit runs at a time
COST_OF_NEURON, COST_OF_COPY = 300, 50  # of a value and step, in multiply-accumulates of convolutions
COST_OF_FIT = 8  # runs of the neuron
COST_OF_SITE = 4e8  # whatever its size: what a fit launches


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
    """One activation to fit a neuron to: what reaches it, and what it should send. A fit may change the coding's gamma.

    Shapes: `x_seq [T, M, C]` what a neuron takes at M sampled positions, everything before it converted (where signals
    are changes, what they add up to); `target [M, C]` the ANN's activations there; `peak [C]` their largest magnitude
    over all positions; `percentile [C]` the percentile that `Calibrator.run` was asked for, over all positions.
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
        return {"v_threshold": v_threshold, "bias": self._head_start(v_threshold) + (0.0 if bias is None else bias)}

    def _head_start(self, v_threshold: Tensor) -> Tensor:
        """What the coding wants a neuron to have been given by the last step, as a part of its bias."""
        return v_threshold * (self.coding.head_start / len(self.x_seq))

    def residual(self, v_threshold: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        """Return what the decoded output would lack: `[M, C]`."""
        bias = bias + self._head_start(v_threshold)
        return self.target - self._decoded(self._run(self.x_seq, v_threshold, bias, "sum"))

    def errors(self, v_thresholds: Tensor) -> Tensor:
        """Return the mean squared error of the decoded output with each of several thresholds `[F, C]`: `[F, C]`."""
        return torch.cat([self._error(result, shape) for result, shape in self._tried(v_thresholds, "sum")])

    def errors_and_events(self, v_thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `errors`, and how many events a neuron sends in all T steps, on average: `[F, C]` each."""
        errors, events = [], []
        for result, shape in self._tried(v_thresholds, "both"):
            assert result.sequence is not None
            errors.append(self._error(result, shape))
            sent = torch.count_nonzero(result.sequence, dim=1).sum(0) / result.sequence.shape[1]
            events.append(sent.unflatten(0, shape))
        return torch.cat(errors), torch.cat(events)

    def _tried(self, v_thresholds: Tensor, output: str) -> Iterator[tuple[ops.NeuronOutput, torch.Size]]:
        """What several thresholds `[F, C]` give, some at a time, as more channels; and the shape of these."""
        at_once = 1 if self.activation.per_channel else max(1, VALUES_AT_ONCE // self.x_seq.numel())
        for some in v_thresholds.split(at_once):
            theta = some.flatten()
            result = self._run(self.x_seq.repeat(1, 1, len(some)), theta, self._head_start(theta), output)
            yield result, some.shape

    def _error(self, result: ops.NeuronOutput, shape: torch.Size) -> Tensor:
        return (self.target.unsqueeze(1) - self._decoded(result).unflatten(1, shape)).square().mean(0)

    def measure(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return how well the neuron with these parameters does: `clipped`, `error` and `events` of a `SiteReport`."""
        theta = parameters["v_threshold"]
        result = self._run(self.x_seq, theta, parameters["bias"], "both")
        outputs: Any = result.sequence
        error = (self.target - self._decoded(result)).square().sum() / self.target.square().sum().clamp(min=1e-30)
        clipped = self.target.abs() > theta * self.coding.span(len(self.x_seq)) * (1 + 1e-6)
        events = torch.count_nonzero(outputs) / outputs.numel()
        return clipped.double().mean(), error.double(), events.double()

    def _run(self, x_seq: Tensor, v_threshold: Tensor, bias: Tensor | float, output: str) -> ops.NeuronOutput:
        return ops.multi_step_neuron(
            x_seq,
            self.coding,
            v_threshold=v_threshold,
            bias=bias,
            activation=self.activation,
            absolute=self.coding.bias_once,
            output=output,
            scaled=True,
            keep_state=False,
        )

    def _decoded(self, result: ops.NeuronOutput) -> Tensor:
        assert result.total is not None
        return result.total / len(self.x_seq) if self.coding.readout == "mean" else result.total


@dataclass
class Calibration:
    """What `Calibrator.run` found.

    `parameters` of each site, the `gammas` that are not the network's, and `layers`, how well they do; `expected
    [N, classes]` the ANN's logits of the images and `actual [T, N, classes]` those of the network after each step,
    without extrapolation.
    """

    parameters: Parameters
    gammas: Gammas
    layers: list[SiteReport]
    expected: Tensor
    actual: Tensor


class Calibrator:
    """Fits the neurons of one network: of one kind of coding, as often as wanted.

    Args:
        ann: the network to convert.
        coding: of the kind of all that are to be fitted.
        batch_size: images that run at a time, at most: fewer where values are large.
        seed: of the sampled positions.
        rank: of several processes, this one: each runs its batches, and all fit to what all have sampled, so that they
            find the same, and what one process finds.
    """

    def __init__(self, ann: Ann, coding: Coding, *, batch_size: int, seed: int, rank: Rank = ALONE) -> None:
        self.network = _with_neurons_to_be_set(ann, coding)
        self.shapes = value_shapes(self.network.graph, self.network.tensors(), ann.input_shape, ann.model_name)
        self.constants = {node.path: self.network.neuron(node.path).bias.clone() for node in ann.graph.neurons}
        # of a folded network, what a scale in front would have multiplied input and output with
        self.gains = {node.path: 1 / self.network.neuron(node.path).v_threshold for node in ann.graph.neurons}
        self.batch_size, self.seed, self.rank = batch_size, seed, rank

    def run(
        self,
        images: Tensor,
        coding: Coding,
        fit: Callable[[Site], dict[str, Tensor]],
        time_steps: int,
        *,
        positions: int = SAMPLED_POSITIONS,
        percentile: float = 100.0,
        fits: int = 1,
        report: Callable[[float, str], None] = lambda cost, where: None,
    ) -> Calibration:
        """Fit every neuron in turn.

        Args:
            images: calibration images, `[N, C, H, W]`, or frames of events, `[N, T, C, H, W]`.
            coding: of all neurons.
            fit: chooses the parameters of one site.
            time_steps: T that the network is meant for.
            positions: how many of each channel are sampled, at most.
            percentile: of each channel's activations, for `Site.percentile`.
            fits: how many times as long as usual `fit` takes, for `report`.
            report: called with the cost of what has been done since, `cost(...)` in all, and where it is.

        Raises:
            SnnzooError: if an activation is NaN or infinite.
        """
        self.network.use(coding)
        walk = _Walk(self.network, self.constants, self.shapes, coding, time_steps, self.rank)
        room = images_that_fit(self.network.graph, self.shapes, _dtype(walk.tensors), len(images), time_steps)
        batch_size = min(self.batch_size, self._images_at_once(time_steps))
        costs = [self._cost_of(node, time_steps) for node in walk.nodes]
        generator = torch.Generator().manual_seed(self.seed)
        parameters: Parameters = {}
        gammas: dict[str, float] = {}
        measured: list[Tensor] = []
        with torch.inference_mode():
            for place, node in enumerate(walk.nodes):
                where = node.path or node.name
                while walk.images < room[node.name]:
                    joining = images[walk.images : min(walk.images + batch_size, room[node.name])]
                    walk.join(joining, place)
                    report(len(joining) * sum(costs[:place]), where)
                walk.run_ann(node)
                if node.name in walk.sites:
                    site = walk.collect(node, positions, percentile, generator)
                    chosen = fit(site)
                    walk.set_neuron(node, site.coding, chosen)
                    if site.coding != coding:
                        gammas[node.path] = site.coding.gamma  # type: ignore[attr-defined]
                    parameters[node.path] = {name: self.gains[node.path] * value for name, value in chosen.items()}
                    threshold = parameters[node.path]["v_threshold"].median().double()
                    measured.append(torch.stack([threshold, *site.measure(chosen), site.peak.sum().double()]))
                    report(fits * self._cost_of_fit(node, positions, time_steps), where)
                walk.run_network(node)
                report(walk.images * costs[place], where)
            expected, actual = walk.logits()
        layers = []
        for path, (*numbers, peaks) in zip(parameters, torch.stack(measured).tolist(), strict=True):
            if not math.isfinite(peaks):
                raise SnnzooError(f"activations at {path} are NaN or infinite: check the weights and the preprocessing")
            layers.append(SiteReport(path, len(parameters[path]["v_threshold"]), *numbers))
        return Calibration(parameters, gammas, layers, expected, actual)

    def cost(self, images: int, time_steps: int, positions: int = SAMPLED_POSITIONS, fits: int = 1) -> float:
        """Return what `run` costs, in multiply-accumulates or what takes as long."""
        nodes = [node for node in self.network.graph if node.name not in self.network.graph.behind_readout]
        one_fit = sum(self._cost_of_fit(node, positions, time_steps) for node in self.network.graph.neurons)
        return images * sum(self._cost_of(node, time_steps) for node in nodes) + fits * one_fit

    def _images_at_once(self, time_steps: int) -> int:
        graph = self.network.graph
        sizes = [math.prod(self.shapes[node.name]) for node in graph if node.name not in graph.before_neurons]
        largest = max(sizes, default=1) * time_steps * _dtype(self.network.tensors()).itemsize
        return max(1, RUNNING_BYTES // largest)

    def _cost_of(self, node: Node, time_steps: int) -> float:
        """That of running a node on one image, for both networks."""
        values = math.prod(self.shapes[node.name])
        steps = 1 if node.name in self.network.graph.before_neurons else 1 + time_steps
        if node.row.weighted:
            weight = self.network.tensors()[node.parameters["weight"]]
            return steps * values * weight[0].numel()
        return steps * values * (COST_OF_NEURON if node.is_activation else COST_OF_COPY)

    def _cost_of_fit(self, node: Node, positions: int, time_steps: int) -> float:
        inputs = min(SAMPLED_VALUES, positions * self.shapes[node.name][0] * time_steps)
        return COST_OF_SITE + COST_OF_FIT * COST_OF_NEURON * inputs


def images_that_fit(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, images: int, time_steps: int
) -> dict[str, int]:
    """Return how many of `images` each node is given, so that all that is held fits `KEPT_BYTES`.

    Never fewer than the node before it: an image stays to the end.
    """
    held = {INPUT: 0}  # the images themselves are there anyway
    sizes: dict[str, int] = {}
    for node in graph:
        copies = 1 if node.name in graph.before_neurons else time_steps + 1
        held[node.name] = math.prod(shapes[node.name]) * dtype.itemsize * copies
        sizes[node.name] = sum(held.values())
        for name in graph.last_uses[node.name]:
            del held[name]
    fits: dict[str, int] = {}
    fewest = images
    for name in reversed(sizes):
        fewest = min(fewest, max(FEWEST_IMAGES, KEPT_BYTES // max(1, sizes[name])))
        fits[name] = fewest
    return {name: fits[name] for name in sizes}


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next(value.dtype for value in tensors.values() if value.is_floating_point())


def _with_neurons_to_be_set(ann: Ann, coding: Coding) -> FoldedNetwork:
    """The network in its fast form, in the ANN's precision; no neuron has its parameters yet."""
    tensors = ann.tensors()
    dtype, device = _dtype(tensors), next(iter(tensors.values())).device
    channels = site_channels(ann.graph, tensors, ann.input_shape, ann.model_name)
    empty = {path: {"v_threshold": torch.ones(n), "bias": torch.zeros(n)} for path, n in channels.items()}
    network = FoldedNetwork(install(ann, coding, empty))
    network.cast(dtype, dtype)
    return network.to(device).to(memory_format=torch.channels_last)


@dataclass
class _Batch:
    """The values of some images that are still needed: the ANN's `[N, ...]`, and the network's `[T, N, ...]`.

    Of a batch that is another process's, there are none.
    """

    size: int
    mine: bool
    ann: dict[str, Tensor] = field(default_factory=dict)
    snn: dict[str, Tensor] = field(default_factory=dict)


class _Walk:
    """Both networks, as far as they have been run: the folded graph is the ANN's, too, with its activations."""

    def __init__(
        self,
        network: FoldedNetwork,
        constants: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        coding: Coding,
        time_steps: int,
        rank: Rank,
    ) -> None:
        self.network, self.coding, self.time_steps, self.rank = network, coding, time_steps, rank
        self.graph: Graph = network.graph
        self.tensors = network.tensors()
        self.nodes = [node for node in self.graph if node.name not in self.graph.behind_readout]
        self.sites = {node.name for node in self.graph.neurons}
        self.constants, self.shapes = constants, shapes
        self.batches: list[_Batch] = []

    @property
    def images(self) -> int:
        """How many have joined."""
        return sum(batch.size for batch in self.batches)

    def join(self, images: Tensor, place: int) -> None:
        """Take in more images, and run them through the nodes before `place`."""
        batch = _Batch(len(images), self.rank.takes(len(self.batches)))
        self.batches.append(batch)
        if not batch.mine:
            return
        images = images.to(self.device, _dtype(self.tensors))
        batch.ann[INPUT] = _channels_last(ann_input(images))
        batch.snn[INPUT] = network_input(_channels_last(images), self.coding, self.time_steps)
        for node in self.nodes[:place]:
            self._run_ann(node, batch)
            self._run_network(node, batch)

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def mine(self) -> dict[int, _Batch]:
        """The batches of this process, by their numbers."""
        return {number: batch for number, batch in enumerate(self.batches) if batch.mine}

    def _of_all(self, found: Mapping[int, tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """What was found of each batch, in their order, whichever process has it."""
        if self.rank.world_size > 1:
            found = {number: tuple(value.cpu() for value in values) for number, values in found.items()}
        return [tuple(value.to(self.device) for value in values) for values in self.rank.in_order(found)]

    def run_ann(self, node: Node) -> None:
        """Run a node of the ANN on all images."""
        for batch in self.mine.values():
            self._run_ann(node, batch)

    def run_network(self, node: Node) -> None:
        """Run a node of the spiking network on all images, and free what nothing needs any more."""
        for batch in self.mine.values():
            self._run_network(node, batch)

    def set_neuron(self, node: Node, coding: Coding, parameters: Mapping[str, Tensor]) -> None:
        """Give a neuron its coding and its parameters."""
        neuron = self.network.neuron(node.path)
        neuron.coding = coding
        neuron.set_parameters(parameters["v_threshold"], self.constants[node.path] + parameters["bias"])

    def logits(self) -> tuple[Tensor, Tensor]:
        """Return the ANN's logits `[N, classes]`, and the network's after each step, `[T, N, classes]`."""
        found = {}
        for number, batch in self.mine.items():
            for node in self.graph:
                if node.name in self.graph.behind_readout:
                    self._run_ann(node, batch)
            found[number] = batch.ann[self.graph.output], self.network.read_out(batch.snn[self.graph.decoded])
            reset_net(self.network)
        expected, actual = zip(*self._of_all(found), strict=True)
        return torch.cat(expected), torch.cat(actual, 1)

    def _run_ann(self, node: Node, batch: _Batch) -> None:
        inputs = [batch.ann[name] for name in node.inputs]
        if node.name in self.sites:
            x = inputs[0] + _broadcast(self.constants[node.path], inputs[0].ndim)
            for residual in inputs[1:]:
                x += residual
            batch.ann[node.name] = node.activation(x)
        else:
            batch.ann[node.name] = run_node(node, self.tensors, inputs)

    def _run_network(self, node: Node, batch: _Batch) -> None:
        inputs = [batch.snn[name] for name in node.inputs]
        if node.name in self.graph.before_neurons and all(x.stride(0) == 0 for x in inputs):
            value = batch.ann[node.name].expand(self.time_steps, *batch.ann[node.name].shape)  # a static image's
        else:
            value = self.network.run_alone(node, self.tensors, inputs)
        batch.snn[node.name] = value
        for name in self.graph.last_uses[node.name]:
            del batch.ann[name], batch.snn[name]

    def collect(self, node: Node, positions: int, percentile: float, generator: torch.Generator) -> Site:
        """Sample what reaches an activation."""
        channels, *sizes = self.shapes[node.name]
        total, pixels = self.images, math.prod(sizes)
        kept = math.floor(total * pixels * (1 - percentile / 100)) + 1
        wanted = min(positions, SAMPLED_VALUES // (self.time_steps * channels))
        found = {}
        for number, batch in enumerate(self.batches):
            count = min(batch.size * pixels, math.ceil(wanted * batch.size / total))
            places = _sample(batch.size * pixels, count, generator)  # drawn in every process, to draw the same
            if batch.mine:
                found[number] = self._sampled(node, batch, places.to(self.device), kept)
        inputs, targets, largest = zip(*self._of_all(found), strict=True)
        magnitudes = torch.cat(largest, 1)
        magnitudes = magnitudes.topk(min(kept, magnitudes.shape[1]), dim=1).values  # [C, k], sorted
        peak, at_percentile = magnitudes[:, 0], magnitudes[:, -1]
        at_percentile = torch.where(at_percentile > 0, at_percentile, peak)  # a channel that fires more rarely
        x_seq, target = torch.cat(inputs, 1), torch.cat(targets)
        if self.coding.bias_once and node.inputs[0] not in self.graph.before_neurons:
            x_seq = x_seq.cumsum(0)
        x_seq += self.constants[node.path]
        return Site(node.path, self.coding, node.activation, x_seq, target, fill_dead(peak), fill_dead(at_percentile))

    def _sampled(self, node: Node, batch: _Batch, places: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of one batch, the inputs and activations at some places, and the largest magnitudes of each channel."""
        values = batch.ann[node.name].movedim(1, -1).flatten(0, -2)  # [positions, C]
        inputs = functools.reduce(torch.add, (_positions(batch.snn[name], places) for name in node.inputs))
        magnitudes = values.abs().T if kept > 1 else _peak(values, batch.size).unsqueeze(1)
        return inputs, values.index_select(0, places), magnitudes.topk(min(kept, magnitudes.shape[1]), dim=1).values


def _peak(values: Tensor, images: int) -> Tensor:
    """The largest magnitude of each channel of `[positions, C]`; over images first, as long rows are faster."""
    rows = values.unflatten(0, (images, -1)).flatten(1)
    return torch.maximum(rows.amax(0), -rows.amin(0)).unflatten(0, (-1, values.shape[1])).amax(0)


def _sample(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Some of `total` places; of very many at random, where a repeat is rare, since a permutation takes longer."""
    if total > 8 * count:
        return torch.randint(total, (count,), generator=generator)
    return torch.randperm(total, generator=generator)[:count]


def _positions(x_seq: Tensor, chosen: Tensor) -> Tensor:
    """`[T, N, C, ...]` at some positions, `[T, M, C]`."""
    if is_static(x_seq):
        return _positions(x_seq[:1], chosen).expand(len(x_seq), -1, -1)
    return x_seq.movedim(2, -1).flatten(1, -2).index_select(1, chosen)


def _broadcast(channels: Tensor, ndim: int) -> Tensor:
    return channels.view(-1, *[1] * (ndim - 2))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def fill_dead(thresholds: Tensor) -> Tensor:
    """Give channels that never fired on the calibration images the median threshold of their layer."""
    alive = torch.where(thresholds > 0, thresholds, torch.nan)
    return torch.where(thresholds <= 0, alive.nanmedian().nan_to_num(1.0), thresholds)
