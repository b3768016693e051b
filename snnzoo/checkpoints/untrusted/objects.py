"""Stand-ins for the objects in a pickle: what they were and what they kept, never the objects themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from snnzoo.checkpoints.untrusted.limits import is_name

MAX_MEMBERS = 200_000  # of modules, what is there twice counted twice
_MAX_DEPTH = 100  # of modules in each other
_SCRIPTED = "__torch__."  # begins the names of classes in TorchScript archives


@dataclass(frozen=True)
class Global:
    """A class or function, by its name with all dots; nothing is imported for it."""

    name: str

    def __repr__(self) -> str:
        return f"<{self.name[:80]!a}>"


class Opaque(Mapping[Any, Any]):
    """An object that was pickled, as a mapping of what it kept: a module's state dict, else attributes and entries.

    Args:
        kind: the name of its class, or of the function that would make it.
        arguments: what that would be called with.
    """

    def __init__(self, kind: str, arguments: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.attributes: dict[Any, Any] = {}
        self.entries: dict[Any, Any] = {}

    @cached_property
    def _content(self) -> dict[Any, Any]:
        return _state_dict(self) if _is_module(self) else {**self.attributes, **self.entries}

    def __getitem__(self, key: Any) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    __eq__ = object.__eq__  # the same object; a mapping would compare, and could not be a key
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<object of {self.kind[:80]!a}>"


def _is_module(value: Any) -> bool:
    return isinstance(value, Opaque) and (
        isinstance(_state_of(value).get("_modules"), dict) or value.kind.startswith(_SCRIPTED)
    )


def _state_of(module: Opaque) -> dict[Any, Any]:
    """A module's attributes; those of an FX graph's module are the argument of the call that makes it."""
    if "_modules" not in module.attributes and module.arguments and isinstance(module.arguments[0], dict):
        return module.arguments[0]
    return module.attributes


def _state_dict(module: Opaque) -> dict[str, Tensor]:
    """What `state_dict()` of a pickled nn.Module or of a TorchScript module would return; {} if it has no end.

    TorchScript keeps no note of which buffers are persistent: there all are taken.
    """
    tensors: dict[str, Tensor] = {}
    waiting = [("", module)]
    seen = 0
    while waiting:
        prefix, current = waiting.pop()
        children = []
        for name, value in _members(current):
            seen += 1
            if seen > MAX_MEMBERS or prefix.count(".") > _MAX_DEPTH:
                return {}
            if type(name) is not str or not is_name(name) or not is_name(prefix + name):
                continue
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif _is_module(value):
                children.append((f"{prefix}{name}.", value))
        waiting.extend(reversed(children))
    return tensors


def _members(module: Opaque) -> Iterator[tuple[Any, Any]]:
    """Parameters, persistent buffers and modules, in the order of a state dict, by name; None among them."""
    state = _state_of(module)
    if module.kind.startswith(_SCRIPTED):
        yield from state.items()
        return
    left_out = set()
    for name in state.get("_non_persistent_buffers_set") or ():
        left_out.add(name if type(name) is str else None)
        yield None, None  # they count
    for group in ("_parameters", "_buffers", "_modules"):
        members = state.get(group)
        for name, value in members.items() if isinstance(members, dict) else ():
            if group != "_buffers" or name not in left_out:
                yield name, value
