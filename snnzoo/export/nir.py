"""Networks as NIR graphs (Pedersen et al. 2024, Nature Communications 15, 8122), read by many tools and chips.

NIR has binary spikes. What a converted spike is worth, its threshold, is folded into the weights behind it, and
BN into those before it: every threshold is then 1.

A NIR graph is in continuous time; read with the time step `dt` in which it was written, it computes what the
network computes, step by step:

    IF:   v += r * dt * x,                       r = 1 / dt
    LIF:  v += dt / tau * (v_leak - v + r * x),  tau = steps * dt,  r = 1 (input decays) or steps (it does not)

Potentials are shifted so that all start from 0, whatever `v_reset` is. NIR's IF and LIF reset to a value; a
soft reset is written with an integrator, a threshold, and a connection back that takes the threshold off before
the next step. This also holds rate coding's start from half the threshold.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from snnzoo._version import __version__
from snnzoo.checkpoints.output import atomic_output
from snnzoo.codings import IF, LIF, Rate
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError
from snnzoo.graph.graph import Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.operations import INPUT, batch_norm_scale
from snnzoo.graph.shapes import value_shapes
from snnzoo.graph.trained import as_graph
from snnzoo.models.base import SpikingNet
from snnzoo.threshold_node import ThresholdNode

DT = 1e-4  # seconds; what most readers take for granted

ALL_DIMS = [2, 3]  # of a mean over all pixels


def write_nir(
    net: SpikingNet | SpikingNetwork,
    path: str | Path,
    input_shape: tuple[int, ...],
    *,
    replace: bool = True,
    **options: Any,
) -> None:
    """Write `to_nir(net, input_shape, **options)` to a file, wholly or not at all.

    Raises:
        SnnzooError: as `to_nir`, or if the file cannot be written.
    """
    graph = to_nir(net, input_shape, **options)
    content = io.BytesIO()  # HDF5 may not notice that a disk is full
    nir.write(content, graph)
    with atomic_output(Path(path), replace=replace) as temporary:
        temporary.write_bytes(content.getbuffer())


def to_nir(
    net: SpikingNet | SpikingNetwork, input_shape: tuple[int, ...], *, stem: bool = True, dt: float = DT
) -> nir.NIRGraph:
    """The network as a NIR graph that takes one step of input, `[C, H, W]`, and gives one step of logits.

    The logits of a rate-coded network are the mean of all steps' outputs so far; what it starts from,
    a constant image, is its input at every step.

    Args:
        net: with IF, LIF or PLIF neurons, or converted with the recipe "rate".
        input_shape: of one image, `[C, H, W]`.
        stem: False leaves out what is before the first neuron, for torchvision's ResNets, whose stem has a
            max pool: the graph's input is the first neuron's input current, which the host computes.
        dt: seconds of one step.

    Raises:
        SnnzooError: naming the layer, if NIR cannot express the network, and what to do instead.
    """
    if not any(isinstance(module, ThresholdNode) for module in net.modules()):
        raise SnnzooError("the network has no spiking neurons: a NIR graph would have no use of time")
    network = as_graph(net, input_shape).cpu()
    shapes = {INPUT: tuple(input_shape)}
    shapes |= value_shapes(network.graph, network.tensors(), input_shape, network.model_name)
    start = INPUT if stem else network.sites[0].inputs[0]
    builder = _Builder(network, dt, shapes, start)
    needed = _needed(network, start)
    for node in network.graph:
        if node.name in needed:
            builder.add(node)
    return builder.graph(network.graph.output, _metadata(net))


def _needed(network: SpikingNetwork, start: str) -> set[str]:
    """The nodes that the output depends on, from the value `start` on."""
    needed, pending = set(), [network.graph.output]
    while pending:
        name = pending.pop()
        if name not in needed and name not in (start, INPUT):
            needed.add(name)
            pending += network.graph[name].inputs
    return needed


@dataclass
class _Draft:
    """A convolution or linear layer whose weights still change: BN, spike values and thresholds are folded in."""

    weight: Tensor
    bias: Tensor
    input_size: tuple[int, ...]
    conv: dict[str, Any] | None  # stride, padding and dilation; None of a linear layer

    def scale(self, factor: Tensor) -> None:
        """Multiply output channel c by `factor[c]`."""
        self.weight = self.weight * factor.view(-1, *[1] * (self.weight.ndim - 1))
        self.bias = self.bias * factor

    def node(self) -> nir.NIRNode:
        weight, bias = _array(self.weight), _array(self.bias)
        if self.conv is None:
            return nir.Affine(weight, bias)
        stride, padding, dilation = (self.conv[name] for name in ("stride", "padding", "dilation"))
        padding = padding if isinstance(padding, str) else tuple(padding)
        return nir.Conv2d(self.input_size, weight, tuple(stride), padding, tuple(dilation), 1, bias)


@dataclass
class _Signal:
    """A sum of the outputs of nodes. `shape` is that of one image; `stride` says which rows and columns are taken."""

    shape: tuple[int, ...]
    sources: list[str]
    stride: tuple[int, int] = (1, 1)


class _Builder:
    """Adds the nodes of a network's graph one by one."""

    def __init__(self, network: SpikingNetwork, dt: float, shapes: dict[str, tuple[int, ...]], start: str) -> None:
        self.network, self.dt, self.shapes = network, dt, shapes
        self.tensors = {key: value.detach().double() for key, value in network.tensors().items()}
        self.sites = {node.name for node in network.sites}
        self.nodes: dict[str, nir.NIRNode | _Draft] = {"input": nir.Input({"input": np.array(shapes[start])})}
        self.edges: list[tuple[str, str]] = []
        self.spike_value = {"input": _ones(shapes[start][0])}  # of a unit of each node's output, in the network, [C]
        self.signals = {start: _Signal(shapes[start], ["input"])}

    def graph(self, output: str, metadata: dict[str, Any]) -> nir.NIRGraph:
        signal = self.signals[output]
        self.nodes["output"] = nir.Output({"output": np.array(signal.shape)})
        self._connect(signal, "output")
        nodes = {name: node.node() if isinstance(node, _Draft) else node for name, node in self.nodes.items()}
        return nir.NIRGraph(nodes, self.edges, metadata)

    def add(self, node: Node) -> None:
        """Add one node."""
        if any(name not in self.signals for name in node.inputs):
            raise SnnzooError(
                f"{node.path or node.name} needs more than the first neuron's input: export without --without-stem"
            )
        inputs = [self.signals[name] for name in node.inputs]
        shape = self.shapes[node.name]
        if node.operation == "add" and node.settings["alpha"] == 1 and inputs[0].shape == inputs[1].shape:
            first, second = (self._whole(node, x) for x in inputs)
            self.signals[node.name] = _Signal(shape, [*first.sources, *second.sources])
            return
        if len(inputs) != 1:
            raise self._cannot(node)
        x = inputs[0]
        if node.operation == "slice":
            self.signals[node.name] = self._slice(node, x)
        elif node.operation == "pad":
            self.signals[node.name] = self._pad(node, x)
        else:
            self.signals[node.name] = self._one_input(node, self._whole(node, x))

    def _one_input(self, node: Node, x: _Signal) -> _Signal:
        operation = node.operation
        if node.name in self.sites:
            return self._neuron(node, self.network.neuron(node.path), x)
        if operation == "reshape":
            return self._flatten(node, x)
        if operation in ("conv2d", "linear"):
            weight, bias = (self.tensors.get(node.parameters.get(role, "")) for role in ("weight", "bias"))
            assert weight is not None
            conv = dict(node.settings) if operation == "conv2d" else None
            return self._linear(self._name(node), conv, weight, bias, x, self.shapes[node.name])
        if operation == "batch_norm":
            return self._batch_norm(node, x)
        if operation in ("avg_pool2d", "adaptive_avg_pool2d"):
            return self._pool(node, x, self.shapes[node.name])
        if operation == "mean" and node.settings["dim"] == ALL_DIMS:
            pooled = self._pool(node, x, (x.shape[0], 1, 1))
            return pooled if node.settings["keepdim"] else self._flatten(node, pooled)
        raise self._cannot(node)

    def _name(self, node: Node, ending: str = "") -> str:
        """Its path, unless that is taken."""
        name = f"{node.path or node.name}{ending}"
        return name if name not in self.nodes else f"{name}_{node.name}"

    def _slice(self, node: Node, x: _Signal) -> _Signal:
        """Every second row or column waits for a convolution that takes it so."""
        settings = node.settings
        dim, step = settings["dim"], settings["step"]
        if dim not in (2, 3) or settings["start"] != 0 or settings["end"] < x.shape[dim - 1] or x.stride[dim - 2] != 1:
            raise self._cannot(node)
        stride = (step, x.stride[1]) if dim == 2 else (x.stride[0], step)
        return _Signal(x.shape, x.sources, stride)

    def _pad(self, node: Node, x: _Signal) -> _Signal:
        """Channels of zeros before and behind, as a 1x1 convolution with weights 0 and 1."""
        pad = node.settings["pad"]
        if len(pad) != 6 or any(pad[:4]) or min(pad) < 0:
            raise self._cannot(node)
        return self._chosen(self._name(node), x, pad[4], pad[5])

    def _whole(self, node: Node, x: _Signal) -> _Signal:
        """A signal of which no row or column is left out."""
        if x.stride == (1, 1):
            return x
        return self._chosen(f"{'_'.join(x.sources)}_to_{self._name(node)}", x, 0, 0)

    def _chosen(self, name: str, x: _Signal, before: int, behind: int) -> _Signal:
        channels, height, width = x.shape
        weight = torch.zeros(before + channels + behind, channels, 1, 1, dtype=torch.float64)
        weight[before : before + channels, :, 0, 0] = torch.eye(channels, dtype=torch.float64)
        conv = {"stride": list(x.stride), "padding": [0, 0], "dilation": [1, 1], "groups": 1}
        shape = (len(weight), -(-height // x.stride[0]), -(-width // x.stride[1]))
        return self._linear(name, conv, weight, None, _Signal(x.shape, x.sources), shape)

    def _cannot(self, node: Node) -> SnnzooError:
        """What NIR cannot express, and what to do instead."""
        if node.operation == "max_pool2d" and self._in_stem():
            what = (
                "max pooling, which NIR has not: --without-stem leaves out what is before the first neuron (the host "
            )
            what += "then computes its input), and --format onnx exports all"
        elif node.operation == "max_pool2d":
            what = "max pooling behind a neuron, which NIR has not: export with --format onnx"
        elif node.name in self.sites:
            neuron: Any = self.network.neuron(node.path)
            kind = getattr(neuron.coding, "name", type(neuron).__name__)
            what = f"a neuron of {kind} coding, which is no binary IF or LIF neuron, all that NIR has: convert with "
            what += "--recipe rate, or export with --format onnx"
        else:
            what = f"{node.operation}, which NIR cannot express: export with --format onnx"
        return SnnzooError(f"{node.path or node.name} is {what}")

    def _in_stem(self) -> bool:
        """Whether no neuron has been added yet."""
        return not any(isinstance(node, (nir.IF, nir.LIF, nir.Threshold)) for node in self.nodes.values())

    def _give(self, name: str, node: nir.NIRNode | _Draft, spike_value: Tensor, shape: tuple[int, ...]) -> _Signal:
        """Add a node, whose output is worth that much."""
        self.nodes[name], self.spike_value[name] = node, spike_value
        return _Signal(shape, [name])

    def _connect(self, x: _Signal, target: str, wanted: Tensor | None = None) -> None:
        """Lead all of `x` into `target`, in units of `wanted [C]` (1 if None)."""
        wanted = _ones(x.shape[0]) if wanted is None else wanted
        for source in x.sources:
            factor, node = self.spike_value[source] / wanted, self.nodes[source]
            if isinstance(node, _Draft) and not self._is_used(source):
                node.scale(factor)
                self.spike_value[source] = wanted
            elif not torch.equal(factor, torch.ones_like(factor)):
                scaled = self._give(f"{source}_to_{target}", nir.Scale(_per_neuron(factor, x.shape)), wanted, x.shape)
                self.edges.append((source, scaled.sources[0]))
                source = scaled.sources[0]
            self.edges.append((source, target))

    def _is_used(self, name: str) -> bool:
        return any(source == name for source, _ in self.edges)

    def _common_spike_value(self, x: _Signal) -> Tensor:
        """What a unit of every part of `x` is worth, if that is the same; else 1."""
        spike_value, *others = (self.spike_value[name] for name in x.sources)
        return spike_value if all(torch.equal(spike_value, other) for other in others) else torch.ones_like(spike_value)

    def _linear(
        self,
        name: str,
        conv: dict[str, Any] | None,
        weight: Tensor,
        bias: Tensor | None,
        x: _Signal,
        shape: tuple[int, ...],
    ) -> _Signal:
        spike_value = self._common_spike_value(x)
        weight = _ungrouped(weight.detach(), 1 if conv is None else conv["groups"])
        folded = weight * spike_value.view(1, -1, *[1] * (weight.ndim - 2))
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        y = self._give(name, _Draft(folded, bias, x.shape[1:], conv), _ones(len(weight)), shape)
        self._connect(x, name, spike_value)
        return y

    def _batch_norm(self, node: Node, x: _Signal) -> _Signal:
        name, *others = x.sources
        draft = self.nodes[name]
        if others or self._is_used(name) or not isinstance(draft, _Draft):
            raise self._cannot(node)
        parameters = {role: self.tensors[key] for role, key in node.parameters.items()}
        gain = batch_norm_scale(parameters, node.settings)
        draft.scale(gain)
        draft.bias = draft.bias + parameters.get("bias", 0.0) - gain * parameters["running_mean"]
        return x

    def _pool(self, node: Node, x: _Signal, shape: tuple[int, ...]) -> _Signal:
        height, width = x.shape[1:]
        settings = node.settings
        if node.operation == "avg_pool2d":
            if settings["ceil_mode"] or settings["divisor_override"]:
                raise self._cannot(node)
            if any(settings["padding"]) and not settings["count_include_pad"]:
                raise self._cannot(node)
            kernel, padding = settings["kernel_size"], settings["padding"]
            stride = settings["stride"] or kernel
        else:
            if height % shape[1] or width % shape[2]:
                raise self._cannot(node)
            kernel = stride = [height // shape[1], width // shape[2]]
            padding = [0, 0]
        if kernel == [1, 1] and stride == [1, 1]:
            return x
        pool = nir.AvgPool2d(np.array(kernel), np.array(stride), np.array(padding))
        return self._alike(self._name(node, "_pool" if node.operation == "mean" else ""), x, pool, shape)

    def _flatten(self, node: Node, x: _Signal) -> _Signal:
        shape = self.shapes[node.name]
        if len(shape) != 1:
            raise self._cannot(node)
        name = self._name(node, "_flat")
        flat = self._alike(name, x, nir.Flatten({"input": np.array(x.shape)}, 0, -1), shape)
        self.spike_value[name] = self.spike_value[name].repeat_interleave(shape[0] // x.shape[0])
        return flat

    def _alike(self, name: str, x: _Signal, node: nir.NIRNode, shape: tuple[int, ...]) -> _Signal:
        """A node that treats all channels alike: what a unit is worth goes through it."""
        y = self._give(name, node, self._common_spike_value(x), shape)
        self._connect(x, name, self._common_spike_value(x))
        return y

    def _neuron(self, node: Node, neuron: ThresholdNode, x: _Signal) -> _Signal:
        name = self._name(node)
        coding, arguments = neuron.coding, neuron.arguments()
        if type(coding) not in (IF, LIF, Rate):
            raise self._cannot(node)
        assert isinstance(coding, IF)
        if coding.charge is not None or (coding.v_init and coding.v_reset is not None):
            raise self._cannot(node)
        theta = torch.as_tensor(arguments["v_threshold"], dtype=torch.float64).expand(x.shape[0])
        unit = theta if arguments.get("scaled") or theta.unique().numel() > 1 else _ones(x.shape[0])
        x = self._biased(name, x, arguments.get("bias", 0.0))
        threshold = theta / unit
        if coding.v_reset is None:
            start = coding.v_init * threshold
            entry = self._soft_reset(name, coding, threshold, start, x.shape)
        else:
            entry = name
            self.nodes[entry] = self._hard_reset(coding, threshold - coding.v_reset / unit, x.shape)
        self._connect(x, entry, unit)
        self.spike_value[name] = unit if arguments.get("scaled") else _ones(x.shape[0])
        return _Signal(self.shapes[node.name], [name])

    def _biased(self, name: str, x: _Signal, bias: Any) -> _Signal:
        """`x + bias`, in the layer before, or as a layer of its own."""
        bias = torch.as_tensor(bias, dtype=torch.float64).expand(x.shape[0])
        if not bool(bias.any()):
            return x
        for source in x.sources:
            draft = self.nodes[source]
            if isinstance(draft, _Draft) and not self._is_used(source):
                draft.bias = draft.bias + bias
                return x
        channels = x.shape[0]
        weight, conv = torch.eye(channels, dtype=torch.float64), None
        if len(x.shape) == 3:
            weight = weight[:, :, None, None]
            conv = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
        return self._linear(f"{name}_bias", conv, weight, bias, x, x.shape)

    def _hard_reset(self, coding: IF, threshold: Tensor, shape: tuple[int, ...]) -> nir.NIRNode:
        """Potentials are those above `v_reset`."""
        thresholds, zeros = _per_neuron(threshold, shape), np.zeros(shape, np.float32)
        if not isinstance(coding, LIF):
            return nir.IF(np.full(shape, 1 / self.dt, np.float32), thresholds, zeros)
        tau, r = self._leak(coding)
        return nir.LIF(np.full(shape, tau, np.float32), np.full(shape, r, np.float32), zeros, thresholds, zeros)

    def _leak(self, coding: LIF) -> tuple[float, float]:
        """`tau` in seconds, and `r`."""
        steps = 1 / float(coding.reciprocal_tau)
        return steps * self.dt, 1.0 if coding.decay_input else steps

    def _soft_reset(self, name: str, coding: IF, threshold: Tensor, start: Tensor, shape: tuple[int, ...]) -> str:
        """An integrator, a threshold of the neuron's name and what it takes back; the integrator's name."""
        integrator, back = f"{name}_v", f"{name}_reset"
        taken = -threshold  # in units of the input
        if isinstance(coding, LIF):
            tau, r = self._leak(coding)
            steps = tau / self.dt
            # what is left of it after one step of leak, over what one unit of input adds
            taken = taken * (1 - 1 / steps) * (steps if coding.decay_input else 1.0)
            zeros = np.zeros(shape, np.float32)
            self.nodes[integrator] = nir.LI(np.full(shape, tau, np.float32), np.full(shape, r, np.float32), zeros)
        else:
            self.nodes[integrator] = nir.I(np.full(shape, 1 / self.dt, np.float32))
        self.nodes[name] = nir.Threshold(_per_neuron(threshold - start, shape))
        self.nodes[back] = nir.Scale(_per_neuron(taken, shape))
        self.edges += [(integrator, name), (name, back), (back, integrator)]
        return integrator


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution as of one without groups, zeros between the groups.

    NIR 1.0.8 takes the channels of a grouped convolution's input to be those of one group, and cannot read it back.
    """
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        whole[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return whole


def _metadata(net: SpikingNet | SpikingNetwork) -> dict[str, Any]:
    """What a reader may want to know."""
    facts: dict[str, Any] = {"snnzoo": __version__, "model": getattr(net, "model_name", type(net).__name__)}
    conversion = net.conversion
    if isinstance(conversion, Conversion):
        facts["time_steps"] = conversion.time_steps
        facts["readout"] = "mean of the outputs of all steps so far"
        facts["preprocess"] = json.dumps(conversion.preprocess and conversion.preprocess.to_dict())
        facts["classes"] = json.dumps(conversion.classes)
    return facts


def _ones(channels: int) -> Tensor:
    return torch.ones(channels, dtype=torch.float64)


def _per_neuron(values: Tensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """`[C]` spread over `shape`."""
    return _array(values.view(-1, *[1] * (len(shape) - 1)).expand(shape))


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(values.detach().float().numpy())


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
