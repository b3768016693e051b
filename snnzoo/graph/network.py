"""A graph with its tensors: the ANN that it is, and the spiking network that it becomes with neurons in place.

What a signal of a spiking network means depends on the coding. Where outputs add up to what they stand for
(`bias_once`), signals are changes: linear operations pass them on, constants enter once, and what is not linear keeps
what its inputs add up to and sends how its output changes. Where the mean of outputs decodes, constants enter at every
step. Values that depend on no neuron are the ANN's own, of the mean of the frames so far where the mean decodes; a
static image's are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.base import MemoryModule, StepModule
from snnzoo.codings import Coding
from snnzoo.errors import SnnzooError
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import parameters_of, run_graph, run_node
from snnzoo.graph.shapes import value_shapes
from snnzoo.layer import Readout

Watch = Callable[[Node, list[Tensor], Tensor], None]

NOTHING: Mapping[str, Tensor] = MappingProxyType({})

_STATISTICS = ("running_mean", "running_var")


class GraphModule(nn.Module):
    """Tensors under the names that they have in the network they are from, and the graph that uses them.

    Args:
        graph: its parameters are keys of `tensors`.
        tensors: a state_dict; what the graph does not use is kept, too.
        model_name: in the zoo, or of the user's class.
        input_shape: of an image that it was captured with, `[C, H, W]`.
    """

    by_position = False  # whether its layers were known by their order and shapes alone (checkpoints.positional)

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], model_name: str, input_shape: list[int]) -> None:
        super().__init__()
        self.model_name, self.input_shape = model_name, input_shape
        self.graph = graph
        self._places: list[tuple[str, nn.Module, str]] | None = None
        trained = {key for node in graph for role, key in node.parameters.items() if role not in _STATISTICS}
        for key, value in tensors.items():
            self.plant(key, nn.Parameter(value) if key in trained and value.is_floating_point() else value)

    def plant(self, name: str, value: Tensor | nn.Module) -> None:
        """Put a tensor or module at a dotted name; modules on the way are made.

        Raises:
            SnnzooError: if something else has that name.
        """
        *parents, last = name.split(".")
        module: nn.Module = self
        self._places = None
        try:
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            if isinstance(value, nn.Parameter):
                module.register_parameter(last, value)
            elif isinstance(value, nn.Module):
                held = module._modules.get(last)
                if held is not None:  # a module of that name holds tensors of the ANN: those of a PReLU
                    for key, tensor in held.state_dict(keep_vars=True).items():
                        value.register_buffer(key, tensor.detach())
                    del module._modules[last]
                module.add_module(last, value)
            else:
                module.register_buffer(last, value)
        except (KeyError, AttributeError) as error:
            raise SnnzooError(f"{name} cannot be a name in a converted network: {error.args[0]}; rename it") from None

    @property
    def num_classes(self) -> int:
        """How many logits it gives."""
        return value_shapes(self.graph, self.tensors(), self.input_shape, self.model_name)[self.graph.output][0]

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers by name."""
        if self._places is None:  # found once: to walk over all modules takes longer than a small layer
            named = (*self.named_parameters(), *self.named_buffers())
            self._places = [
                (key, self.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2]) for key, _ in named
            ]
        return {key: getattr(module, name) for key, module, name in self._places}


class Ann(GraphModule):
    """The ANN of a graph: `[N, C, H, W] -> [N, classes]`."""

    def forward(self, images: Tensor) -> Tensor:
        return run_graph(self.graph, self.tensors(), images)

    def with_graph(self, graph: Graph) -> Ann:
        """Return the ANN of another graph with these tensors."""
        if graph == self.graph:
            return self
        other = Ann(
            graph, {key: value.detach() for key, value in self.tensors().items()}, self.model_name, self.input_shape
        )
        other.by_position = self.by_position
        return other.train(self.training)


