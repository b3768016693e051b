"""How much a network fires: events of its neurons, and the synaptic operations that they cause."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snnzoo.conversion.codings import neuron_sites
from snnzoo.models.resnet import SpikingNet


class ActivityMeter:
    """Counts events while its context is entered; each entry is one batch, from t = 0.

    An event is a non-zero output of a neuron. A synaptic operation is one weight applied to one event:
    for a layer, its multiply-accumulates times the share of its inputs that are non-zero. The first
    convolution sees an analog image and the classifier a decoded average: neither counts.
    """

    def __init__(self, net: SpikingNet) -> None:
        self.net = net
        self.images = 0
        self.neurons = 0  # of one image
        self._sites = set(neuron_sites(net))
        self._events: list[float] = []  # at each t
        self._operations: list[float] = []
        self._handles: list[RemovableHandle] = []
        self._next_t: dict[str, int] = {}
        self._piece = 0  # time steps in the piece of the sequence that is running

    def __enter__(self) -> ActivityMeter:
        self._next_t, self.neurons = {}, 0
        stem = next(name for name, module in self.net.named_modules() if isinstance(module, nn.Conv2d))
        for name, module in self.net.named_modules():
            if name in self._sites:
                self._handles.append(module.register_forward_hook(self._count_events(name)))
            elif isinstance(module, nn.Conv2d) and name != stem:
                self._handles.append(module.register_forward_hook(self._count_operations(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def events_per_neuron_step(self, time_steps: int) -> float:
        """Mean number of events of a neuron in a step, over the first `time_steps`."""
        return sum(self._events[:time_steps]) / (self.images * self.neurons * time_steps)

    def synaptic_operations(self, time_steps: int) -> float:
        """Synaptic operations of one image in the first `time_steps`."""
        return sum(self._operations[:time_steps]) / self.images

    def _add(self, totals: list[float], name: str, per_step: Tensor) -> None:
        start = self._next_t.get(name, 0)
        self._next_t[name] = start + len(per_step)
        totals.extend([0.0] * (self._next_t[name] - len(totals)))
        for t, value in enumerate(per_step.tolist(), start):
            totals[t] += value

    def _count_events(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], y_seq: Tensor) -> None:
            if name not in self._next_t:
                self.neurons += y_seq[0, 0].numel()
                if len(self._next_t) == 0:
                    self.images += y_seq.shape[1]
            self._piece = len(y_seq)
            self._add(self._events, name, y_seq.flatten(1).count_nonzero(1).double())

        return hook

    def _count_operations(self, name: str) -> Any:
        def hook(module: nn.Conv2d, inputs: tuple[Tensor], y: Tensor) -> None:
            x = inputs[0].unflatten(0, (self._piece, -1)).flatten(1)
            connections = y[0].numel() * module.weight[0].numel() / inputs[0][0].numel()
            self._add(self._operations, name, x.count_nonzero(1).double() * connections)

        return hook
