"""Convolutions with integer weights, for CPUs, whose 8-bit multiplications are several times as fast as float32's.

Spikes are small whole numbers as they are, so nothing is lost of them: only weights are rounded, to 8 bits, or to
16, as two pieces of 8 bits that are convolved one after the other. Sums are exact; neurons stay float32.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.codings import Delta
from snnzoo.converted_node import ConvertedNode
from snnzoo.errors import UsageError
from snnzoo.graph.graph import Node
from snnzoo.graph.operations import INPUT
from snnzoo.inference.network import FoldedNetwork
from snnzoo.inference.neuron import FoldedNeuron

PIECES = {torch.int8: 1, torch.int16: 2}  # of 8 bits
MOST_UNITS = 64  # of a spike: pairs of products are added up in 16 bits where a CPU lacks VNNI


_OPERATORS = (  # name, overload, and the arguments by their names
    ("qconv_prepack", "default", "weight w_scales x_scale x_zp stride padding dilation groups x_shape"),
    (
        "qconv2d_pointwise",
        "default",
        "qx x_scale x_zero_point qw w_scale w_zero_point bias stride padding dilation groups output_scale "
        "output_zero_point output_dtype attr scalars algorithm",
    ),
    (
        "qconv2d_pointwise",
        "binary",
        "qx x_scale x_zero_point qw w_scale w_zero_point qaccum bias stride padding dilation groups output_scale "
        "output_zero_point output_dtype accum_scale accum_zero_point binary_attr alpha unary_attr unary_scalars "
        "unary_algorithm",
    ),
)


class Source:
    """Neurons whose spikes, joined, are one signal in whole units.

    Raises:
        UsageError: if their spikes are too large for 8 bits.
    """

    def __init__(self, neurons: Sequence[FoldedNeuron]) -> None:
        self.neurons = list(neurons)
        self.coding = self.neurons[0].coding
        if self.coding.largest_unit > MOST_UNITS:
            raise UsageError(
                f"integer weights need spikes of at most {MOST_UNITS} units, {self.coding} has "
                f"{self.coding.largest_unit}: use fewer levels or float32"
            )

    def spike_value(self, t: int, dtype: torch.dtype) -> float | Tensor:
        """Return what a unit is worth at step t: a number, or `[C]`."""
        values = [neuron.spike_value(t, dtype) for neuron in self.neurons]
        if len(values) == 1:
            return values[0]
        if not any(isinstance(value, Tensor) for value in values):
            return values[0]
        return torch.cat([value for value in values if isinstance(value, Tensor)])

    def shrink(self, x: Tensor) -> Tensor:
        """Scale `[T * N, ...]` from units of t = 0 to those of the steps last run, in place."""
        return self.neurons[0].shrink(x)


class IntegerConv2d(nn.Conv2d):
    """A convolution of int8 spikes `[T * N, C, H, W]`, in units, to a float32 current. It has no bias.

    Args:
        conv: with float weights and without bias; padded with zeros, by numbers.
        source: the neurons whose spikes it sees.
        pieces: of 8 bits that make up a weight, 1 or 2; the largest weight of an output channel takes all of them.
    """

    def __init__(self, conv: nn.Conv2d, source: Source, pieces: int) -> None:
        # oneDNN has a race in strided 1x1 ones: with several threads, on CPUs with AVX2 only, some sums are wrong
        thins = conv.kernel_size == (1, 1) and conv.padding == (0, 0)
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            (1, 1) if thins else conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            device="meta",
        )
        self.register_parameter("weight", None)
        self.every = conv.stride if thins else (1, 1)  # pixel that it sees
        self._source = (source,)  # in a tuple: it is no part of this module
        self.zero_point = source.coding.largest_unit if source.coding.signed else 0
        weight = conv.weight.detach().double() * _of_inputs(source.spike_value(0, torch.float64), conv)
        top = 127 * sum(256**i for i in range(pieces))
        scale = weight.abs().amax((1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny) / top
        rounded = (weight / scale.view(-1, 1, 1, 1)).round().long()
        self.no_offsets = torch.zeros(conv.out_channels, dtype=torch.int32)
        self.pieces: list[tuple[Tensor, Tensor]] = []  # packed weights, and what their units are worth, `[C']`
        for i in range(pieces):
            low = (rounded + 128) % 256 - 128 if i < pieces - 1 else rounded
            rounded = (rounded - low) // 256
            worth = (scale * 256**i).float()
            packed = torch.ops.onednn.qconv_prepack(low.to(torch.int8), worth, 1.0, self.zero_point, *self._geometry)
            self.pieces.append((packed, worth))

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), [int(p) for p in self.padding], list(self.dilation), self.groups

    def forward(self, x: Tensor) -> Tensor:
        if self.every != (1, 1):
            down, right = self.every
            x = x[..., ::down, ::right].contiguous(memory_format=torch.channels_last)
        unsigned = x.view(torch.uint8)
        if self.zero_point:
            unsigned = unsigned + self.zero_point  # modulo 256: from -K ... K to 0 ... 2K
        (first, worth), *others = self.pieces
        before = (unsigned, 1.0, self.zero_point)
        after = (*self._geometry, 1.0, 0, torch.float32)
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *before, first, worth, self.no_offsets, None, *after, "none", [], ""
        )
        for packed, worth in others:
            y = torch.ops.onednn.qconv2d_pointwise.binary(
                *before, packed, worth, self.no_offsets, y, None, *after, 1.0, 0, "sum", 1.0, "none", [], ""
            )
        return self._source[0].shrink(y)


class SpikeValues(nn.Module):
    """int8 spikes, in units, as what they are worth, float32: the identity of a residual block."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = (source,)

    def forward(self, x: Tensor) -> Tensor:
        source = self._source[0]
        value = source.spike_value(0, torch.float32)
        values = x * value.view(-1, 1, 1) if isinstance(value, Tensor) else x.float() * value
        return source.shrink(values)


@functools.cache
def unavailable() -> str | None:
    """Return why convolutions with integer weights cannot run here, None if they can.

    Their operators are PyTorch's own and private: they are used as known here, and right on a small convolution.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return "they need an x86-64 CPU"
    for name, overload, known in _OPERATORS:
        operator = getattr(getattr(torch.ops.onednn, name, None), overload, None)
        if operator is None or [argument.name for argument in operator._schema.arguments] != known.split():
            return f"this PyTorch ({torch.__version__}) has no operator onednn::{name} as known here"
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(-3, 4, (2, 4, 5, 5), generator=generator).to(torch.int8)
    source = FoldedNeuron(ConvertedNode(Delta(3, 1.0)), torch.zeros(()))
    source.t = source.steps = 1
    for pieces in PIECES.values():
        conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        top = 127 * sum(256**i for i in range(pieces))
        weight = torch.randint(-top, top + 1, conv.weight.shape, generator=generator)
        weight[:, 0, 0, 0] = top  # so that a unit of the rounded weights is 1
        conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        with torch.no_grad():
            found, expected = IntegerConv2d(conv, Source([source]), pieces)(counts), conv(counts.float())
        if not torch.allclose(found, expected, rtol=1e-5, atol=1e-3):
            return f"this PyTorch's ({torch.__version__}) 8-bit convolutions are wrong on this CPU"
    return None


def round_weights(network: FoldedNetwork, dtype: torch.dtype) -> None:
    """Give every convolution that sees spikes integer weights, in place: those fed by neurons, also joined ones.

    Args:
        network: on a CPU, in float32.
        dtype: torch.int8 or torch.int16.

    Raises:
        UsageError: for a network without such convolutions, spikes that are too large, or a PyTorch that cannot.
    """
    name = str(dtype).removeprefix("torch.")
    reason = unavailable()
    if reason is not None:
        raise UsageError(f"{name} weights: {reason}: use float32")
    sources = _sources_of_counts(network)
    if not sources:
        raise UsageError(f"{name} weights: no convolution of the network sees spikes: use float32")
    for source in sources.values():
        for neuron in source.neurons:
            neuron.sends_counts = True
    tensors = network.tensors()
    joins = sources.keys() - {node.name for node in network.sites}
    for node in network.graph:
        for place, given in enumerate(node.inputs):
            if given not in sources or node.name in joins:
                continue
            if _is_convolution(node):
                conv = _as_module(node, tensors[node.parameters["weight"]])
                network.replace(node, IntegerConv2d(conv, sources[given], PIECES[dtype]))
            else:
                network.replace_input(node, place, SpikeValues(sources[given]))


def _sources_of_counts(network: FoldedNetwork) -> dict[str, Source]:
    """The values that are to be whole units: what convolutions see, back to the neurons that send it."""
    graph = network.graph
    sites = {node.name: node for node in network.sites}
    wanted: dict[str, Source] = {}

    def source_of(name: str) -> Source | None:
        if name in sites:
            return Source([network.neuron(sites[name].path)])
        node = graph[name] if name != INPUT else None
        if node is None or node.operation != "cat" or node.settings["dim"] != 1:
            return None
        parts = [source_of(given) for given in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or any(part.coding != known[0].coding for part in known):
            return None
        return Source([neuron for part in known for neuron in part.neurons])

    def want(name: str) -> None:
        source = source_of(name)
        assert source is not None
        wanted[name] = source
        if name not in sites:
            for given in graph[name].inputs:
                want(given)

    for node in graph:
        if _is_convolution(node) and node.name not in graph.analog and source_of(node.inputs[0]) is not None:
            want(node.inputs[0])
    return wanted


def _is_convolution(node: Node) -> bool:
    return node.operation == "conv2d" and not isinstance(node.settings["padding"], str)


def _as_module(node: Node, weight: Tensor) -> nn.Conv2d:
    settings: dict[str, Any] = dict(node.settings)
    conv = nn.Conv2d(
        weight.shape[1] * settings["groups"],
        len(weight),
        (weight.shape[2], weight.shape[3]),
        tuple(settings["stride"]),
        tuple(settings["padding"]),
        tuple(settings["dilation"]),
        settings["groups"],
        bias=False,
        device="meta",
    )
    conv.weight = nn.Parameter(weight.detach())
    return conv


def _of_inputs(values: float | Tensor, conv: nn.Conv2d) -> float | Tensor:
    """A value for each input channel, in the shape of the weights `[C', C / groups, ...]`."""
    if not isinstance(values, Tensor):
        return values
    in_group = values.double().view(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1)
    return in_group.reshape(conv.out_channels, -1, 1, 1)
