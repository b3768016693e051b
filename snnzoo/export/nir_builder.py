"""The NIR graph of a network, node by node, in the form that its reader takes."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from snnzoo.codings import IF, LIF, Plain, Rate
from snnzoo.errors import SnnzooError
from snnzoo.export.nir_nodes import Draft, Signal, ones, per_neuron, plain_conv, ungrouped
from snnzoo.export.pools import even_window
from snnzoo.export.targets import Target
from snnzoo.graph.graph import Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.operations import batch_norm_scale
from snnzoo.threshold_node import ThresholdNode

ALL_DIMS = [2, 3]  # of a mean over all pixels
NO_LEAK = 1e6  # seconds of a LIF that stands for an IF: in float32 nothing is lost in a step


class Builder:
    """Adds the nodes of a network's graph one by one.

    Args:
        network: converted or trained, on the CPU.
        target: who reads the graph.
        dt: seconds of one step.
        shapes: of all values, and of the input.
        start: the value that is the graph's input.
    """

    def __init__(
        self, network: SpikingNetwork, target: Target, dt: float, shapes: dict[str, tuple[int, ...]], start: str
    ) -> None:
        self.network, self.target, self.dt, self.shapes = network, target, dt, shapes
        self.tensors = {key: value.detach().double() for key, value in network.tensors().items()}
        self.sites = {node.name for node in network.sites}
        self.nodes: dict[str, nir.NIRNode | Draft] = {"input": nir.Input({"input": np.array(shapes[start])})}
        self.edges: list[tuple[str, str]] = []
        self.spike_value = {"input": ones(shapes[start][0])}  # of a unit of each node's output, in the network, [C]
        self.signals = {start: Signal(shapes[start], ["input"])}
        if start in self.sites:  # the host's neurons send their spikes as such
            neuron = network.neuron(network.graph[start].path)
            self.spike_value["input"] = _worth(neuron, shapes[start][0])

    def graph(self, output: str, metadata: dict[str, Any]) -> nir.NIRGraph:
        """Return the whole graph, whose output is that value; of neurons, their spikes."""
        signal = self.signals[output]
        self.nodes["output"] = nir.Output({"output": np.array(signal.shape)})
        self._connect(signal, "output", self.spike_value[signal.sources[0]] if output in self.sites else None)
        if self.target.spikes_alone:
            self._check_layers()
        nodes = {name: node.node() if isinstance(node, Draft) else node for name, node in self.nodes.items()}
        return nir.NIRGraph(nodes, self.edges, metadata)

    def add(self, node: Node) -> None:
        """Add one node.

        Raises:
            SnnzooError: naming the node, if NIR or the target cannot express it, and what to do instead.
        """
        if any(name not in self.signals for name in node.inputs):
            raise SnnzooError(
                f"{node.path or node.name} needs more than the first neuron's input: export without --without-stem"
            )
        inputs = [self.signals[name] for name in node.inputs]
        shape = self.shapes[node.name]
        if node.operation == "add" and node.settings["alpha"] == 1 and inputs[0].shape == inputs[1].shape:
            if not self.target.sums:
                raise self._cannot_here(node, "adds a shortcut", "a network without, such as a VGG of average pools")
            first, second = (self._whole(node, x) for x in inputs)
            self.signals[node.name] = Signal(shape, [*first.sources, *second.sources])
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

    def _one_input(self, node: Node, x: Signal) -> Signal:
        operation = node.operation
        if node.name in self.sites:
            return self._neuron(node, self.network.neuron(node.path), x)
        if operation == "reshape":
            return self._flatten(node, x)
        if operation in ("conv2d", "linear"):
            return self._weighted(node, x)
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

    # -- What cannot be expressed --------------------------------------------------------------------------------------

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

    def _cannot_here(self, node: Node, what: str, instead: str) -> SnnzooError:
        """What the target cannot express."""
        where = f"{node.path or node.name} {what}"
        return SnnzooError(f"{where}, which --target {self.target.name} cannot express: take {instead}")

    def _in_stem(self) -> bool:
        """Whether no neuron has been added yet."""
        return not any(isinstance(node, (nir.IF, nir.LIF, nir.Threshold)) for node in self.nodes.values())

    def _check_layers(self) -> None:
        """Raise a SnnzooError unless every layer of weights leads to neurons."""
        for source, target in self.edges:
            if isinstance(self.nodes[source], Draft) and not isinstance(self.nodes[target], (nir.IF, nir.LIF)):
                raise SnnzooError(
                    f"{source} leads to {target}, but on --target {self.target.name} weights lead to neurons "
                    "alone: take another target, such as generic"
                )

    # -- Connections and weights ---------------------------------------------------------------------------------------

    def _give(self, name: str, node: nir.NIRNode | Draft, spike_value: Tensor, shape: tuple[int, ...]) -> Signal:
        """Add a node, whose output is worth that much."""
        self.nodes[name], self.spike_value[name] = node, spike_value
        return Signal(shape, [name])

    def _connect(self, x: Signal, target: str, wanted: Tensor | None = None) -> None:
        """Lead all of `x` into `target`, in units of `wanted [C]` (1 if None)."""
        wanted = ones(x.shape[0]) if wanted is None else wanted
        for source in x.sources:
            factor, node = self.spike_value[source] / wanted, self.nodes[source]
            if isinstance(node, Draft) and not self._is_used(source):
                node.scale(factor)
                self.spike_value[source] = wanted
            elif not torch.equal(factor, torch.ones_like(factor)):
                name = f"{source}_to_{target}"
                self._give(name, self._scaling(factor, x.shape), wanted, x.shape)
                self.edges.append((source, name))
                source = name
            self.edges.append((source, target))

    def _scaling(self, factor: Tensor, shape: tuple[int, ...]) -> nir.NIRNode | Draft:
        """What multiplies channel c by `factor[c]`: no reader but the generic one knows NIR's Scale."""
        if self.target.is_generic:
            return nir.Scale(per_neuron(factor, shape))
        return self._diagonal(factor, torch.zeros_like(factor), shape)

    def _diagonal(self, factor: Tensor, bias: Tensor, shape: tuple[int, ...]) -> Draft:
        """A layer that leads each channel to itself."""
        weight = torch.diag(factor)
        if len(shape) == 1:
            return Draft(weight, bias, (), None)
        return Draft(weight[:, :, None, None], bias, shape[1:], plain_conv())

    def _is_used(self, name: str) -> bool:
        return any(source == name for source, _ in self.edges)

    def _common_spike_value(self, x: Signal) -> Tensor:
        """What a unit of every part of `x` is worth, if that is the same; else 1."""
        spike_value, *others = (self.spike_value[name] for name in x.sources)
        return spike_value if all(torch.equal(spike_value, other) for other in others) else torch.ones_like(spike_value)

    def _weighted(self, node: Node, x: Signal) -> Signal:
        weight, bias = (self.tensors.get(node.parameters.get(role, "")) for role in ("weight", "bias"))
        assert weight is not None
        name, shape = self._name(node), self.shapes[node.name]
        if node.operation == "conv2d":
            conv = dict(node.settings)
            if not self.target.dilates and conv["dilation"] != [1, 1]:
                raise self._cannot_here(node, "is dilated", "another target, such as generic")
            return self._linear(name, conv, weight, bias, x, shape)
        if len(x.shape) == 1:
            return self._linear(name, None, weight, bias, x, shape)
        over_all = weight.view(len(weight), *x.shape)  # of what was to be flattened
        return self._linear(name, plain_conv(), over_all, bias, x, (len(weight), 1, 1))

    def _linear(
        self,
        name: str,
        conv: dict[str, Any] | None,
        weight: Tensor,
        bias: Tensor | None,
        x: Signal,
        shape: tuple[int, ...],
    ) -> Signal:
        spike_value = self._common_spike_value(x)
        weight = ungrouped(weight.detach(), 1 if conv is None else conv["groups"])
        folded = weight * spike_value.view(1, -1, *[1] * (weight.ndim - 2))
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        y = self._give(name, Draft(folded, bias, x.shape[1:], conv), ones(len(weight)), shape)
        self._connect(x, name, spike_value)
        return y

    def _batch_norm(self, node: Node, x: Signal) -> Signal:
        name, *others = x.sources
        draft = self.nodes[name]
        if others or self._is_used(name) or not isinstance(draft, Draft):
            raise self._cannot(node)
        parameters = {role: self.tensors[key] for role, key in node.parameters.items()}
        gain = batch_norm_scale(parameters, node.settings)
        draft.scale(gain)
        draft.bias = draft.bias + parameters.get("bias", 0.0) - gain * parameters["running_mean"]
        return x

    # -- Slices, pools and flattening ----------------------------------------------------------------------------------

    def _slice(self, node: Node, x: Signal) -> Signal:
        """Every second row or column waits for a convolution that takes it so."""
        settings = node.settings
        dim, step = settings["dim"], settings["step"]
        if dim not in (2, 3) or settings["start"] != 0 or settings["end"] < x.shape[dim - 1] or x.stride[dim - 2] != 1:
            raise self._cannot(node)
        stride = (step, x.stride[1]) if dim == 2 else (x.stride[0], step)
        return Signal(x.shape, x.sources, stride)

    def _pad(self, node: Node, x: Signal) -> Signal:
        """Channels of zeros before and behind, as a 1x1 convolution with weights 0 and 1."""
        pad = node.settings["pad"]
        if len(pad) != 6 or any(pad[:4]) or min(pad) < 0:
            raise self._cannot(node)
        return self._chosen(self._name(node), x, pad[4], pad[5])

    def _whole(self, node: Node, x: Signal) -> Signal:
        """A signal of which no row or column is left out."""
        if x.stride == (1, 1):
            return x
        return self._chosen(f"{'_'.join(x.sources)}_to_{self._name(node)}", x, 0, 0)

    def _chosen(self, name: str, x: Signal, before: int, behind: int) -> Signal:
        channels, height, width = x.shape
        weight = torch.zeros(before + channels + behind, channels, 1, 1, dtype=torch.float64)
        weight[before : before + channels, :, 0, 0] = torch.eye(channels, dtype=torch.float64)
        shape = (len(weight), -(-height // x.stride[0]), -(-width // x.stride[1]))
        return self._linear(name, plain_conv(x.stride), weight, None, Signal(x.shape, x.sources), shape)

    def _pool(self, node: Node, x: Signal, shape: tuple[int, ...]) -> Signal:
        window = even_window(node, x.shape, shape)
        if window is None:
            raise self._cannot(node)
        kernel, stride, padding = window
        if kernel == [1, 1] and stride == [1, 1]:
            return x
        name = self._name(node, "_pool" if node.operation == "mean" else "")
        arguments = [np.array(sizes) for sizes in window]
        if self.target.pool == "avg":
            return self._alike(name, x, nir.AvgPool2d(*arguments), shape)
        if any(padding):
            raise self._cannot_here(node, "pads what it pools", "another target, such as generic")
        y = self._alike(name, x, nir.SumPool2d(*arguments), shape)
        self.spike_value[name] = self.spike_value[name] / (kernel[0] * kernel[1])
        return y

    def _flatten(self, node: Node, x: Signal) -> Signal:
        shape = self.shapes[node.name]
        if len(shape) != 1:
            raise self._cannot(node)
        if not self.target.flattens:
            return x  # until a linear layer takes it all
        name = self._name(node, "_flat")
        flat = self._alike(name, x, nir.Flatten({"input": np.array(x.shape)}, 0, -1), shape)
        self.spike_value[name] = self.spike_value[name].repeat_interleave(shape[0] // x.shape[0])
        return flat

    def _alike(self, name: str, x: Signal, node: nir.NIRNode, shape: tuple[int, ...]) -> Signal:
        """A node that treats all channels alike: what a unit is worth goes through it."""
        y = self._give(name, node, self._common_spike_value(x), shape)
        self._connect(x, name, self._common_spike_value(x))
        return y

    # -- Neurons -------------------------------------------------------------------------------------------------------

    def _neuron(self, node: Node, neuron: ThresholdNode, x: Signal) -> Signal:
        name = self._name(node)
        coding, arguments = neuron.coding, neuron.arguments()
        self._check_neuron(node, coding)
        theta = torch.as_tensor(arguments["v_threshold"], dtype=torch.float64).expand(x.shape[0])
        scaled = arguments.get("scaled") or theta.unique().numel() > 1
        unit = theta if scaled else ones(x.shape[0])
        x = self._biased(name, x, arguments.get("bias", 0.0))
        threshold, entry, gain = theta / unit, name, 1.0
        if isinstance(coding, LIF) and self.target.input_decays and not coding.decay_input:
            gain = 1 / float(coding.reciprocal_tau)
        v_reset = _reset_value(coding)
        if v_reset is None and self.target.is_generic:
            entry = self._soft_reset(name, coding, threshold, getattr(coding, "v_init", 0.0) * threshold, x.shape)
        else:
            self.nodes[name] = self._binary(coding, threshold - (v_reset or 0.0) / unit, x.shape)
        self._connect(x, entry, unit / gain)
        self.spike_value[name] = _worth(neuron, x.shape[0])
        return Signal(x.shape, [name])

    def _check_neuron(self, node: Node, coding: Any) -> None:
        """Raise a SnnzooError unless NIR and the target can express the neuron, up to what a check will show."""
        if type(coding) not in (IF, LIF, Rate, Plain):
            raise self._cannot(node)
        if isinstance(coding, IF) and (coding.charge is not None or (coding.v_init and coding.v_reset is not None)):
            raise self._cannot(node)
        target = self.target
        anew = f"--for {target.name} when you convert"
        if target.is_generic:
            if isinstance(coding, Plain) and coding != Plain(to_zero=coding.to_zero):
                raise self._cannot_here(node, f"is a neuron of {coding}", "the target that it was converted for")
            return
        assert target.neuron is not None
        if isinstance(coding, Plain):
            if coding != target.coding():
                raise self._cannot_here(node, f"is a neuron of {coding}", anew)
            return
        if isinstance(coding, LIF) and not target.leaks:
            raise self._cannot_here(node, "is a LIF neuron", "IF neurons")
        if coding.v_init:
            raise self._cannot_here(node, f"starts from {coding.v_init:g} of its threshold", anew)
        to_value = bool(target.neuron.get("to_zero"))
        if to_value and coding.v_reset is None:
            raise self._cannot_here(node, "resets by subtraction", f"neurons that reset to a value, or {anew}")
        if not to_value and coding.v_reset is not None:
            raise self._cannot_here(node, "resets to a value", "neurons with v_reset=None")

    def _biased(self, name: str, x: Signal, bias: Any) -> Signal:
        """`x + bias`, in the layer before, or as a layer of its own."""
        bias = torch.as_tensor(bias, dtype=torch.float64).expand(x.shape[0])
        if not bool(bias.any()):
            return x
        for source in x.sources:
            draft = self.nodes[source]
            if isinstance(draft, Draft) and not self._is_used(source):
                draft.bias = draft.bias + bias / self.spike_value[source]
                return x
        layer = self._diagonal(ones(x.shape[0]), bias, x.shape)
        return self._linear(f"{name}_bias", layer.conv, layer.weight, bias, x, x.shape)

    def _binary(self, coding: Any, threshold: Tensor, shape: tuple[int, ...]) -> nir.NIRNode:
        """A neuron with a reset of its own. Potentials are those above the reset's."""
        thresholds, zeros = per_neuron(threshold, shape), np.zeros(shape, np.float32)
        if isinstance(coding, LIF):
            tau, r = self._leak(coding)
        elif self.target.if_as_lif:
            tau, r = NO_LEAK, NO_LEAK / self.dt
        else:
            return nir.IF(np.full(shape, 1 if self.target.unit_r else 1 / self.dt, np.float32), thresholds, zeros)
        return nir.LIF(np.full(shape, tau, np.float32), np.full(shape, r, np.float32), zeros, thresholds, zeros)

    def _leak(self, coding: LIF) -> tuple[float, float]:
        """`tau` in seconds, and `r`."""
        steps = 1 / float(coding.reciprocal_tau)
        return steps * self.dt, 1.0 if coding.decay_input or self.target.input_decays else steps

    def _soft_reset(self, name: str, coding: Any, threshold: Tensor, start: Tensor, shape: tuple[int, ...]) -> str:
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
        self.nodes[name] = nir.Threshold(per_neuron(threshold - start, shape))
        self.nodes[back] = nir.Scale(per_neuron(taken, shape))
        self.edges += [(integrator, name), (name, back), (back, integrator)]
        return integrator


def _reset_value(coding: Any) -> float | None:
    """What v becomes by a spike; None if the threshold is subtracted."""
    if isinstance(coding, Plain):
        return 0.0 if coding.to_zero else None
    value: float | None = coding.v_reset
    return value


def _worth(neuron: Any, channels: int) -> Tensor:
    """What a spike is worth in the network, `[C]`: its threshold, where outputs are scaled by that."""
    arguments = neuron.arguments()
    if not arguments.get("scaled"):
        return ones(channels)
    return torch.as_tensor(arguments["v_threshold"], dtype=torch.float64).detach().expand(channels)
