"""How much a network fires: events of its neurons, and the synaptic operations that they cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from snnzoo.energy import LayerCounts
from snnzoo.graph.fan_out import fan_out
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.network import SpikingNetwork, is_static
from snnzoo.inference.neuron import FoldedNeuron, membrane_updates
from snnzoo.ops import count_events

COUNTED = ("events", "operations", "received", "analog", "membranes")  # at each t, by site or layer


@dataclass
class Activity:
    """Counts, summed over images. They are whole numbers: parts measured apart add up exactly.

    `neurons` and `dense` are of one image: how many neurons a site has, and how often a layer applies a
    weight if every input counts (multiplications with padding are not counted). `events` and
    `operations` are of all images, at each t; layers that see analog values (those before all neurons, and those behind
    the readout) are in `dense` and `analog` only. `received` are the events that reach a layer; `analog` the
    multiply-accumulates with a non-zero input, if the network is read out at t. `sizes` are a layer's weights, inputs
    and outputs, of one image; `fires` names the layers with neurons behind them. `membranes` counts changed membranes,
    where that was asked for.
    """

    images: int = 0
    neurons: dict[str, int] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    events: dict[str, list[int]] = field(default_factory=dict)
    operations: dict[str, list[int]] = field(default_factory=dict)
    received: dict[str, list[int]] = field(default_factory=dict)
    analog: dict[str, list[int]] = field(default_factory=dict)
    membranes: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    fires: list[str] = field(default_factory=list)

    @property
    def time_steps(self) -> int:
        """How many steps were measured."""
        return max((len(counts) for counts in self.events.values()), default=0)

    def events_per_neuron_step(self, time_steps: int) -> float:
        """Return the mean number of events of a neuron in a step, over the first `time_steps`."""
        total = sum(sum(counts[:time_steps]) for counts in self.events.values())
        return total / (self.images * sum(self.neurons.values()) * time_steps)

    def synaptic_operations(self, time_steps: int) -> float:
        """Return the synaptic operations of one image in the first `time_steps`."""
        return sum(sum(counts[:time_steps]) for counts in self.operations.values()) / self.images

    def event_rates(self) -> dict[str, list[float]]:
        """Return for each site the share of its neurons that send an event, at each t."""
        return {
            site: [count / (self.images * self.neurons[site]) for count in counts]
            for site, counts in self.events.items()
        }

    def membrane_updates_per_image(self, time_steps: int) -> float:
        """Return how many membranes change at a step, over the first `time_steps` of one image."""
        return sum(sum(counts[:time_steps]) for counts in self.membranes.values()) / self.images

    def layer_counts(self, time_steps: int) -> list[LayerCounts]:
        """Return what one image takes of each layer in the first `time_steps`, for models of energy."""
        found = []
        for name, dense in self.dense.items():
            weights, inputs, outputs = self.sizes[name]
            found.append(
                LayerCounts(
                    name,
                    dense,
                    name not in self.operations,
                    weights,
                    inputs,
                    outputs,
                    self._per_image(self.operations, name, time_steps),
                    self._per_image(self.received, name, time_steps),
                    name in self.fires,
                )
            )
        return found

    def _per_image(self, counts: Mapping[str, list[int]], name: str, time_steps: int) -> float:
        return sum(counts.get(name, [])[:time_steps]) / self.images

    def dense_operations(self, *, analog_only: bool = False) -> int:
        """Return the multiply-accumulates of one image in one step if every input counts; of the analog layers only."""
        return sum(count for name, count in self.dense.items() if not (analog_only and name in self.operations))

    def add(self, other: Activity) -> None:
        """Take in what was measured on other images; of steps that none of them took part in, there is nothing."""
        self.images += other.images
        self.neurons.update(other.neurons)
        self.dense.update(other.dense)
        self.fires = sorted({*self.fires, *other.fires})
        self.sizes.update(other.sizes)
        for part in COUNTED:
            mine, theirs = getattr(self, part), getattr(other, part)
            for name, counts in theirs.items():
                mine[name] = [a + b for a, b in zip_longest(mine.get(name, []), counts, fillvalue=0)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ActivityMeter:
    """Counts events while its context is entered; each entry is one batch, from t = 0.

    An event is a non-zero output of a neuron. A synaptic operation is one weight applied to one event: each
    non-zero input of a convolution or linear layer counts as often as it reaches an output, with padding, stride,
    dilation and groups respected. Where something is between neurons and a layer (a product, an average pool, a sum
    of spikes), its non-zero values count. An identity shortcut has no weights: it counts for nothing.

    Args:
        net: the network that is run, or its folded form.
        input_events: whether the network's input is events, so that its first layer has synaptic operations.
        membranes: whether to count changes of membranes, for which the inputs of neurons are kept.

    Example:
        >>> with meter:
        ...     net.run(x_seq, meter.watch)
    """

    def __init__(self, net: SpikingNetwork, *, input_events: bool = False, membranes: bool = False) -> None:
        graph, tensors = net.graph, net.tensors()
        self.input_events, self.membranes = input_events, membranes
        self.activity = Activity()
        self._sites = {node.name: net.neuron(node.path) for node in net.sites}
        self._layers = layer_names(graph)
        self._weights = {name: tensors[graph[name].parameters["weight"]].shape for name in self._layers}
        self._analog = graph.analog & self._layers.keys()
        self._first = _first_layers(graph)
        self._firing = self._layers.keys() - graph.behind_readout
        self._counted = self._sites.keys() | {graph[name].inputs[0] for name in self._layers.keys() - self._analog}
        self._fans: dict[tuple[str, torch.Size], tuple[Tensor, int]] = {}
        self._start_batch()

    def _start_batch(self) -> None:
        self._batch = Activity()
        self._nonzeros: dict[str, Tensor] = {}  # of the piece of the sequence that is running, by value
        # of each piece, [T], on the device
        self._pieces: dict[str, dict[str, list[Tensor]]] = {part: {} for part in COUNTED}

    def __enter__(self) -> ActivityMeter:
        self._start_batch()
        self._let_neurons_count(True)
        return self

    def _let_neurons_count(self, wanted: bool) -> None:
        for neuron in self._sites.values():
            if isinstance(neuron, FoldedNeuron):
                neuron.counts_events, neuron.events = wanted, None
                neuron.keeps_input = wanted and self.membranes

    def __exit__(self, *error: object) -> None:
        self._let_neurons_count(False)
        if error[0] is None:
            places = [(part, name) for part, by_name in self._pieces.items() for name in by_name]
            totals = [torch.cat(self._pieces[part][name]) for part, name in places]
            counts = iter(torch.cat(totals).tolist() if totals else [])  # the only time that the device is waited for
            for (part, name), of_steps in zip(places, totals, strict=True):
                getattr(self._batch, part)[name] = [next(counts) for _ in of_steps]
            self.activity.add(self._batch)
        self._start_batch()

    def watch(self, node: Node, inputs: list[Tensor], value: Tensor) -> None:
        """Count what a node has done, as `SpikingNetwork.run` calls it."""
        self._batch.images = max(self._batch.images, value.shape[1])  # fewer, once images leave early
        if node.name in self._counted:
            counted = getattr(self._sites.get(node.name), "events", None)  # where spikes are made
            self._nonzeros[node.name] = count_events(value) if counted is None else counted
        if node.name in self._sites:
            self._batch.neurons[node.path] = value[0, 0].numel()
            self._keep("events", node.path, _per_step(self._nonzeros[node.name]))
            if self.membranes:
                self._keep("membranes", node.path, membrane_updates(self._sites[node.name], inputs, value))
        elif node.name in self._layers:
            self._count_layer(node, inputs[0], value)

    def _count_layer(self, node: Node, x_seq: Tensor, y_seq: Tensor) -> None:
        layer, source = self._layers[node.name], node.inputs[0]
        fan, self._batch.dense[layer] = self._fan_out(node, x_seq, y_seq)
        self._batch.sizes[layer] = [self._weights[node.name].numel(), x_seq[0, 0].numel(), y_seq[0, 0].numel()]
        if node.name in self._firing:
            self._batch.fires = [*self._batch.fires, layer]
        if node.name not in self._analog or (self.input_events and node.name in self._first):
            nonzeros = self._nonzeros[source] if source in self._counted else count_events(x_seq)
            self._keep("operations", layer, _per_step(nonzeros * fan))
            self._keep("received", layer, _per_step(nonzeros))
        else:
            nonzeros = count_events(x_seq[:1] if is_static(x_seq) else x_seq)
            self._keep("analog", layer, _per_step(nonzeros * fan).expand(len(x_seq)))

    def _keep(self, part: str, name: str, counts: Tensor) -> None:
        self._pieces[part].setdefault(name, []).append(counts)

    def _fan_out(self, node: Node, x_seq: Tensor, y_seq: Tensor) -> tuple[Tensor, int]:
        """Of each input of one image, and the sum over all of them."""
        shape = x_seq.shape[2:]
        if (node.name, shape) not in self._fans:
            fan = fan_out(node, self._weights[node.name], shape, y_seq.shape[2:])
            self._fans[node.name, shape] = fan.to(x_seq.device), int(fan.expand(shape).sum())
        return self._fans[node.name, shape]


def _per_step(counts: Tensor) -> Tensor:
    """`[T, ...] -> [T]`."""
    return counts.reshape(len(counts), -1).sum(1)


def layer_names(graph: Graph) -> dict[str, str]:
    """Return for each node with weights the name of its layer: its path, with "@1" for the second call of a layer."""
    calls: Counter[str] = Counter()
    names = {}
    for node in graph:
        if node.row.weighted:
            path = node.path or node.operation
            names[node.name] = f"{path}@{calls[path]}" if calls[path] else path
            calls[path] += 1
    return names


def _first_layers(graph: Graph) -> set[str]:
    """The nodes with weights that see the network's input, with no layer and no neuron in between."""
    first: set[str] = set()
    behind: set[str] = set()
    for node in graph:
        late = any(name in behind for name in node.inputs)
        if node.row.weighted and not late and node.name in graph.before_neurons:
            first.add(node.name)
        if node.row.weighted or late:
            behind.add(node.name)
    return first
