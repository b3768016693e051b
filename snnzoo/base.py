"""Base classes of everything that knows about time: a step mode, and state kept between steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

STEP_MODES = ("s", "m")


class StepModule(nn.Module):
    """A module that runs single-step (`"s"`, `x: [N, ...]`) or multi-step (`"m"`, `x_seq: [T, N, ...]`).

    Raises:
        ValueError: if `step_mode` is set to anything but "s" or "m".
    """

    _step_mode: str

    def __init__(self, step_mode: str = "s") -> None:
        super().__init__()
        self.step_mode = step_mode

    @property
    def step_mode(self) -> str:
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        if value not in STEP_MODES:
            raise ValueError(f"step_mode must be 's' (single-step) or 'm' (multi-step), got {value!r}")
        self._step_mode = value


class MemoryModule(StepModule):
    """A module with state, kept from call to call until `reset()` and never part of the state_dict.

    State is declared with `register_memory(name, initial)` and read and written as an attribute. A
    tensor state follows `.to()`, and is detached in copies of the module.
    """

    _memories: dict[str, Any]  # the values that `reset` returns to

    def __init__(self, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self._memories = {}

    def register_memory(self, name: str, value: Any) -> None:
        """Declare the state `name`, which is `value` now and after each reset."""
        self.set_reset_value(name, value)
        setattr(self, name, value)

    def set_reset_value(self, name: str, value: Any) -> None:
        """Let `reset` give the state `name` a copy of `value` from now on."""
        self._memories[name] = copy.deepcopy(value)

    def memories(self) -> Iterator[Any]:
        """Yield the state's values."""
        return (value for _, value in self.named_memories())

    def named_memories(self) -> Iterator[tuple[str, Any]]:
        """Yield the state as pairs of a name and a value."""
        return ((name, getattr(self, name)) for name in self._memories)

    def reset(self) -> None:
        """Forget the state: the next step is t = 0."""
        for name, initial in self._memories.items():
            setattr(self, name, copy.deepcopy(initial))

    def detach(self) -> None:
        """Cut the state off from the graph that it was computed in, for truncated backpropagation through time."""
        for name, value in self.named_memories():
            if isinstance(value, Tensor):
                setattr(self, name, value.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name, initial in self._memories.items():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, fn(value))
            if isinstance(initial, Tensor):
                self._memories[name] = fn(initial)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in self._memories:
            if isinstance(state[name], Tensor):
                state[name] = state[name].detach()
        return state

    def require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless the tensor state `name` fits a step of `shape`."""
        held = tuple(getattr(self, name).shape)
        if held != tuple(shape):
            raise ValueError(
                f"{type(self).__name__} holds state of shape {list(held)} from an earlier call, but this step has "
                f"shape {list(shape)}: call snnzoo.functional.reset_net(net) before a new batch"
            )


class StepContainer(nn.Sequential):
    """A sequence of single-step modules that takes `x_seq [T, N, ...]`."""
