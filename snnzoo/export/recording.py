"""What a network computes in one step, recorded from a run: its layers and what joins them, with shapes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snnzoo.base import MemoryModule
from snnzoo.functional import reset_net, set_step_mode

_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


@dataclass(frozen=True)
class Call:
    """One layer or function: `operation` is a module, or "add" or "flatten", or the name of some other function.

    `inputs` are places of earlier calls; -1 is the network's input. `shape` is the output's, of one image.
    """

    name: str
    operation: nn.Module | str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


class Recording(TorchFunctionMode):
    """Records the modules of `leaves` that run in its context, and functions between them."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._x = x
        self._places = {id(x): -1}
        self._alive = [x]  # so that no id is given twice
        self._depth = 0  # inside modules that are recorded
        self._handles: list[Any] = []
        for name, module in leaves(net):
            self._handles.append(module.register_forward_pre_hook(self._enter))
            hook = partial(self._leave, name)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def place_of(self, x: Tensor) -> int:
        """Of the call that gave `x`."""
        return self._places[id(x)]

    def _enter(self, *_: object) -> None:
        self._depth += 1

    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        self._depth -= 1
        self._record(name, module, (*args, *kwargs.values()), y)

    def _record(self, name: str, operation: nn.Module | str, arguments: tuple[Any, ...], y: Tensor) -> None:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        inputs = tuple(self._places[id(x)] for x in tensors if id(x) in self._places)
        self._places[id(y)] = len(self.calls)
        self._alive.append(y)
        self.calls.append(Call(name, operation, inputs, tuple(y.shape[1:])))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._depth == 0 and isinstance(result, Tensor) and any(id(x) in self._places for x in args):
            name = func.__name__
            self._record(f"{name}{len(self.calls)}", "add" if name in _ADDITIONS else name, args, result)
        return result


def leaves(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules that are recorded: those with state, such as neurons, and those with no modules inside."""
    found = []
    for name, module in net.named_children():
        if isinstance(module, MemoryModule) or not any(True for _ in module.children()):
            found.append((prefix + name, module))
        else:
            found += leaves(module, f"{prefix}{name}.")
    return found


def record(net: nn.Module, input_shape: tuple[int, ...], start: str | None = None) -> tuple[list[Call], int]:
    """Run one step of a copy of `net` on zeros, on the CPU in float64.

    Args:
        input_shape: of one image, `[C, H, W]`.
        start: name of a layer whose input is taken to be the network's; None for the network's own.

    Returns:
        the calls, and the place of the one that gives the output. The modules in them are the copy's.
    """
    net = copy.deepcopy(net).cpu().double().eval()
    reset_net(net)
    set_step_mode(net, "s")
    x = torch.zeros(1, *input_shape, dtype=torch.float64)
    with torch.no_grad(), Recording(net, x) as recording:
        y = net(x)
    calls, output = recording.calls, recording.place_of(y)
    return (calls, output) if start is None else (_cut(calls, start), output)


def _cut(calls: list[Call], start: str) -> list[Call]:
    """The same calls with the input of `start` as the network's; what came before it is left without a use."""
    first = next(i for i, call in enumerate(calls) if call.name == start)
    before = calls[first].inputs[0]

    def renamed(place: int) -> int:
        return -1 if place == before else place

    return [Call(c.name, c.operation, tuple(map(renamed, c.inputs)), c.shape) for c in calls]
