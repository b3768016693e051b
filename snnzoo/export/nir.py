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
from torch import Tensor, nn

from snnzoo._version import __version__
from snnzoo.checkpoints.output import atomic_output
from snnzoo.codings import IF, LIF, Rate
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError
from snnzoo.export.recording import Call, record
from snnzoo.layer import AccumulatingMaxPool2d, Readout
from snnzoo.models.base import SpikingNet
from snnzoo.models.cifar_resnet import OptionAShortcut
from snnzoo.threshold_node import ThresholdNode

DT = 1e-4  # seconds; what most readers take for granted

_PASSED = (nn.Identity, nn.Dropout, nn.Dropout2d)


def write_nir(
    net: SpikingNet, path: str | Path, input_shape: tuple[int, ...], *, replace: bool = True, **options: Any
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


def to_nir(net: SpikingNet, input_shape: tuple[int, ...], *, stem: bool = True, dt: float = DT) -> nir.NIRGraph:
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
    first = next((name for name, module in net.named_modules() if isinstance(module, ThresholdNode)), None)
    if first is None:
        raise SnnzooError("the network has no spiking neurons: a NIR graph would have no use of time")
    calls, output = record(net, input_shape, start=None if stem else first)
    needed = _needed(calls, output)
    shape = input_shape
    if not stem:
        shape = next(call.shape for call in calls if call.name == first)
    builder = _Builder(dt, shape)
    for place, call in enumerate(calls):
        if place in needed:
            builder.add(place, call)
    return builder.graph(output, _metadata(net))


def _needed(calls: list[Call], output: int) -> set[int]:
    """Places that the output depends on."""
    needed, pending = set(), [output]
    while pending:
        place = pending.pop()
        if place >= 0 and place not in needed:
            needed.add(place)
            pending += calls[place].inputs
    return needed


@dataclass
class _Draft:
    """A convolution or linear layer whose weights still change: BN, spike values and thresholds are folded in."""

    layer: nn.Conv2d | nn.Linear
    weight: Tensor
    bias: Tensor
    input_size: tuple[int, ...]

    def scale(self, factor: Tensor) -> None:
        """Multiply output channel c by `factor[c]`."""
        self.weight = self.weight * factor.view(-1, *[1] * (self.weight.ndim - 1))
        self.bias = self.bias * factor

    def node(self) -> nir.NIRNode:
        weight, bias = _array(self.weight), _array(self.bias)
        if isinstance(self.layer, nn.Linear):
            return nir.Affine(weight, bias)
        conv = self.layer
        padding = conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)
        return nir.Conv2d(self.input_size, weight, conv.stride, padding, conv.dilation, 1, bias)


@dataclass
class _Signal:
    """A sum of the outputs of nodes. `shape` is that of one image."""

    shape: tuple[int, ...]
    sources: list[str]