class _Sum(MemoryModule):
    """What a signal adds up to, after each step."""

    total: Tensor | None

    def __init__(self) -> None:
        super().__init__("m")
        self.register_memory("total", None)

    def forward(self, x_seq: Tensor) -> Tensor:
        sums = []
        for x in x_seq.to(torch.promote_types(x_seq.dtype, torch.float32)):
            # not cumsum, whose rounding differs from that of one step after the other
            self.total = x if self.total is None else self.total + x
            sums.append(self.total)
        return torch.stack(sums)


class _Change(MemoryModule):
    """How a value changes from step to step; the first change is from 0."""

    last: Tensor | None

    def __init__(self) -> None:
        super().__init__("m")
        self.register_memory("last", None)

    def forward(self, x_seq: Tensor) -> Tensor:
        before = torch.zeros_like(x_seq[:1]) if self.last is None else self.last.unsqueeze(0)
        self.last = x_seq[-1]
        return x_seq - torch.cat([before, x_seq[:-1]])


class SpikingNetwork(GraphModule, StepModule):
    """A graph with neurons: `[T, N, C, H, W] -> [T, N, classes]`, or `[N, ...] -> [N, classes]` step by step.

    Args:
        graph: of the ANN.
        tensors: the ANN's state_dict.
        neurons: for activations' paths, what stands in their place; those without one stay as they are.
        coding: of all neurons; None for a trained network, whose signals are what they are, step by step.
        extrapolation: of the readout (`layer.Readout`).
        model_name, input_shape: as of every `GraphModule`.
    """

    conversion: object | None = None  # how it was made (conversion.Conversion)

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        neurons: Mapping[str, nn.Module],
        coding: Coding | None,
        extrapolation: float = 0.0,
        *,
        model_name: str,
        input_shape: list[int],
    ) -> None:
        GraphModule.__init__(self, graph, tensors, model_name, input_shape)
        self.step_mode = "m"
        self.coding, self.extrapolation = coding, extrapolation
        self._t = 0
        self.sites = tuple(node for node in graph.neurons if node.path in neurons)
        self._sites = frozenset(node.name for node in self.sites)
        self._before_readout = [node for node in graph if node.name not in graph.behind_readout]
        self._behind_readout = [node for node in graph if node.name in graph.behind_readout]
        for node in self.sites:
            self.plant(node.path, neurons[node.path])
        self._decode: nn.Module = nn.Identity()
        if coding is not None:
            self._decode = Readout(coding.readout, "m", extrapolation)
        self._sums, self._changes = nn.ModuleDict(), nn.ModuleDict()  # by node, and by its input
        for node in graph:
            self._remember(node)
        self._sends_changes = frozenset(self._changes)

    def _remember(self, node: Node) -> None:
        """Make the memory that a node needs on changes."""
        graph = self.graph
        if self.coding is None or node.name in self._sites or node.name in graph.behind_readout:
            return
        if node.name in graph.before_neurons and (self.coding.bias_once or node.row.kind != "nonlinear"):
            return
        early = [name for name in node.inputs if name in graph.before_neurons]
        if node.row.kind == "nonlinear":
            self._changes[_key(node.name)] = _Change()
            for name in node.inputs:
                if not (self.coding.bias_once and name in early):
                    self._sums[_key(node.name, name)] = _Sum()
        elif self.coding.bias_once:
            for name in early:
                self._changes[_key(node.name, name)] = _Change()

    def neuron(self, path: str) -> Any:
        """Return the neuron in the place of the activation at `path`."""
        return self.get_submodule(path)

    def reset(self) -> None:
        """Forget which step is next; `functional.reset_net` resets the neurons, too."""
        self._t = 0

    def forward(self, x: Tensor) -> Tensor:
        expected = "[T, N, C, H, W]" if self.step_mode == "m" else "[N, C, H, W]"
        if x.ndim != expected.count(",") + 1:
            raise ValueError(
                f"{type(self).__name__} has step_mode={self.step_mode!r} and needs an input {expected}, "
                f"got shape {list(x.shape)}"
            )
        return self.run(x) if self.step_mode == "m" else self.run(x.unsqueeze(0))[0]

    def run(self, x_seq: Tensor, watch: Watch | None = None, known: Mapping[str, Tensor] = NOTHING) -> Tensor:
        """Return the logits after each step, `[T, N, classes]`.

        Args:
            watch: called with each node, its inputs and its value, `[T, N, ...]`.
            known: what `front` gave for this input, or nothing: then all is computed.
        """
        return self.read_out(self.signals(x_seq, watch, known), watch)

    def front(self, x_seq: Tensor, watch: Watch | None = None) -> dict[str, Tensor]:
        """Return the values before all neurons that what follows needs, by name: a static image's are so at each t."""
        graph, values, tensors = self.graph, {INPUT: x_seq}, self.tensors()
        for node in self._before_readout:
            if node.name in graph.before_neurons:
                inputs = [values[name] for name in node.inputs]
                values[node.name] = self._run_node(node, tensors, inputs)
                if watch is not None:
                    watch(node, inputs, values[node.name])
        needed = {
            name for node in self._before_readout if node.name not in graph.before_neurons for name in node.inputs
        }
        return {name: value for name, value in values.items() if name in needed}

    def signals(self, x_seq: Tensor, watch: Watch | None = None, known: Mapping[str, Tensor] = NOTHING) -> Tensor:
        """Return what is read out, `[T, N, ...]`: the sequence before it is decoded."""
        values = {INPUT: x_seq, **known}
        tensors = self.tensors()
        for node in self._before_readout:
            if known and node.name in self.graph.before_neurons:
                continue
            inputs = [values[name] for name in node.inputs]
            for name in self.graph.last_uses[node.name]:
                del values[name]
            values[node.name] = self._run_node(node, tensors, inputs)
            if watch is not None:
                watch(node, inputs, values[node.name])
        self._t += len(x_seq)
        return values[self.graph.decoded]

    def run_alone(self, node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
        """Return what a node before the readout makes of whole sequences, which begin at t = 0; no state is left.

        Args:
            tensors: what `tensors()` returns.
            inputs: `[T, N, ...]` each; a neuron may write to the memory of its own.
        """
        value = self._run_node(node, tensors, inputs)
        for memory in self._memories(node):
            memory.reset()
        return value

    def _memories(self, node: Node) -> Iterator[Any]:
        """The modules that keep a state for a node."""
        if node.name in self._sites:
            yield self.neuron(node.path)
        for key in (_key(node.name), *(_key(node.name, name) for name in node.inputs)):
            for memories in (self._sums, self._changes):
                if key in memories:
                    yield memories[key]

    def read_out(self, signals: Tensor, watch: Watch | None = None) -> Tensor:
        """Return the logits after each step, `[T, N, classes]`, of what `signals` gave."""
        return self.classify(self._stepwise(self._decode, signals), watch)

    def classify(self, decoded: Tensor, watch: Watch | None = None) -> Tensor:
        """Return the logits of what was decoded, `[T, N, ...] -> [T, N, classes]`."""
        values = {self.graph.decoded: decoded}
        tensors = self.tensors()
        for node in self._behind_readout:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = node_each_step(node, tensors, inputs)
            if watch is not None:
                watch(node, inputs, values[node.name])
        return values[self.graph.output]

    def _stepwise(self, module: nn.Module, x_seq: Tensor) -> Tensor:
        """Run a module that has this network's step mode."""
        return module(x_seq) if self.step_mode == "m" else module(x_seq[0]).unsqueeze(0)

    def _run_node(self, node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
        if node.name in self._sites:
            return self._stepwise(self.neuron(node.path), inputs[0])
        if self.coding is None:
            return node_each_step(node, tensors, inputs)
        if _key(node.name) in self._sends_changes:
            return self._nonlinear(node, inputs)
        if node.name in self.graph.before_neurons:
            return node_each_step(node, tensors, inputs)
        if not self.coding.bias_once:
            return node_each_step(node, tensors, inputs)
        return self._linear_in_changes(node, tensors, inputs)

    def _linear_in_changes(self, node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
        """The constant part enters at t = 0 alone."""
        row = node.row
        parameters = parameters_of(node, tensors)
        linear = row.without_constant(parameters, node.settings)
        changes = [self._change_of(node, name, x) for name, x in zip(node.inputs, inputs, strict=True)]
        if linear is None:  # nothing but a constant: a shift
            y_seq = changes[0]
        else:
            y_seq = each_step(lambda *x: row.run(*x, **linear, **node.settings), changes)
        constant = row.constant(parameters, node.settings, y_seq.ndim - 1) if self._t == 0 else None
        if constant is not None:
            y_seq = y_seq.clone()  # in its memory format, which a join would lose
            y_seq[0] += constant
        return y_seq

    def _change_of(self, node: Node, name: str, x_seq: Tensor) -> Tensor:
        """What an input changes by; of values before all neurons, that has to be found."""
        key = _key(node.name, name)
        return self._changes[key](x_seq) if key in self._sends_changes else x_seq  # type: ignore[no-any-return]

    def _nonlinear(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """What the inputs add up to goes in; the change of what comes out is sent."""
        assert self.coding is not None
        if self._t == 0 and all(is_static(x) for x in inputs):
            return self._of_static(node, inputs)
        sums = [
            self._sums[_key(node.name, name)](x) if _key(node.name, name) in self._sums else x
            for name, x in zip(node.inputs, inputs, strict=True)
        ]
        if self.coding.bias_once:
            y_seq = node_each_step(node, {}, sums)
        else:  # the mean so far goes in
            counts = torch.arange(self._t + 1, self._t + 1 + len(sums[0]), dtype=sums[0].dtype, device=sums[0].device)
            y_seq = node_each_step(node, {}, [x / counts.view(-1, *[1] * (x.ndim - 1)) for x in sums])
            y_seq = y_seq * counts.view(-1, *[1] * (y_seq.ndim - 1))
        return self._changes[_key(node.name)](y_seq).to(inputs[0].dtype)  # type: ignore[no-any-return]

    def _of_static(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """The value of a static image, once; the memories as if it had been computed at each step."""
        y_seq = node_each_step(node, {}, inputs)
        time_steps = len(y_seq)
        for name, x in zip(node.inputs, inputs, strict=True):
            self._sums[_key(node.name, name)].total = x[0] * time_steps
        self._changes[_key(node.name)].last = y_seq[0] * time_steps
        return y_seq

    def extra_repr(self) -> str:
        return f"{len(self._sites)} neuron sites, {self.coding or 'trained'}, step_mode={self.step_mode!r}"


def node_each_step(node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor]) -> Tensor:
    """Run a node as it is on sequences `[T, N, ...]`."""
    return each_step(lambda *x: run_node(node, tensors, list(x)), inputs)


def is_static(x_seq: Tensor) -> bool:
    """Return whether a sequence is one step, expanded over time."""
    return x_seq.stride(0) == 0 and len(x_seq) > 1


def each_step(function: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    """Run a stateless function on sequences `[T, N, ...]`, time folded into the batch; once, if nothing changes."""
    time_steps, batch = inputs[0].shape[:2]
    if time_steps == 1:
        return function(*(x[0] for x in inputs)).unsqueeze(0)
    if all(is_static(x) for x in inputs):
        y = function(*(x[0] for x in inputs))
        return y.unsqueeze(0).expand(time_steps, *y.shape)
    return function(*(x.flatten(0, 1) for x in inputs)).unflatten(0, (time_steps, batch))


@lru_cache(maxsize=4096)
def _key(*names: str) -> str:
    return "/".join(names).replace(".", "/")
