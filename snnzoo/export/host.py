"""What of a network is left to the host, where a graph is but a part of it: the stem, or all but spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from snnzoo.functional import reset_net
from snnzoo.graph.graph import Node
from snnzoo.graph.network import SpikingNetwork, node_each_step
from snnzoo.graph.operations import INPUT
from snnzoo.graph.shapes import value_shapes


class Host:
    """Runs what is before the value `start` and behind the value `end`; a neuron's value is its spikes, 0 and 1.

    Args:
        network: converted or trained; not changed.
    """

    def __init__(self, network: SpikingNetwork, start: str, end: str) -> None:
        self.network, self.start, self.end = network, start, end

    def inputs(self, images: Tensor, time_steps: int) -> Tensor:
        """Return what goes into the graph at each step, of `images [N, C, H, W]`: `[T, N, ...]`."""
        x_seq = images.expand(time_steps, *images.shape)
        if self.start == INPUT:
            return x_seq
        return self._values(x_seq)[self.start]

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the logits after each step, of what comes out of the graph: `[T, N, ...] -> [T, N, classes]`."""
        graph, y_seq = self.network.graph, outputs
        if self.end != graph.output:
            shapes = value_shapes(graph, self.network.tensors(), self.network.input_shape, self.network.model_name)
            if len(shapes[self.end]) == 1:
                y_seq = y_seq.flatten(2)  # a graph may have kept pixels
            worth = self._worth(graph[self.end], y_seq)
            values = {self.end: y_seq * worth}
            tensors = {key: value.to(y_seq.dtype) for key, value in self.network.tensors().items()}
            for node in graph:
                if node.name != self.end and all(name in values for name in node.inputs):
                    values[node.name] = node_each_step(node, tensors, [values[name] for name in node.inputs])
            y_seq = values[graph.output]
        y_seq = y_seq.flatten(2)
        return y_seq.cumsum(0) / torch.arange(1, len(y_seq) + 1, dtype=y_seq.dtype).view(-1, 1, 1)

    def _values(self, x_seq: Tensor) -> dict[str, Tensor]:
        """The value `start`, as the network computes it."""
        found: dict[str, Tensor] = {}

        def keep(node: Node, inputs: list[Tensor], value: Tensor) -> None:
            if node.name == self.start:
                found[node.name] = value / self._worth(node, value) if node in self.network.sites else value

        reset_net(self.network)
        self.network.run(x_seq.to(next(self.network.parameters()).dtype), keep)
        reset_net(self.network)
        return found

    def _worth(self, node: Node, like: Tensor) -> Tensor | float:
        """What a spike of a neuron is worth in the network, in a shape that broadcasts over `[T, N, C, ...]`."""
        arguments = self.network.neuron(node.path).arguments()
        if not arguments.get("scaled"):
            return 1.0
        theta = torch.as_tensor(arguments["v_threshold"]).to(like.dtype)
        return theta.view(-1, *[1] * (like.ndim - 3)) if theta.ndim else theta