class _Builder:
    """Adds the calls of a recording one by one."""

    def __init__(self, dt: float, input_shape: tuple[int, ...]) -> None:
        self.dt = dt
        self.nodes: dict[str, nir.NIRNode | _Draft] = {"input": nir.Input({"input": np.array(input_shape)})}
        self.edges: list[tuple[str, str]] = []
        self.spike_value = {"input": _ones(input_shape[0])}  # of a unit of each node's output, in the network, [C]
        self.signals = {-1: _Signal(input_shape, ["input"])}

    def graph(self, output: int, metadata: dict[str, Any]) -> nir.NIRGraph:
        signal = self.signals[output]
        self.nodes["output"] = nir.Output({"output": np.array(signal.shape)})
        self._connect(signal, "output")
        nodes = {name: node.node() if isinstance(node, _Draft) else node for name, node in self.nodes.items()}
        return nir.NIRGraph(nodes, self.edges, metadata)

    def add(self, place: int, call: Call) -> None:
        """Add one call."""
        inputs = [self.signals[i] for i in call.inputs]
        operation = call.operation
        if operation == "add" and len(inputs) == 2:
            self.signals[place] = _Signal(call.shape, [name for signal in inputs for name in signal.sources])
            return
        if len(inputs) != 1:
            raise _cannot(call)
        self.signals[place] = self._one_input(call, inputs[0])

    def _one_input(self, call: Call, x: _Signal) -> _Signal:
        operation = call.operation
        if operation == "flatten":
            return self._flatten(call, x)
        if isinstance(operation, (nn.Conv2d, nn.Linear)):
            return self._linear(call.name, operation, operation.weight, operation.bias, x, call.shape)
        if isinstance(operation, OptionAShortcut):
            conv, weight = _as_convolution(operation, x.shape[0], call.shape[0])
            return self._linear(call.name, conv, weight, None, x, call.shape)
        if isinstance(operation, nn.BatchNorm2d):
            return self._batch_norm(call, operation, x)
        if isinstance(operation, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            return self._pool(call, operation, x)
        if isinstance(operation, ThresholdNode):
            return self._neuron(call, operation, x)
        passed = isinstance(operation, _PASSED) or (isinstance(operation, Readout) and operation.kind == "mean")
        if not passed:
            raise _cannot(call, in_stem=self._in_stem())
        return x

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
        layer: nn.Conv2d | nn.Linear,
        weight: Tensor,
        bias: Tensor | None,
        x: _Signal,
        shape: tuple[int, ...],
    ) -> _Signal:
        spike_value = self._common_spike_value(x)
        weight = _ungrouped(weight.detach(), layer.groups if isinstance(layer, nn.Conv2d) else 1)
        folded = weight * spike_value.view(1, -1, *[1] * (weight.ndim - 2))
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        y = self._give(name, _Draft(layer, folded, bias, x.shape[1:]), _ones(len(weight)), shape)
        self._connect(x, name, spike_value)
        return y

    def _batch_norm(self, call: Call, bn: nn.BatchNorm2d, x: _Signal) -> _Signal:
        name, *others = x.sources
        draft = self.nodes[name]
        if (
            others
            or self._is_used(name)
            or not isinstance(draft, _Draft)
            or bn.running_var is None
            or bn.running_mean is None
        ):
            raise _cannot(call)
        gain = (bn.running_var + bn.eps).rsqrt() * bn.weight.detach()
        draft.scale(gain)
        draft.bias = draft.bias + bn.bias.detach() - gain * bn.running_mean
        return x

    def _pool(self, call: Call, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, x: _Signal) -> _Signal:
        height, width = x.shape[1:]
        if isinstance(pool, nn.AvgPool2d):
            if pool.ceil_mode or pool.divisor_override or (pool.padding != 0 and not pool.count_include_pad):
                raise _cannot(call)
            kernel, stride, padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
        else:
            if height % call.shape[1] or width % call.shape[2]:
                raise _cannot(call)
            kernel = stride = (height // call.shape[1], width // call.shape[2])
            padding = (0, 0)
        if kernel == (1, 1) and stride == (1, 1):
            return x
        node = nir.AvgPool2d(np.array(kernel), np.array(stride), np.array(padding))
        return self._alike(call, x, node)

    def _flatten(self, call: Call, x: _Signal) -> _Signal:
        pixels = call.shape[0] // x.shape[0]
        if len(call.shape) != 1:
            raise _cannot(call)
        flat = self._alike(call, x, nir.Flatten({"input": np.array(x.shape)}, 0, -1))
        self.spike_value[call.name] = self.spike_value[call.name].repeat_interleave(pixels)
        return flat

    def _alike(self, call: Call, x: _Signal, node: nir.NIRNode) -> _Signal:
        """A node that treats all channels alike: what a unit is worth goes through it."""
        y = self._give(call.name, node, self._common_spike_value(x), call.shape)
        self._connect(x, call.name, self._common_spike_value(x))
        return y

    def _neuron(self, call: Call, neuron: ThresholdNode, x: _Signal) -> _Signal:
        coding, arguments = neuron.coding, neuron.arguments()
        if type(coding) not in (IF, LIF, Rate):
            raise _cannot(call)
        assert isinstance(coding, IF)
        if coding.charge is not None or (coding.v_init and coding.v_reset is not None):
            raise _cannot(call)
        theta = torch.as_tensor(arguments["v_threshold"], dtype=torch.float64).expand(x.shape[0])
        unit = theta if arguments.get("scaled") or theta.unique().numel() > 1 else _ones(x.shape[0])
        x = self._biased(call.name, x, arguments.get("bias", 0.0))
        threshold = theta / unit
        if coding.v_reset is None:
            start = coding.v_init * threshold
            entry = self._soft_reset(call, coding, threshold, start, x.shape)
        else:
            entry = call.name
            self.nodes[entry] = self._hard_reset(coding, threshold - coding.v_reset / unit, x.shape)
        self._connect(x, entry, unit)
        self.spike_value[call.name] = unit if arguments.get("scaled") else _ones(x.shape[0])
        return _Signal(call.shape, [call.name])

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
        layer: nn.Conv2d | nn.Linear = nn.Linear(channels, channels)
        weight = torch.eye(channels, dtype=torch.float64)
        if len(x.shape) == 3:
            layer, weight = nn.Conv2d(channels, channels, 1), weight[:, :, None, None]
        return self._linear(f"{name}_bias", layer, weight, bias, x, x.shape)

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

    def _soft_reset(self, call: Call, coding: IF, threshold: Tensor, start: Tensor, shape: tuple[int, ...]) -> str:
        """An integrator, a threshold of the neuron's name and what it takes back; the integrator's name."""
        integrator, back = f"{call.name}_v", f"{call.name}_reset"
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
        self.nodes[call.name] = nir.Threshold(_per_neuron(threshold - start, shape))
        self.nodes[back] = nir.Scale(_per_neuron(taken, shape))
        self.edges += [(integrator, call.name), (call.name, back), (back, integrator)]
        return integrator


def _cannot(call: Call, *, in_stem: bool = False) -> SnnzooError:
    """What NIR cannot express, and what to do instead."""
    operation = call.operation
    if isinstance(operation, nn.MaxPool2d) and in_stem:
        what = "max pooling, which NIR has not: --without-stem leaves out what is before the first neuron (the host "
        what += "then computes its input), and --format onnx exports all"
    elif isinstance(operation, (nn.MaxPool2d, AccumulatingMaxPool2d)):
        what = "max pooling behind a neuron, which NIR has not: export with --format onnx"
    elif isinstance(operation, ThresholdNode):
        what = f"{type(operation).__name__}, which is no binary IF or LIF neuron, all that NIR has: convert with "
        what += "--recipe rate, or export with --format onnx"
    else:
        kind = operation if isinstance(operation, str) else type(operation).__name__
        what = f"{kind}, which NIR cannot express: export with --format onnx"
    return SnnzooError(f"{call.name} is {what}")


def _as_convolution(shortcut: OptionAShortcut, channels: int, outputs: int) -> tuple[nn.Conv2d, Tensor]:
    """Option A as a 1x1 convolution with weights 0 and 1."""
    conv = nn.Conv2d(channels, outputs, 1, shortcut.stride, bias=False)
    weight = torch.zeros(outputs, channels, 1, 1, dtype=torch.float64)
    weight[shortcut.padding : shortcut.padding + channels, :, 0, 0] = torch.eye(channels, dtype=torch.float64)
    return conv, weight


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


def _metadata(net: SpikingNet) -> dict[str, Any]:
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
