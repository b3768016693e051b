"""How well a network fits its images, by the statistics that its batch normalisation (BN) carries from training.

A BN keeps mean and variance of what reached it, channel by channel. Run other images of the same kind through the
network, and about the same reaches it again; where preprocessing, weights or architecture are not those of training,
it does not. The measure is the Kullback-Leibler divergence of two normal distributions, in nats: that of what is
observed from the one that BN remembers, each with BN's eps in its variance, averaged over channels.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import run_graph

MOST = 1e6  # nats: of what is NaN or infinite, too
BATCH_SIZE = 32


@dataclass(frozen=True)
class Fit:
    """The divergence of each BN of a network, on some images.

    Args:
        images: how many were run.
        layers: for each BN's path, in the order in which they run, its divergence in nats.
    """

    images: int
    layers: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The divergence of a layer on average: what verdicts are made by."""
        return statistics.fmean(self.layers.values())

    @property
    def median(self) -> float:
        """The divergence that half of the layers do not reach."""
        return statistics.median(self.layers.values())

    @property
    def worst(self) -> str:
        """The path of the layer of the largest divergence."""
        return max(self.layers, key=self.layers.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as files and JSON have them."""
        layers = {path: round(value, 6) for path, value in self.layers.items()}
        figures = {"mean": round(self.mean, 6), "median": round(self.median, 6), "worst": self.worst}
        return {"images": self.images, **figures, "layers": layers}


class _Moments:
    """Mean and variance of channels, of batches one after the other (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # summed deviations

    def add(self, x: Tensor) -> None:
        """Count `x [N, C, ...]`."""
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        difference = mean.double() - self.mean
        total = self.count + count
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + variance.double() * count + difference.square() * (self.count * count / total)
        self.count = total

    def divergence(self, node: Node, tensors: Mapping[str, Tensor]) -> float:
        """Return that from what the BN `node` remembers."""
        mean = tensors[node.parameters["running_mean"]].double()
        eps = node.settings["eps"]
        variance = tensors[node.parameters["running_var"]].double() + eps
        ratio = (self.squares / self.count + eps) / variance
        nats = 0.5 * (ratio + (self.mean - mean).square() / variance - 1 - ratio.log())
        return float(nats.mean().nan_to_num(MOST, MOST).clamp(0, MOST))


def normalisations(graph: Graph) -> list[Node]:
    """Return the BN of a network, in the order in which they run."""
    return [node for node in graph if node.operation == "batch_norm"]


def measure_fit(graph: Graph, tensors: Mapping[str, Tensor], images: Tensor, layers: int | None = None) -> Fit | None:
    """Return how well a network's BN fits `images [N, C, H, W]`, preprocessed; None if it has no BN.

    Args:
        layers: how many BN to measure, from the first, and so how much of the network is run; all if None.
    """
    measured = normalisations(graph)[:layers]
    if not measured:
        return None
    last = measured[-1]
    graph = dataclasses.replace(graph, nodes=graph.nodes[: graph.nodes.index(last) + 1], output=last.name)
    found = {node.name: (node, _Moments()) for node in measured}
    reached: dict[str, list[_Moments]] = {}
    for node, moments in found.values():
        reached.setdefault(node.inputs[0], []).append(moments)

    def watch(node: Node, value: Tensor) -> None:
        for moments in reached.get(node.name, ()):
            moments.add(value)

    first = next(value for value in tensors.values() if value.is_floating_point())
    with torch.inference_mode():
        for batch in images.split(BATCH_SIZE):
            x = batch.to(first.device, first.dtype)
            for moments in reached.get(INPUT, ()):
                moments.add(x)
            run_graph(graph, tensors, x, watch)
    divergences: dict[str, float] = {}
    for node, moments in found.values():
        path = node.name if not node.path or node.path in divergences else node.path  # a module may be called twice
        divergences[path] = moments.divergence(node, tensors)
    return Fit(len(images), divergences)
