"""Firing rates of a network's neurons, collected while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.neuron import BaseNode


@dataclass
class Counts:
    """Of one layer of neurons: how many there are, which of them ever fired, spikes, and steps times neurons."""

    neurons: int = 0
    fired: Tensor | None = None
    spikes: float = 0.0
    chances: int = 0


class Monitor:
    """Counts the spikes of every classic neuron of a network, between `enable` and `disable`.

    Args:
        net: a network of `neuron.IFNode`, `LIFNode` and their kind.
        device, backend: taken for the sake of classic code; tensors stay where they are.

    Example:
        >>> monitor = Monitor(net)
        >>> monitor.enable()
        >>> net(x_seq)
        >>> monitor.get_avg_firing_rate()
    """

    def __init__(self, net: nn.Module, device: str | torch.device | None = None, backend: str = "numpy") -> None:
        self.net, self.device, self.backend = net, device, backend
        self.module_dict = {name: module for name, module in net.named_modules() if isinstance(module, BaseNode)}
        self.counts: dict[str, Counts] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def enable(self) -> None:
        """Start counting, from zero."""
        self.disable()
        self.reset()
        for name, module in self.module_dict.items():
            self._handles.append(module.register_forward_hook(lambda m, _, y, name=name: self._count(name, m, y)))

    def disable(self) -> None:
        """Stop counting."""
        while self._handles:
            self._handles.pop().remove()

    def reset(self) -> None:
        """Forget what was counted."""
        self.counts = {name: Counts() for name in self.module_dict}

    @torch.no_grad()
    def _count(self, name: str, module: Any, output: Tensor) -> None:
        counts, spikes = self.counts[name], output.detach()
        samples = spikes.flatten(0, 1) if module.step_mode == "m" else spikes
        fired = samples.sum(0) > 0
        counts.neurons = fired.numel()
        counts.fired = fired if counts.fired is None else counts.fired | fired
        counts.spikes += spikes.sum(dtype=torch.float64).item()
        counts.chances += spikes.numel()

    def _chosen(self, all: bool, module_name: str | None) -> list[Counts]:
        if not all and module_name not in self.counts:
            raise ValueError(f"no neuron is called {module_name!r}, only {', '.join(self.counts) or 'none'}")
        chosen = [counts for name, counts in self.counts.items() if (all or name == module_name) and counts.chances]
        if not chosen:
            raise ValueError("nothing was counted: call enable(), and run the network")
        return chosen

    def get_avg_firing_rate(self, all: bool = True, module_name: str | None = None) -> float:
        """Return spikes per neuron and step, of all neurons or of those of one module.

        Raises:
            ValueError: for a module that is none of the neurons, or before the network has run.
        """
        chosen = self._chosen(all, module_name)
        return sum(counts.spikes for counts in chosen) / sum(counts.chances for counts in chosen)

    def get_nonfire_ratio(self, all: bool = True, module_name: str | None = None) -> float:
        """Return the share of neurons that never fired. Arguments and errors as `get_avg_firing_rate`."""
        chosen = self._chosen(all, module_name)
        silent = sum(counts.neurons - int(counts.fired.sum()) for counts in chosen if counts.fired is not None)
        return silent / sum(counts.neurons for counts in chosen)
