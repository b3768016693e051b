"""How much a network fires: events of its neurons, and the synaptic operations that they cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference.neuron import FoldedNeuron
from snnzoo.ops import count_events


@dataclass
class Activity:
    """Counts, summed over images. They are whole numbers: parts measured apart add up exactly.

    `neurons` and `dense` are of one image: how many neurons a site has, and how often a layer applies a
    weight if every input counts (multiplications with padding are not counted). `events` and
    `operations` are of all images, at each t; layers that see analog values (those before all neurons, and
    those behind the readout) are in `dense` only.
    """

    images: int = 0
    neurons: dict[str, int] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    events: dict[str, list[int]] = field(default_factory=dict)
    operations: dict[str, list[int]] = field(default_factory=dict)

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

    def dense_operations(self, *, analog_only: bool = False) -> int:
        """Return the multiply-accumulates of one image in one step if every input counts; of the analog layers only."""
        return sum(count for name, count in self.dense.items() if not (analog_only and name in self.operations))

    def add(self, other: Activity) -> None:
        """Take in what was measured on other images; of steps that none of them took part in, there is nothing."""
        self.images += other.images
        self.neurons.update(other.neurons)
        self.dense.update(other.dense)
        for mine, theirs in ((self.events, other.events), (self.operations, other.operations)):
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

    Example:
        >>> with meter:
        ...     net.run(x_seq, meter.watch)
    """

    def __init__(self, net: SpikingNetwork, *, input_events: bool = False) -> None:
        graph, tensors = net.graph, net.tensors()
        self.input_events = input_events
        self.activity = Activity()
        self._sites = {node.name: net.neuron(node.path) for node in net.sites}
        self._layers = layer_names(graph)
        self._weights = {name: tensors[graph[name].parameters["weight"]].shape for name in self._layers}
        self._analog = graph.analog & self._layers.keys()
        self._first = _first_layers(graph)
        self._counted = self._sites.keys() | {graph[name].inputs[0] for name in self._layers.keys() - self._analog}
        self._fans: dict[tuple[str, torch.Size], tuple[Tensor, int]] = {}
        self._start_batch()

    def _start_batch(self) -> None:
        self._batch = Activity()
        self._nonzeros: dict[str, Tensor] = {}  # of the piece of the sequence that is running, by value
        self._events: dict[str, list[Tensor]] = {}  # of each piece, [T], on the device
        self._operations: dict[str, list[Tensor]] = {}

    def __enter__(self) -> ActivityMeter:
        self._start_batch()
        self._let_neurons_count(True)
        return self

    def _let_neurons_count(self, wanted: bool) -> None:
        for neuron in self._sites.values():
            if isinstance(neuron, FoldedNeuron):
                neuron.counts_events, neuron.events = wanted, None

    def __exit__(self, *error: object) -> None:
        self._let_neurons_count(False)
        if error[0] is None:
            totals = [torch.cat(pieces) for pieces in (*self._events.values(), *self._operations.values())]
            counts = torch.stack(totals).tolist()  # the only time that the device is waited for
            self._batch.events = dict(zip(self._events, counts, strict=False))
            self._batch.operations = dict(zip(self._operations, counts[len(self._events) :], strict=True))
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
            self._events.setdefault(node.path, []).append(_per_step(self._nonzeros[node.name]))
        elif node.name in self._layers:
            self._count_layer(node, inputs[0], value)

    def _count_layer(self, node: Node, x_seq: Tensor, y_seq: Tensor) -> None:
        layer, source = self._layers[node.name], node.inputs[0]
        fan, self._batch.dense[layer] = self._fan_out(node, x_seq, y_seq)
        if node.name not in self._analog or (self.input_events and node.name in self._first):
            nonzeros = self._nonzeros[source] if source in self._counted else count_events(x_seq)
            self._operations.setdefault(layer, []).append(_per_step(nonzeros * fan))

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


def fan_out(node: Node, weight: Sequence[int], input_shape: Sequence[int], output_shape: Sequence[int]) -> Tensor:
    """Return how many outputs each input of a convolution or linear layer reaches.

    Args:
        node: a conv2d or linear.
        weight: shape of its weights.
        input_shape, output_shape: without time and batch, `[C, H, W]` or `[..., features]`.

    Returns:
        int64 `[H, W]` (the same for every channel), or `[]`.
    """
    if node.operation == "linear":
        return torch.tensor(weight[0])
    rows, columns = (
        _reached(node.settings, axis, weight[2 + axis], input_shape[1 + axis], output_shape[1 + axis])
        for axis in range(2)
    )
    return torch.outer(rows, columns) * (weight[0] // node.settings["groups"])


def _reached(settings: Mapping[str, Any], axis: int, kernel: int, inputs: int, outputs: int) -> Tensor:
    """Along one axis, how many outputs see each input, `[inputs]`."""
    stride, dilation, padding = settings["stride"][axis], settings["dilation"][axis], settings["padding"]
    if padding == "same":
        before = dilation * (kernel - 1) // 2
    else:
        before = 0 if padding == "valid" else padding[axis]
    seen = torch.arange(outputs).unsqueeze(1) * stride + torch.arange(kernel) * dilation - before
    return torch.bincount(seen[(seen >= 0) & (seen < inputs)], minlength=inputs)


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
