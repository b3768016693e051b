"""Which steps run together where images leave early.

Each run of steps has its price: its layers are launched, and the state of each image is read and written. To go ahead,
past a step after which images may leave, saves that, and takes steps of images that then turn out to have left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from snnzoo.early_exit import ExitRule
from snnzoo.graph.fan_out import dense_operations
from snnzoo.inference.network import FoldedNetwork

# in multiply-accumulates, measured on two cores: to launch a node, and to read and write a value of a neuron's state
LAUNCH, STATE_VALUE = 6e6, 44.0


@dataclass(frozen=True)
class Cost:
    """What a run of steps costs, in multiply-accumulates: `run`, and for each image `image`, and `step` a step."""

    run: float
    image: float
    step: float


def cost_of(network: FoldedNetwork, shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    """Return what runs of a network cost.

    Args:
        shapes: of one image's values, and of the image itself.
    """
    graph = network.graph
    once = graph.before_neurons | graph.behind_readout
    repeated = [node for node in graph if node.name not in once]
    operations = dense_operations(graph, network.tensors(), shapes)
    states = 1 if network.coding is None else len(network.coding.state)
    return Cost(
        run=LAUNCH * len(repeated),
        image=STATE_VALUE * states * sum(math.prod(shapes[node.name]) for node in network.sites),
        step=float(sum(operations.get(node.name, 0) for node in repeated)),
    )


def to_each_exit(rule: ExitRule, at_once: int) -> Iterator[range]:
    """Yield runs of steps that take no step of an image that has left: each ends where one may leave, or is full."""
    start = 0
    for t in rule.exits:
        while start <= t:
            stop = min(start + at_once, t + 1)
            yield range(start, stop)
            start = stop


def cheapest(rule: ExitRule, at_once: int, images: int, cost: Cost) -> Iterator[range]:
    """Yield the runs of steps that are expected to cost least, of at most `at_once` steps each.

    Args:
        rule: with `staying`.
        images: of the batch.
    """
    assert rule.staying is not None
    left = [images * share for share in (1.0, *rule.staying)]  # before each step
    steps = rule.time_steps
    least, stops = [0.0] * (steps + 1), [steps] * steps
    for start in reversed(range(steps)):
        begun = min(1.0, left[start]) * cost.run + left[start] * cost.image
        least[start], stops[start] = min(
            (begun + left[start] * (stop - start) * cost.step + least[stop], stop)
            for stop in range(start + 1, min(start + at_once, steps) + 1)
        )
    start = 0
    while start < steps:
        yield range(start, stops[start])
        start = stops[start]
