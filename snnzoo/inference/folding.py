"""The graph that runs fastest: rewritten so that all that only adds a constant, or a residual, is done by neurons.

Batch normalisation goes into the weights before it. What is left of it, and of every bias, is a constant for each
channel, which passes through pools, sums and joins as it is, and convolutions without padding as what they make of it:
it waits until a neuron adds it with its own bias. An addition before a neuron is made by the neuron, too. Where batch
normalisation finds no weights before it, but a neuron and weights behind it, its positive scale goes into the neuron's
threshold and those weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.operations import INPUT, batch_norm_scale
from snnzoo.graph.shapes import value_shapes

_COMMUTING = {"max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample"}  # with a constant of a channel
_NEW_MEMORY = {"conv2d", "linear", "batch_norm", "add", "scale", "shift", "cat"}  # nobody else sees their output


@dataclasses.dataclass
class Folded:
    """A rewritten graph, its tensors in float64, and what each neuron adds to its input, `[C]`, by its path.

    `gains`: by paths of neurons, what their input lacks as a factor, `[C]`, and their output, too.
    `in_place`: paths of neurons that may write where their input is.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    biases: dict[str, Tensor]
    gains: dict[str, Tensor]
    in_place: frozenset[str]


def fold(net: SpikingNetwork) -> Folded:
    """Return the folded form of a network, which is not changed."""
    tensors = {
        key: value.detach().double() if value.is_floating_point() else value.detach()
        for key, value in net.tensors().items()
    }
    shapes = value_shapes(net.graph, tensors, net.input_shape, net.model_name)
    folder = _Folder(net, tensors, shapes)
    for node in net.graph:
        folder.add(node)
    return folder.result()


