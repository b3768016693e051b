"""Networks in whole numbers, for people who build hardware: 8-bit weights, events, and what every layer sends.

A bundle is one NumPy archive (.npz): `graph` is JSON, the arrays `NODE.weight` are int8, all else int64, and
`trace.*` are golden traces. What a value's unit is worth stays outside, as `NODE.scale` in float64, and is needed for
nothing but reading.

Each neuron's potential is in units of its threshold / 2^16. A neuron adds up, for each value that leads to it, that
value's sum of weighted events, rescaled by a multiplier of the channel and a shift, and its bias; the threshold is
2^16. Codings whose levels shrink keep everything in units of the step: what was there before grows.

    drive = sum_i rounded(multiplier_i * x_i, shift_i) + bias        (bias: each step, or at t = 0 only if `bias_once`)
    rate, plain:  v += drive;  s = v >= 2^16;  v -= s * 2^16, or 0
    signed:       s = 1 if v >= 2^16, -1 if v < 0 and c > 0, else 0;  v -= s * 2^16;  c += s
    delta:        m = grown(m) + drive;  o = grown(o);  s = clip(rounded(max(m, 0) - o, 16), -K, K);  o += s * 2^16
    readout:      r = grown(r) + x * 2^10;  logits = multiplier * (W r) + b, b added up or grown, too
    grown(a) = rounded(a * growth, 16);  rounded(a, n) = (a + 2^(n - 1)) >> n

`docs/integer_reader.py` reads and runs it with NumPy alone.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnzoo._version import __version__
from snnzoo.codings import RELU, Delta, Plain, Rate, Signed
from snnzoo.conversion.converted_file import Conversion
from snnzoo.data.preprocess import Preprocess
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.export.check import ROUNDED, Check, Run, write_checked
from snnzoo.export.integer_run import ONE, READOUT, IntegerNetwork
from snnzoo.export.pools import even_window
from snnzoo.graph.graph import Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.operations import INPUT
from snnzoo.graph.shapes import value_shapes
from snnzoo.inference.network import FoldedNetwork

FORMAT = "snnzoo-integer/1"
LARGEST_WEIGHT, LARGEST_INPUT = 127, 32767
MULTIPLIER_BITS = 15  # of a typical channel
OUTPUT = 1 << 12  # the multiplier of the class of the largest weights
LARGEST_POTENTIAL = 64 * ONE  # in units of its step that room is left for
TRACED_IMAGES = 2
CODINGS = (Rate, Plain, Signed, Delta)

Arrays = dict[str, Any]


def write_integer(
    net: SpikingNetwork,
    path: str | Path,
    time_steps: int,
    input_shape: tuple[int, ...],
    *,
    replace: bool = True,
    images: Tensor | None = None,
    traced: Tensor | None = None,
) -> Check | None:
    """Write a bundle, with golden traces of two images.

    Args:
        net: converted, of the coding rate, plain, signed or delta.
        time_steps: T of the traces.
        input_shape: of one image, `[C, H, W]`.
        images: `[N, C, H, W]`, on which the bundle is read back and run beside the network; None for no check.
        traced: images of the traces; the first two of `images`, or noise, if None.

    Returns:
        what the check found, which is in the bundle, too.

    Raises:
        UsageError: for another coding, or T < 1.
        SnnzooError: naming the layer that cannot be written, if the file cannot be, or is too far from the network.
    """
    if time_steps < 1:
        raise UsageError(f"time_steps must be at least 1, got {time_steps}")
    traced = images if traced is None else traced
    if traced is None:
        traced = torch.randn(TRACED_IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
    arrays = to_integers(net, input_shape, time_steps)
    network = IntegerNetwork(arrays)
    pixels = network.pixels(traced[:TRACED_IMAGES])
    logits, events = network(pixels, time_steps)
    traces = {f"trace.{name}": value.numpy().astype(np.int8) for name, value in events.items()}
    traces |= {"trace.input": pixels.numpy().astype(np.int16), "trace.logits": logits.numpy()}

    def content(more: dict[str, str]) -> bytes:
        described = json.loads(str(arrays["graph"])) | {key: json.loads(text) for key, text in more.items()}
        written = io.BytesIO()
        np.savez_compressed(written, **{**arrays, **traces, "graph": np.array(json.dumps(described))})
        return written.getvalue()

    return write_checked(Path(path), content, open_integer, net, images, time_steps, replace=replace, bounds=ROUNDED)


def open_integer(path: Path) -> Run:
    """Return what runs a bundle."""
    with np.load(io.BytesIO(path.read_bytes())) as file:
        return IntegerNetwork(dict(file)).logits


def to_integers(net: SpikingNetwork, input_shape: tuple[int, ...], time_steps: int) -> Arrays:
    """Return the arrays of a bundle without traces. Errors as `write_integer`."""
    if type(net.coding) not in CODINGS:
        raise UsageError(f"integers are for networks of rate, plain, signed or delta coding, not for {net.coding}")
    if any(net.neuron(node.path).coding != net.coding for node in net.sites):
        raise UsageError("integers are for one gamma in all neurons: convert with fewer levels, or a gamma in Python")
    folded = FoldedNetwork(net)
    shapes = {INPUT: tuple(input_shape)}
    shapes |= value_shapes(folded.graph, folded.tensors(), input_shape, net.model_name)
    preprocess = net.conversion.preprocess if isinstance(net.conversion, Conversion) else None
    writer = _Writer(folded, shapes, _largest_input(preprocess) / LARGEST_INPUT)
    for node in folded.graph:
        if node.name not in folded.graph.behind_readout:
            writer.add(node)
    return writer.arrays(net, time_steps, list(input_shape))


def _largest_input(preprocess: Preprocess | None) -> float:
    """The largest magnitude that a pixel can have after preprocessing; without any, room for normalised images."""
    if preprocess is None:
        return 8.0
    ends = [(edge - m) / s for edge in (0.0, 1.0) for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
    return max(map(abs, ends))


class _Writer:
    """Turns nodes into whole numbers one by one. `unit` tells what 1 of a value is worth, `[C]`."""

    def __init__(self, network: FoldedNetwork, shapes: Mapping[str, tuple[int, ...]], input_scale: float) -> None:
        self.network, self.shapes = network, shapes
        self.tensors = {key: value.detach().double() for key, value in network.tensors().items()}
        self.sites = {node.name for node in network.sites}
        self.unit = {INPUT: torch.full((shapes[INPUT][0],), input_scale, dtype=torch.float64)}
        self.values: Arrays = {}
        self.nodes: list[dict[str, Any]] = []

    def add(self, node: Node) -> None:
        """Take in one node."""
        if node.name in self.sites:
            self._neuron(node)
        elif node.operation in ("conv2d", "linear"):
            self._weighted(node)
        elif node.operation in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
            self._pool(node)
        elif node.operation == "max_pool2d" and node.name in self.network.graph.before_neurons:
            self._max_pool(node)
        elif node.operation in ("slice", "pad", "reshape", "cat"):
            self._moved(node)
        else:
            what = "max pooling behind a neuron" if node.operation == "max_pool2d" else node.operation
            raise self._cannot(node, f"is {what}")

    def arrays(self, net: SpikingNetwork, time_steps: int, input_shape: list[int]) -> Arrays:
        """Return all arrays, the readout's included."""
        graph, coding = self.network.graph, net.coding
        assert coding is not None
        last = graph[graph.output]
        if last.operation != "linear" or graph.behind_readout != {last.name}:
            raise self._cannot(last, "is not the one linear layer that integers have behind the readout")
        weight, scale = self._rounded(self.tensors[last.parameters["weight"]], self.unit[graph.decoded])
        unit = scale.max() / OUTPUT / READOUT  # of a logit
        bias = self.tensors.get(last.parameters.get("bias", ""), torch.zeros_like(scale))
        self.values |= {
            "output.weight": weight,
            "output.multiplier": _whole(scale / scale.max() * OUTPUT),
            "output.bias": _whole(bias / unit),
            "output.scale": unit.numpy(),
        }
        growth = ONE if not isinstance(coding, Delta) else round(ONE / coding.gamma)
        self._check_room(growth, time_steps)
        info = net.conversion
        described = {
            "format": FORMAT,
            "snnzoo": __version__,
            "model": net.model_name,
            "coding": coding.to_dict(),
            "bias_once": coding.bias_once,
            "start": round(ONE * getattr(coding, "v_init", 0.0)),
            "growth": growth,
            "extrapolation": round(READOUT * net.extrapolation),
            "time_steps": time_steps,
            "input_shape": input_shape,
            "input_scale": self.unit[INPUT][0].item(),
            "preprocess": info.preprocess.to_dict() if isinstance(info, Conversion) and info.preprocess else None,
            "classes": info.classes if isinstance(info, Conversion) else None,
            "nodes": self.nodes,
            "readout": graph.decoded,
        }
        return {**self.values, "graph": np.array(json.dumps(described))}

    def _check_room(self, growth: int, time_steps: int) -> None:
        """Raise a SnnzooError if what grows from step to step leaves 64 bits."""
        biases = [abs(value).max() for key, value in self.values.items() if key.endswith(".bias")]
        largest = max(LARGEST_POTENTIAL, *map(int, biases)) * growth
        fits = next((t for t in range(time_steps) if largest * (growth / ONE) ** t >= 2**62), time_steps)
        if fits < time_steps:
            raise SnnzooError(f"T={time_steps} leaves the 64 bits of --format integer: give -T {max(fits, 1)} or fewer")

    def _cannot(self, node: Node, what: str) -> SnnzooError:
        return SnnzooError(
            f"{node.path or node.name} {what}, which --format integer cannot express: export with --format onnx"
        )

    def _keep(self, node: Node, operation: str, unit: Tensor, **settings: Any) -> None:
        self.nodes.append(
            {"name": node.name, "operation": operation, "inputs": list(node.inputs), "path": node.path} | settings
        )
        self.unit[node.name] = unit

    def _rounded(self, weight: Tensor, unit: Tensor) -> tuple[Any, Tensor]:
        """8-bit weights of inputs of that unit, and what 1 of each output channel's sum is worth."""
        groups = len(unit) // weight.shape[1]
        units = unit.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(len(weight), -1)
        real = weight * units.view(*units.shape, *[1] * (weight.ndim - 2))
        scale = (real.flatten(1).abs().amax(1) / LARGEST_WEIGHT).clamp(min=1e-30)
        whole = (real / scale.view(-1, *[1] * (real.ndim - 1))).round()
        return whole.to(torch.int8).numpy(), scale

    def _weighted(self, node: Node) -> None:
        weight, scale = self._rounded(self.tensors[node.parameters["weight"]], self.unit[node.inputs[0]])
        if "bias" in node.parameters:
            raise self._cannot(node, "adds a bias that no neuron takes")
        self.values[f"{node.name}.weight"] = weight
        if node.operation == "linear":
            self._keep(node, "linear", scale)
            return
        settings = dict(node.settings)
        if isinstance(settings["padding"], str):
            raise self._cannot(node, f"has the padding {settings['padding']!r}")
        self._keep(node, "conv", scale, **settings)

    def _pool(self, node: Node) -> None:
        before, behind, flat = self.shapes[node.inputs[0]], self.shapes[node.name], False
        over_pixels = True
        if node.operation == "mean":
            over_pixels, flat = sorted(d % 4 for d in node.settings["dim"]) == [2, 3], not node.settings["keepdim"]
            behind = (before[0], 1, 1)
        window = even_window(node, before, behind) if over_pixels else None
        if window is None:
            raise self._cannot(node, "pools unevenly")
        kernel, stride, padding = window
        unit = self.unit[node.inputs[0]] / math.prod(kernel)
        self._keep(node, "sum_pool", unit, kernel=kernel, stride=stride, padding=padding, flat=flat)

    def _max_pool(self, node: Node) -> None:
        settings = node.settings
        if settings["ceil_mode"] or settings["dilation"] != [1, 1]:
            raise self._cannot(node, "is max pooling with dilation or ceil_mode")
        kernel, padding = settings["kernel_size"], settings["padding"]
        stride = settings["stride"] or kernel
        self._keep(node, "max_pool", self.unit[node.inputs[0]], kernel=kernel, stride=stride, padding=padding)

    def _moved(self, node: Node) -> None:
        """What only moves values about."""
        settings, unit = dict(node.settings), self.unit[node.inputs[0]]
        if node.operation == "cat":
            if settings["dim"] != 1:
                raise self._cannot(node, "joins other than channels")
            unit = torch.cat([self.unit[name] for name in node.inputs])
        elif node.operation == "reshape":
            if len(self.shapes[node.name]) != 1:
                raise self._cannot(node, "changes the shape")
            unit = unit.repeat_interleave(self.shapes[node.name][0] // len(unit))
            settings = {}
        elif node.operation == "pad":
            pad = settings["pad"] + [0] * (6 - len(settings["pad"]))
            if len(pad) != 6 or min(pad) < 0:
                raise self._cannot(node, "cuts off values")
            unit = torch.cat([unit[:1].expand(pad[4]), unit, unit[:1].expand(pad[5])])
            settings = {"pad": pad}
        elif settings["dim"] == 1:
            unit = unit[settings["start"] : settings["end"] : settings["step"]]
        self._keep(node, {"reshape": "flatten"}.get(node.operation, node.operation), unit, **settings)

    def _neuron(self, node: Node) -> None:
        neuron = self.network.neuron(node.path)
        if isinstance(neuron.coding, Delta) and neuron.activation != RELU:
            raise self._cannot(node, f"stands for {neuron.activation}")
        channels = self.shapes[node.name][0]
        theta = torch.as_tensor(neuron.v_threshold, dtype=torch.float64).expand(channels)
        shifts = []
        for place, given in enumerate(node.inputs):
            factor = self.unit[given] / theta * ONE
            shifts.append(max(0, MULTIPLIER_BITS - math.frexp(factor.median().item())[1]))
            self.values[f"{node.name}.multiplier.{place}"] = _whole(factor * 2 ** shifts[-1])
        bias = torch.as_tensor(neuron.bias, dtype=torch.float64).expand(channels)
        self.values[f"{node.name}.bias"] = _whole(bias / theta * ONE)
        self.values[f"{node.name}.threshold"] = np.full(channels, ONE)
        self.values[f"{node.name}.scale"] = (theta / ONE).numpy()
        self._keep(node, "neuron", theta, shifts=shifts)


def _whole(values: Tensor) -> Any:
    return values.round().to(torch.int64).numpy()
