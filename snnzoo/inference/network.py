"""A folded graph with its neurons: what `prepare_for_inference` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.base import MemoryModule
from snnzoo.codings import Coding
from snnzoo.errors import UsageError
from snnzoo.graph.graph import Node
from snnzoo.graph.network import NOTHING, SpikingNetwork, Watch, each_step
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import parameters_of
from snnzoo.inference.folding import fold
from snnzoo.inference.neuron import Convolution, FoldedNeuron
from snnzoo.ops.spec import select
from snnzoo.threshold_node import ThresholdNode


class FoldedNetwork(SpikingNetwork):
    """The folded form of a network, in float64 on its device, from a fresh state.

    Args:
        net: converted or trained; not changed.

    Raises:
        UsageError: for a neuron that has no folded form.
    """

    _found: dict[str, Tensor] | None  # what `tensors` has found, until one is planted or moved
    _plain: dict[str, Callable[..., Tensor]]  # by name, nodes that do the same at each step, with their parameters

    def __init__(self, net: SpikingNetwork) -> None:
        folded = fold(net)
        neurons: dict[str, nn.Module] = {}
        for path, bias in folded.biases.items():
            node = net.neuron(path)
            if not isinstance(node, ThresholdNode):
                raise UsageError(
                    f"no fast form of neuron {type(node).__name__} is known: run the network itself instead"
                )
            neurons[path] = FoldedNeuron(node, bias, folded.gains.get(path, 1.0), in_place=path in folded.in_place)
        if not neurons:
            raise UsageError("the network has no spiking neurons: run the network itself instead")
        super().__init__(
            folded.graph,
            folded.tensors,
            neurons,
            net.coding,
            net.extrapolation,
            model_name=net.model_name,
            input_shape=net.input_shape,
        )
        self._neurons = {path: self.get_submodule(path) for path in neurons}
        self._sums_suffice = self._is_watched = False
        self._replaced: dict[str, nn.Module] = {}  # what integer weights take the place of
        self._runs: dict[str, list[Node]] = {}  # by neurons' names, what they run before themselves, the last first
        self._run_later: set[str] = set()  # the names of that
        self.eval().requires_grad_(False)

    def neuron(self, path: str) -> Any:
        return self._neurons[path]

    def plant(self, name: str, value: Tensor | nn.Module) -> None:
        self._forget_tensors()
        super().plant(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget_tensors()
        return super()._apply(fn, recurse)

    def _forget_tensors(self) -> None:
        self._found, self._plain = None, {}

    def tensors(self) -> dict[str, Tensor]:
        if self._found is None:  # they are looked at for each run of a few steps
            self._found = super().tensors()
            self._plain = {
                node.name: partial(node.row.run, **parameters_of(node, self._found), **node.settings)
                for node in self._before_readout
                if self._is_plain(node, self._found)
            }
        return self._found

    def _is_plain(self, node: Node, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a node is linear in changes, without a constant, and what it takes is changes."""
        if node.row.kind != "linear" or node.name in self.graph.before_neurons:
            return False
        constant = node.row.constant(parameters_of(node, tensors), node.settings, 4)
        return constant is None and not any(name in self.graph.before_neurons for name in node.inputs)

    def replace(self, node: Node, module: nn.Module) -> None:
        """Let a stateless module do what a node does."""
        self._replaced[node.name] = module

    def replace_input(self, node: Node, place: int, module: nn.Module) -> None:
        """Let a node take one of its inputs through a stateless module."""
        self._replaced[f"{node.name}/{place}"] = module

    def fuse_pointwise(self) -> None:
        """Let neurons run the 1x1 convolutions before them (`ops.pointwise_neurons`), unless values are watched."""
        graph = self.graph
        for node in self.sites:
            for name in node.inputs:
                before = graph[name] if name != INPUT else node
                if self._is_pointwise(before) and len(graph.consumers[name]) == 1 and name not in graph.before_neurons:
                    self._fuse(node, before)
                    break

    def fuse_depthwise(self) -> None:
        """Let neurons run a depthwise convolution before them, the neurons before that, and their 1x1 convolution.

        That is for `ops.depthwise_neurons`, unless values are watched.
        """
        for node in self.sites:
            convolution = self._only_input(node)
            source = None if convolution is None else self._only_input(convolution)
            if convolution is None or source is None or source.name not in self._sites or len(source.inputs) > 1:
                continue
            have_one_coding = self.neuron(source.path).coding == self.neuron(node.path).coding
            if self._is_depthwise(convolution) and have_one_coding and source.name not in self._runs:
                first = self._only_input(source)
                is_late = first is not None and first.name not in self.graph.before_neurons
                more = [first] if first is not None and is_late and self._is_pointwise(first) else []
                self._fuse(node, convolution, source, *more)

    def _fuse(self, node: Node, *before: Node) -> None:
        self._runs[node.name] = list(before)
        self._run_later.update(each.name for each in before)

    def _convolution(self, node: Node, tensors: Mapping[str, Tensor]) -> Convolution | None:
        """What a neuron runs before itself."""
        if self._is_watched or node.name not in self._runs:
            return None
        convolution, source, first = (*self._runs[node.name], None, None)[:3]
        assert convolution is not None
        return Convolution(
            tensors[convolution.parameters["weight"]],
            convolution.settings,
            None if source is None else self.neuron(source.path),
            None if first is None else Convolution(tensors[first.parameters["weight"]], first.settings),
        )

    def _only_input(self, node: Node) -> Node | None:
        """The node before this one, if nothing else takes its value, and this one takes no other."""
        if len(node.inputs) > 1 or node.inputs[0] == INPUT or len(self.graph.consumers[node.inputs[0]]) > 1:
            return None
        return self.graph[node.inputs[0]]

    def _is_depthwise(self, node: Node) -> bool:
        if node.operation != "conv2d" or "bias" in node.parameters:
            return False
        weight = self.tensors()[node.parameters["weight"]]
        return len(weight) == node.settings["groups"] and weight.shape[1] == 1

    def _is_pointwise(self, node: Node) -> bool:
        settings = {"stride": [1, 1], "padding": [0, 0], "groups": 1}
        return (
            node.operation == "conv2d"
            and "bias" not in node.parameters
            and settings.items() <= node.settings.items()
            and self.tensors()[node.parameters["weight"]].shape[2:] == (1, 1)
        )

    def _converted(self, node: Node, place: int, x_seq: Tensor) -> Tensor:
        module = self._replaced.get(f"{node.name}/{place}")
        return x_seq if module is None else each_step(module, [x_seq])

    def use(self, coding: Coding) -> None:
        """Let all neurons take other settings of their coding."""
        assert type(coding) is type(self.coding)
        self.coding = coding
        for path in self._paths:
            self.neuron(path).coding = coding

    def cast(self, dtype: torch.dtype, precise: torch.dtype) -> None:
        """To `dtype`; neurons, and what follows the readout, to one with room for sums."""
        late = {key for node in self._behind_readout for key in node.parameters.values()}
        for key, value in self.tensors().items():
            if value.is_floating_point() and not any(key.startswith(f"{path}.") for path in self._paths):
                cast = value.detach().to(precise if key in late else dtype)
                self.plant(key, nn.Parameter(cast, False) if isinstance(value, nn.Parameter) else cast)
        for path in self._paths:
            self.neuron(path).to(precise)
        self.precise = precise

    @property
    def _paths(self) -> list[str]:
        return [node.path for node in self.sites]

    def signals(self, x_seq: Tensor, watch: Watch | None = None, known: Mapping[str, Tensor] = NOTHING) -> Tensor:
        self._is_watched = watch is not None
        return super().signals(x_seq, watch, known).to(self.precise)

    def select(self, chosen: Tensor) -> None:
        """Go on with the state of some images only: their places in the batch, `[n]`."""
        for module in self.modules():
            if isinstance(module, FoldedNeuron):
                module.select(chosen)
            elif isinstance(module, MemoryModule):
                for name, value in module.named_memories():
                    if isinstance(value, Tensor):
                        setattr(module, name, select(value, chosen))

    def _run_node(self, node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
        if self._replaced:
            inputs = [self._converted(node, place, x) for place, x in enumerate(inputs)]
        if self._sums_suffice and not self._adds_up and self._is_summed(node):
            inputs = [x.mean(0, keepdim=True) for x in inputs]
        if node.name in self._replaced:
            return each_step(self._replaced[node.name], inputs)
        if node.name in self._run_later and not self._is_watched:
            return inputs[0]  # the neuron behind it will run it
        if node.name in self._plain and not self._sums_suffice:
            return each_step(self._plain[node.name], inputs)
        if node.name not in self._sites:
            return super()._run_node(node, tensors, inputs)
        neuron, convolution = self.neuron(node.path), self._convolution(node, tensors)
        if convolution is not None and node.inputs[0] != self._runs[node.name][0].name:
            inputs.reverse()
        residual = inputs[1] if len(inputs) > 1 else None
        if not (self._sums_suffice and node.name in self.graph.behind_neurons):
            return neuron(inputs[0], residual, convolution=convolution)  # type: ignore[no-any-return]
        total: Tensor = neuron(inputs[0], residual, output="sum", convolution=convolution).unsqueeze(0)
        return total if self._adds_up else total / len(inputs[0])

    def _is_summed(self, node: Node) -> bool:
        """Whether a node runs once on sums over time: all that follows it is linear."""
        graph = self.graph
        is_late = node.name in graph.behind_neurons and node.name not in graph.before_neurons
        return is_late and node.row.kind == "linear"

    def _change_of(self, node: Node, name: str, x_seq: Tensor) -> Tensor:
        changes = super()._change_of(node, name, x_seq)
        return changes.sum(0, keepdim=True) if self._sums_suffice and self._is_summed(node) else changes

    def total(self, x_seq: Tensor, is_last: bool) -> Tensor:
        """Return the sum over time of what is read out, `[N, ...]`; in the end with the readout's extrapolation.

        Neurons behind which all is linear are summed up as they fire, and what follows runs once.
        """
        if self.extrapolation and is_last:
            y_seq = self.signals(x_seq)
            return y_seq.sum(0) + self.extrapolation * y_seq[-1]
        self._sums_suffice = True
        try:
            y_seq = self.signals(x_seq)
        finally:
            self._sums_suffice = False
        if len(y_seq) == 1:
            return y_seq[0] if self._adds_up else y_seq[0] * len(x_seq)
        return y_seq.sum(0)  # no neuron is the last: a product or a pool is

    def classify_total(self, total: Tensor, time_steps: int) -> Tensor:
        """Return the logits `[N, classes]` of what was read out, summed over `time_steps`."""
        decoded = total if self._adds_up else total / time_steps
        return self.classify(decoded.unsqueeze(0))[0]

    @property
    def _adds_up(self) -> bool:
        return self.coding is not None and self.coding.readout == "sum"

    @property
    def totals_suffice(self) -> bool:
        """Whether the last readout depends on the sum over time alone."""
        return self.coding is not None or all(node.row.kind == "linear" for node in self._behind_readout)
