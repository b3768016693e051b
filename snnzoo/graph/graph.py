"""A network as data: nodes in the order in which they run, and the JSON that a file keeps of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from snnzoo.codings.activations import Activation, activation_from_dict
from snnzoo.errors import CheckpointError, suggestion
from snnzoo.graph.operations import INPUT, OPERATIONS, Operation
from snnzoo.graph.settings import REQUIRED

MOST_NODES = 20_000
MOST_INPUTS = 1_000  # of one node
LONGEST_NAME = 1_000
_KEYS = {"name", "operation", "inputs", "settings", "parameters", "path"}


@dataclass(frozen=True)
class Node:
    """One operation of a network.

    Args:
        name: unique in its graph.
        operation: a row of `operations.OPERATIONS`.
        inputs: names of earlier nodes, or "input".
        settings: plain values, as JSON has them.
        parameters: for each role ("weight", "bias" ...) the key of a tensor in the network's state_dict.
        path: where it is: the module that called it; of an activation, the name of the neuron in its place.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    path: str = ""

    @property
    def row(self) -> Operation:
        return OPERATIONS[self.operation]

    @property
    def is_activation(self) -> bool:
        return self.row.kind == "activation"

    @cached_property
    def activation(self) -> Activation:
        """The function of an activation node."""
        return activation_from_dict(self.settings["function"], self.path or self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the node as JSON has it; what is empty is left out."""
        fields = {
            "name": self.name,
            "operation": self.operation,
            "inputs": list(self.inputs),
            "settings": dict(self.settings),
            "parameters": dict(self.parameters),
            "path": self.path,
        }
        return {key: value for key, value in fields.items() if value}


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run.

    Args:
        nodes: each after those that it takes its inputs from.
        output: name of the node whose value is the network's.
        readout: name of the value that is read out in a spiking network; all behind it is the ANN's own. None for the
            input of the last linear layer, or the output where a neuron is behind that.
    """

    nodes: tuple[Node, ...]
    output: str
    readout: str | None = None

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """For each value, the nodes that take it."""
        found: dict[str, list[Node]] = {INPUT: [], **{node.name: [] for node in self.nodes}}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    @cached_property
    def last_uses(self) -> dict[str, tuple[str, ...]]:
        """For each node, the values that nothing takes after it has run."""
        last = {name: users[-1].name for name, users in self.consumers.items() if users and name != self.output}
        freed: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for name, user in last.items():
            freed[user].append(name)
        return {name: tuple(values) for name, values in freed.items()}

    @cached_property
    def neurons(self) -> tuple[Node, ...]:
        """The activations that neurons stand for, in the order in which they run: all before the readout."""
        return tuple(node for node in self.nodes if node.is_activation and node.name not in self.behind_readout)

    @cached_property
    def before_neurons(self) -> frozenset[str]:
        """Values that depend on no neuron: functions of the network's input alone."""
        known = {INPUT}
        for node in self.nodes:
            if not node.is_activation and all(name in known for name in node.inputs):
                known.add(node.name)
        return frozenset(known)

    @cached_property
    def behind_neurons(self) -> frozenset[str]:
        """Nodes from which on only linear operations follow, up to the output."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            linear = all(user.row.kind == "linear" and user.name in found for user in self.consumers[node.name])
            if linear and (node.name == self.output or self.consumers[node.name]):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def decoded(self) -> str:
        """The value that is read out."""
        if self.readout is not None:
            return self.readout
        last = self[self.output]
        return last.inputs[0] if last.operation == "linear" and last.inputs[0] in self.behind_neurons else last.name

    @cached_property
    def behind_readout(self) -> frozenset[str]:
        """Values that depend on what is read out."""
        found: set[str] = set()
        for node in self.nodes:
            if any(name == self.decoded or name in found for name in node.inputs):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def analog(self) -> frozenset[str]:
        """Values that are the ANN's own: before all neurons, and behind the readout."""
        return self.before_neurons | self.behind_readout

    def with_nodes(self, nodes: Sequence[Node], output: str | None = None) -> Graph:
        """Return the graph of these nodes, without those that the output does not depend on."""
        output = output or self.output
        needed = {output}
        for node in reversed(nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return Graph(tuple(node for node in nodes if node.name in needed), output, self.readout)

    def to_json(self) -> str:
        """Return the graph as JSON."""
        nodes = [node.to_dict() for node in self.nodes]
        return json.dumps({"nodes": nodes, "output": self.output, "readout": self.readout})

    @classmethod
    def from_json(cls, text: str, source: str) -> Graph:
        """Return the inverse of `to_json`, every node checked.

        Raises:
            CheckpointError: naming `source` and the node, if anything is not as the table of operations has it.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise CheckpointError(f"{source}: its graph is damaged: no JSON") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("nodes"), list):
            raise CheckpointError(f"{source}: its graph is damaged: it has no list of nodes")
        if len(fields["nodes"]) > MOST_NODES:
            raise CheckpointError(
                f"{source}: its graph has {len(fields['nodes'])} nodes, at most {MOST_NODES} are read"
            )
        known = {INPUT}
        nodes = []
        for place, entry in enumerate(fields["nodes"]):
            nodes.append(_read_node(entry, known, f"{source}: node {place} of its graph"))
            known.add(nodes[-1].name)
        output = fields.get("output")
        if not isinstance(output, str) or output not in known - {INPUT}:
            raise CheckpointError(f"{source}: its graph is damaged: its output is none of its nodes")
        readout = fields.get("readout")
        if readout is not None and (not isinstance(readout, str) or readout not in known - {INPUT}):
            raise CheckpointError(f"{source}: its graph is damaged: its readout is none of its nodes")
        graph = cls(tuple(nodes), output, readout)
        if any(
            name not in graph.behind_readout | {graph.decoded}
            for node in graph
            for name in node.inputs
            if node.name in graph.behind_readout
        ):
            raise CheckpointError(f"{source}: its graph is damaged: what is behind its readout needs what is before it")
        if len({node.path for node in graph.neurons}) < len(graph.neurons):
            raise CheckpointError(f"{source}: its graph is damaged: two activations have one path")
        return graph


def _read_node(entry: Any, known: set[str], where: str) -> Node:
    if not isinstance(entry, dict) or entry.keys() - _KEYS or not {"name", "operation", "inputs"} <= entry.keys():
        raise CheckpointError(f"{where} is damaged: expected an object with name, operation and inputs")
    name, operation, inputs = entry["name"], entry["operation"], entry["inputs"]
    if not _is_name(name) or name in known:
        raise CheckpointError(f"{where} is damaged: its name is missing, too long or taken")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        hint = suggestion(str(operation)[:LONGEST_NAME], OPERATIONS, "update snnzoo")
        raise CheckpointError(f"{where} has an unknown operation {str(operation)[:40]!r}: {hint}")
    row = OPERATIONS[operation]
    if not isinstance(inputs, list) or not all(isinstance(i, str) and i in known for i in inputs):
        raise CheckpointError(f"{where} is damaged: its inputs must be nodes before it")
    wrong_number = not 1 <= len(inputs) <= MOST_INPUTS if row.signals is None else len(inputs) != row.signals
    if wrong_number:
        raise CheckpointError(f"{where} is damaged: {operation} does not take {len(inputs)} inputs")
    path = entry.get("path", "")
    if not isinstance(path, str) or len(path) > LONGEST_NAME:
        raise CheckpointError(f"{where} is damaged: its path must be a short text")
    parameters = _read_parameters(entry.get("parameters", {}), row, where)
    node = Node(name, operation, tuple(inputs), _read_settings(entry.get("settings", {}), row, where), parameters, path)
    if node.is_activation:
        if not _is_name(path):
            raise CheckpointError(f"{where} is damaged: an activation needs a path")
        activation_from_dict(node.settings["function"], where)
    return node


def _read_parameters(parameters: Any, row: Operation, where: str) -> dict[str, str]:
    if not isinstance(parameters, dict) or not all(_is_name(key) for key in parameters.values()):
        raise CheckpointError(f"{where} is damaged: its parameters must be keys of tensors")
    if parameters.keys() - set(row.parameters) or set(row.required) - parameters.keys():
        raise CheckpointError(
            f"{where} is damaged: {row.name} has the parameters {', '.join(row.parameters) or 'none'}"
        )
    return parameters


def _read_settings(settings: Any, row: Operation, where: str) -> dict[str, Any]:
    if not isinstance(settings, dict) or settings.keys() - row.settings.keys():
        raise CheckpointError(f"{where} is damaged: {row.name} has the settings {', '.join(row.settings) or 'none'}")
    read = {}
    for name, setting in row.settings.items():
        value = settings.get(name, setting.default)
        if value is REQUIRED:
            raise CheckpointError(f"{where} is damaged: the setting {name} of {row.name} is missing")
        if name in settings and not setting.accepts(value):
            raise CheckpointError(f"{where} is damaged: the setting {name} of {row.name} must be {setting.expected}")
        read[name] = value
    return read


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME
