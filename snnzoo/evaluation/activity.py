"""How much a network fires: events of its neurons, and the synaptic operations that they cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.utils.hooks import RemovableHandle

from snnzoo.conversion.sites import neuron_sites


@dataclass
class Activity:
    """Counts, summed over images. They are whole numbers: parts measured apart add up exactly.

    `neurons` and `dense` are of one image: how many neurons a site has, and how often a layer applies a
    weight if every input counts (multiplications with padding are not counted). `events` and
    `operations` are of all images, at each t; layers that see analog values (the first one, and those
    after the readout) are in `dense` only.
    """

    images: int = 0
    neurons: dict[str, int] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    events: dict[str, list[int]] = field(default_factory=dict)
    operations: dict[str, list[int]] = field(default_factory=dict)

    @property
    def time_steps(self) -> int:
        """How many steps were measured."""
        return max((len(counts) for counts in self.events.values()), default=0)

    def events_per_neuron_step(self, time_steps: int) -> float:
        """Return the mean number of events of a neuron in a step, over the first `time_steps`."""
        total = sum(sum(counts[:time_steps]) for counts in self.events.values())
        return total / (self.images * sum(self.neurons.values()) * time_steps)

    def synaptic_operations(self, time_steps: int) -> float:
        """Return the synaptic operations of one image in the first `time_steps`."""
        return sum(sum(counts[:time_steps]) for counts in self.operations.values()) / self.images

    def event_rates(self) -> dict[str, list[float]]:
        """Return for each site the share of its neurons that send an event, at each t."""
        return {
            site: [count / (self.images * self.neurons[site]) for count in counts]
            for site, counts in self.events.items()
        }

    def dense_operations(self, *, analog_only: bool = False) -> int:
        """Return the multiply-accumulates of one image in one step if every input counts; of the analog layers only."""
        return sum(count for name, count in self.dense.items() if not (analog_only and name in self.operations))

    def add(self, other: Activity) -> None:
        """Take in what was measured on other images, over as many steps."""
        self.images += other.images
        self.neurons.update(other.neurons)
        self.dense.update(other.dense)
        for mine, theirs in ((self.events, other.events), (self.operations, other.operations)):
            for name, counts in theirs.items():
                known = mine.get(name, [0] * len(counts))
                mine[name] = [a + b for a, b in zip(known, counts, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ActivityMeter:
    """Counts events while its context is entered; each entry is one batch, from t = 0.

    An event is a non-zero output of a neuron. A synaptic operation is one weight applied to one event: each
    non-zero input of a layer counts as often as it reaches an output, with padding, stride, dilation and
    groups respected. An identity shortcut has no weights: it counts for nothing.

    Args:
        net: a network of the zoo, or its folded form; layer-by-layer.
        input_events: whether the network's input is events, so that its first layer has synaptic operations.
    """

    def __init__(self, net: nn.Module, *, input_events: bool = False) -> None:
        self.net, self.input_events = net, input_events
        self.activity = Activity()
        self._batch = Activity()
        self._handles: list[RemovableHandle] = []
        self._steps = 0  # in the piece of the sequence that is running
        self._decoded = False
        self._fans: dict[tuple[str, torch.Size], Tensor] = {}

    def __enter__(self) -> ActivityMeter:
        self._batch = Activity()
        sites = set(neuron_sites(self.net))
        layers = [name for name, module in self.net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        analog = () if self.input_events else layers[:1]
        hook = self._handles.append
        hook(self.net.register_forward_pre_hook(self._start_piece))
        hook(self.net.get_submodule("readout").register_forward_pre_hook(self._start_readout))
        for site in sites:
            hook(self.net.get_submodule(site).register_forward_hook(partial(self._count_events, site)))
        for name in layers:
            count = partial(self._count_operations, name, name in analog)
            hook(self.net.get_submodule(name).register_forward_hook(count))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if error[0] is None:
            self.activity.add(self._batch)

    def _start_piece(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._steps, self._batch.images = inputs[0].shape[:2]
        self._decoded = False

    def _start_readout(self, *_: object) -> None:
        self._decoded = True

    def _count_events(self, site: str, _: nn.Module, inputs: object, y_seq: Tensor) -> None:
        self._batch.neurons[site] = y_seq[0, 0].numel()
        _extend(self._batch.events, site, y_seq.flatten(1).count_nonzero(1))

    def _count_operations(self, name: str, analog: bool, layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        x = inputs[0]
        fan = self._fan_out(name, layer, x, y)
        self._batch.dense[name] = int(fan.expand(x.shape[1:]).sum())
        if not analog and not self._decoded:
            events = x.count_nonzero(1) if x.ndim == 4 else x.count_nonzero(1).unsqueeze(1)  # [T * N, (H, W)]
            per_step = events.unflatten(0, (self._steps, -1)).sum(1) * fan
            _extend(self._batch.operations, name, per_step.flatten(1).sum(1))

    def _fan_out(self, name: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        key = name, x.shape[1:]
        if key not in self._fans:
            self._fans[key] = fan_out(layer, x.shape[1:], y.shape[1:]).to(x.device)
        return self._fans[key]


def fan_out(layer: nn.Module, input_shape: Iterable[int], output_shape: Iterable[int]) -> Tensor:
    """Return how many outputs each input of a convolution or linear layer reaches.

    Args:
        layer: `nn.Conv2d` with zero padding, or `nn.Linear`.
        input_shape, output_shape: without the batch, `[C, H, W]` or `[features]`.

    Returns:
        int64 `[H, W]` (the same for every channel), or `[1]`.
    """
    if not isinstance(layer, nn.Conv2d):
        assert isinstance(layer, nn.Linear)
        return torch.tensor([layer.out_features])
    height, width = list(input_shape)[1:]
    ones = torch.ones(1, 1, *list(output_shape)[1:], dtype=torch.float64)
    kernel = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    padding = layer.padding if isinstance(layer.padding, tuple) else _string_padding(layer)
    # the transpose of the convolution: what each output gives back to the inputs that it sees
    reached = conv2d_input(torch.Size((1, 1, height, width)), kernel, ones, layer.stride, padding, layer.dilation)
    return reached[0, 0].round().long() * (layer.out_channels // layer.groups)


def _string_padding(layer: nn.Conv2d) -> tuple[int, ...]:
    if layer.padding == "valid":
        return (0, 0)
    spans = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise NotImplementedError('padding="same" that is not the same on both sides')
    return tuple(span // 2 for span in spans)


def _extend(totals: dict[str, list[int]], name: str, per_step: Tensor) -> None:
    totals.setdefault(name, []).extend(per_step.tolist())