class _Folder:
    """Rewrites a graph node by node."""

    def __init__(
        self, net: SpikingNetwork, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.graph, self.tensors, self.shapes = net.graph, dict(tensors), shapes
        self.converted = net.coding is not None
        self.sites = {node.name for node in net.sites}
        self.nodes: dict[str, Node] = {}
        self.waiting: dict[str, Tensor] = {}  # constants that a value lacks, [C]
        self.biases: dict[str, Tensor] = {}
        self.gains: dict[str, Tensor] = {}

    def add(self, node: Node) -> None:
        """Take in one node."""
        if node.name in self.sites:
            self._neuron(node)
        elif node.name in self.graph.behind_readout:
            self._plain(node)
        elif node.operation in ("conv2d", "linear"):
            self._weighted(node)
        elif node.operation == "batch_norm":
            self._batch_norm(node)
        elif node.operation == "add":
            self._addition(node)
        elif node.operation == "cat" and node.settings["dim"] == 1:
            parts = [self._constant(name) for name in node.inputs]
            self._keep(node, torch.cat(parts))
        elif node.operation == "slice":
            constant = self._constant(node.inputs[0])
            settings = node.settings
            part = slice(settings["start"], settings["end"], settings["step"]) if settings["dim"] == 1 else slice(None)
            self._keep(node, constant[part])
        elif self._commutes(node):
            self._keep(node, self._constant(node.inputs[0]))
        elif node.operation == "reshape" and self._flattens(node):
            pixels = self.shapes[node.name][0] // self.shapes[node.inputs[0]][0]
            self._keep(node, self._constant(node.inputs[0]).repeat_interleave(pixels))
        else:
            self._plain(node)
        if node.name in (self.graph.decoded, self.graph.output):
            self._settle(node.name)

    def result(self) -> Folded:
        graph = self.graph.with_nodes(list(self.nodes.values()))
        paths = {node.path for node in graph if node.name in self.sites and self._owns(graph, node)}
        used = {key for node in graph for key in node.parameters.values()}
        tensors = {key: value for key, value in self.tensors.items() if key in used}
        return Folded(graph, tensors, self.biases, self.gains, frozenset(paths))

    def _keep(self, node: Node, constant: Tensor | None = None) -> None:
        """Keep a node, whose value then lacks a constant."""
        self.nodes[node.name] = node
        if constant is not None and bool(constant.any()):
            self.waiting[node.name] = constant

    def _plain(self, node: Node) -> None:
        """Keep a node that needs its inputs as they are."""
        self._keep(dataclasses.replace(node, inputs=tuple(self._whole(name) for name in node.inputs)))

    def _whole(self, name: str) -> str:
        """The name of a value with what it lacks; others go on taking it without."""
        constant = self.waiting.get(name)
        if constant is None:
            return name
        whole = f"{name}/whole"
        self.nodes.setdefault(whole, self._shift(whole, name, constant))
        return whole

    def _settle(self, name: str) -> None:
        """Add what a value lacks by a node that takes its name, before anything has taken it."""
        constant = self.waiting.pop(name, None)
        if constant is None:
            return
        before = dataclasses.replace(self.nodes.pop(name), name=f"{name}/unshifted")
        self.nodes[before.name] = before
        self.nodes[name] = self._shift(name, before.name, constant)

    def _shift(self, name: str, source: str, constant: Tensor) -> Node:
        shape = self.shapes[name.removesuffix("/whole")]
        key = f"{name}/constant"
        self.tensors[key] = constant.view(-1, *[1] * (len(shape) - 1))
        return Node(name, "shift", (source,), {"amount": 1.0}, {"other": key}, self.nodes[source].path)

    def _constant(self, name: str) -> Tensor:
        """What a value lacks, [C]."""
        found = self.waiting.get(name)
        if found is not None:
            return found
        some = next(value for value in self.tensors.values() if value.is_floating_point())
        channels = self.shapes[name][0] if name in self.shapes else 1
        return some.new_zeros(channels, dtype=torch.float64)

    def _single_use(self, name: str) -> bool:
        return len(self.graph.consumers[name]) == 1 and name not in (self.graph.decoded, self.graph.output)

    def _weighted(self, node: Node) -> None:
        through = self._through(node)
        if through is None:
            node = dataclasses.replace(node, inputs=(self._whole(node.inputs[0]),))
        gain = self.gains.get(self.nodes[node.inputs[0]].path) if node.inputs[0] in self.sites else None
        if gain is not None:
            key = f"{node.name}/weight"
            weight = self.tensors[node.parameters["weight"]]
            self.tensors[key] = weight * gain.view(1, -1, *[1] * (weight.ndim - 2))
            node = dataclasses.replace(node, parameters={**node.parameters, "weight": key})
        bias = self.tensors.get(node.parameters.get("bias", ""))
        if node.operation == "linear" and len(self.shapes[node.name]) > 1:
            self._keep(node)  # its channels are not dimension 1
            return
        constant = bias if through is None else through if bias is None else through + bias
        self._keep(dataclasses.replace(node, parameters={"weight": node.parameters["weight"]}), constant)

    def _through(self, node: Node) -> Tensor | None:
        """What a convolution makes of the constant that its input lacks, `[C]`; None at borders that lack nothing."""
        constant = self.waiting.get(node.inputs[0])
        if constant is None or node.operation != "conv2d" or node.settings["padding"] not in ([0, 0], "valid"):
            return None
        groups, weight = node.settings["groups"], self.tensors[node.parameters["weight"]].sum((2, 3))
        per_group = constant.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
        return (weight * per_group.reshape(len(weight), -1)).sum(1)

    def _batch_norm(self, node: Node) -> None:
        parameters = {role: self.tensors[key] for role, key in node.parameters.items()}
        scale = batch_norm_scale(parameters, node.settings)
        shift = -parameters["running_mean"] * scale
        shift = shift + parameters["bias"] if "bias" in parameters else shift
        source = node.inputs[0]
        constant = self._constant(source) * scale + shift
        before = self.nodes.get(source)
        if before is not None and before.operation in ("conv2d", "linear") and self._single_use(source):
            weight = self.tensors[before.parameters["weight"]]
            key = f"{source}/weight"  # of its own: several layers may share the weights
            self.tensors[key] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            del self.nodes[source]
            self._keep(dataclasses.replace(before, name=node.name, parameters={"weight": key}), constant)
            return
        key = f"{node.name}/scale"
        self.tensors[key] = scale.view(-1, *[1] * (len(self.shapes[node.name]) - 1))
        scaled = Node(node.name, "scale", node.inputs, {"factor": 1.0, "inverse": False}, {"other": key}, node.path)
        self._keep(scaled, constant)

    def _addition(self, node: Node) -> None:
        first, second = node.inputs
        if self.shapes.get(first) != self.shapes.get(second):
            self._plain(node)
            return
        self._keep(node, self._constant(first) + node.settings["alpha"] * self._constant(second))

    def _neuron(self, node: Node) -> None:
        source = node.inputs[0]
        self.biases[node.path] = self._constant(source)
        before = self.nodes.get(source)
        inputs = node.inputs
        if (
            before is not None
            and before.operation == "add"
            and before.settings["alpha"] == 1
            and self._single_use(source)
            and all(self.shapes.get(name) == self.shapes[node.name] for name in before.inputs)
        ):
            inputs = tuple(sorted(before.inputs, key=lambda name: not self._is_new(name)))
            del self.nodes[source]
        elif before is not None and before.operation == "scale" and self._takes_gain(node, before):
            self.gains[node.path] = self.tensors[before.parameters["other"]].flatten()
            inputs = before.inputs
            del self.nodes[source]
        self.nodes[node.name] = dataclasses.replace(node, inputs=inputs)

    def _takes_gain(self, node: Node, scale: Node) -> bool:
        """Whether a neuron, run on what `scale` scales, gives what it would, but for a factor that weights take in."""
        if not (self.converted and node.activation.homogeneous and self._single_use(scale.name)):
            return False
        gain, shape = self.tensors.get(scale.parameters.get("other", "")), self.shapes[node.name]
        behind = self.graph.consumers[node.name]
        return (
            gain is not None
            and gain.shape == (shape[0], *[1] * (len(shape) - 1))
            and scale.settings == {"factor": 1.0, "inverse": False}
            and bool((gain > 0).all())
            and node.name not in (self.graph.decoded, self.graph.output)
            and all(self._takes_factors(user) for user in behind)
        )

    def _takes_factors(self, node: Node) -> bool:
        """Whether the weights of a node can take in what each channel of its input lacks."""
        return (
            node.operation == "conv2d" and node.settings["groups"] == 1 and node.name not in self.graph.behind_readout
        )

    def _is_new(self, name: str) -> bool:
        """Whether a value is in memory that a neuron may write to."""
        return name in self.nodes and self.nodes[name].operation in _NEW_MEMORY and self._single_use(name)

    def _owns(self, graph: Graph, node: Node) -> bool:
        name = node.inputs[0]
        return name != INPUT and graph[name].operation in _NEW_MEMORY and len(graph.consumers[name]) == 1

    def _commutes(self, node: Node) -> bool:
        if node.operation in ("mean", "sum", "amax"):
            return node.operation != "sum" and 1 not in node.settings["dim"]
        if node.operation == "avg_pool2d":
            return node.settings["padding"] == [0, 0] and node.settings["divisor_override"] is None
        return node.operation in _COMMUTING

    def _flattens(self, node: Node) -> bool:
        before, after = self.shapes.get(node.inputs[0]), self.shapes[node.name]
        return before is not None and len(after) == 1 and node.settings["kept"] == 0 and after[0] % before[0] == 0
