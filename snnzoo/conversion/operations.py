"""What the events of a network's neurons set off, beside what its ANN computes: known before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from snnzoo.codings import Coding
from snnzoo.energy import MODELS, LayerCounts, NetworkFacts
from snnzoo.graph.fan_out import dense_operations, operations_of_an_event
from snnzoo.graph.network import Ann
from snnzoo.graph.operations import INPUT
from snnzoo.graph.shapes import value_shapes


class Fires(Protocol):
    """One site, and the share of its neurons and steps with an event: a `SiteReport`."""

    site: str
    events: float


@dataclass(frozen=True)
class Operations:
    """Operations of one image.

    Args:
        dense: multiply-accumulates of the ANN.
        analog: those of them that the spiking network makes, too: before its neurons, and behind the readout.
        sites: synaptic operations if every neuron of a site sends one event, by the site's path.
        neurons: of each channel of a site, by its path.
    """

    dense: int
    analog: int
    sites: dict[str, float]
    neurons: dict[str, int]

    @classmethod
    def of(cls, ann: Ann) -> Operations:
        """Count those of a network."""
        graph, tensors = ann.graph, ann.tensors()
        shapes = {INPUT: tuple(ann.input_shape), **value_shapes(graph, tensors, ann.input_shape, ann.model_name)}
        dense = dense_operations(graph, tensors, shapes)
        fans = operations_of_an_event(graph, dense, shapes)
        return cls(
            sum(dense.values()),
            sum(count for name, count in dense.items() if name in graph.analog),
            {node.path: fans[node.path] * math.prod(shapes[node.name]) for node in graph.neurons},
            {node.path: math.prod(shapes[node.name][1:]) for node in graph.neurons},
        )

    def synaptic(self, layers: Iterable[Fires], time_steps: int) -> float:
        """Return the synaptic operations in all steps, of layers as calibration has found them."""
        return sum(layer.events * time_steps * self.sites[layer.site] for layer in layers)

    def energy(self, layers: Iterable[Fires], time_steps: int, coding: Coding) -> float:
        """Return the arithmetic's energy over that of the ANN (`snnzoo.energy`, "arithmetic")."""
        both = LayerCounts("analog", self.analog, True, 0, 0, 0, 0.0, 0.0)
        spiking = LayerCounts(
            "spiking", self.dense - self.analog, False, 0, 0, 0, self.synaptic(layers, time_steps), 0.0
        )
        in_ann, in_network = MODELS["arithmetic"].totals([both, spiking], NetworkFacts(time_steps, coding.event_bits))
        return in_network / in_ann
