"""The state dict inside a loaded checkpoint: out of the dicts, prefixes and other modules around one network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from snnzoo.checkpoints.stored_in_parts import put_together
from snnzoo.checkpoints.untrusted.limits import is_name
from snnzoo.checkpoints.untrusted.objects import Opaque
from snnzoo.errors import CheckpointError, first_few

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "best_state_dict", "model", "state", "params", "net",
            "network", "module", "weights", "student")  # fmt: skip
EMA_WRAPPERS = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model")

_ROOT = re.compile(r"(conv|bn|sn)\d+|layer\d+|fc|features|linear|last_linear|embedder|encoder|classifier|head")
_EMA_PREFIX = re.compile(r"(model_)?ema(_model)?\.")
_NOT_OF_THE_NETWORK = re.compile(r"n_averaged$|(criterion|loss\w*|loss_fn|(train|val|valid|test)_\w+)\.")
_COUNTED = re.compile(r"(.*\.)?total_(ops|params)$")  # by thop
_OF_LAYERS = (".weight", ".bias", ".running_mean")
_WRAPPING_PARTS = ("module", "_orig_mod")
_IN_CONTAINER = re.compile(r"(\.(?:conv\d+|downsample\.\d+))\.module(?=\.\d+\.)")
_MAX_WRAPPING = 8


@dataclass(frozen=True)
class Unwrapped:
    """A state dict out of its wrapping.

    Args:
        state_dict: named tensors.
        wrapping: what was around it, outermost first: keys of dicts, prefixes with their dot.
        notes: lines on what was chosen or left out.
        extra: the plain values beside it (`epoch` ...).
    """

    state_dict: dict[str, Tensor]
    wrapping: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def unwrap(content: Any, source: str) -> Unwrapped:
    """Return the state dict inside a loaded checkpoint, out of wrapping dicts and common prefixes.

    Args:
        content: as `checkpoints.files.read_checkpoint` returns it.
        source: named in errors.

    Raises:
        CheckpointError: if there is none in it, or several that nothing tells apart.
    """
    opened = opened_dicts(content, source)
    wrapping, notes = list(opened.wrapping), list(opened.notes)
    state_dict = _one_network(opened.state_dict, source, wrapping, notes)
    return Unwrapped(state_dict, tuple(wrapping), tuple(notes), opened.extra)


def opened_dicts(content: Any, source: str) -> Unwrapped:
    """Return the state dict inside a loaded checkpoint, its keys as they are; arguments and errors as `unwrap`."""
    wrapping: list[str] = []
    notes: list[str] = []
    extra: dict[str, Any] = {}
    while len(wrapping) <= _MAX_WRAPPING:
        if isinstance(content, (tuple, list)) and content and isinstance(content[0], Mapping):
            wrapping.append("[0]")
            content = content[0]
            continue
        key = _wrapper(content, source, notes) if isinstance(content, Mapping) else None
        if key is None:
            break
        wrapping.append(key)
        extra.update({str(key): value for key, value in content.items() if not isinstance(value, (Mapping, Tensor))})
        content = content[key]
    state_dict = put_together(_tensors(content, source, notes, extra), notes)
    return Unwrapped(state_dict, tuple(wrapping), tuple(notes), extra)


def _wrapper(content: Mapping[Any, Any], source: str, notes: list[str]) -> str | None:
    """The key under which the network's weights are, None if they are not in a dict of their own."""
    if any(isinstance(value, Tensor) and type(key) is str and "." in key for key, value in content.items()):
        return None
    plain, ema = (
        [key for key in keys if isinstance(content.get(key), Mapping) and _holds_tensors(content[key])]
        for keys in (WRAPPERS, EMA_WRAPPERS)
    )
    others = [key for key, value in content.items() if key not in plain + ema and _is_state_dict(key, value)]
    found = plain + (ema if not plain else []) + others
    if not found:
        return None
    if not (plain or ema) and len(others) > 1:
        raise CheckpointError(f"{source}: holds several state dicts ({first_few(others)}): save the one you mean alone")
    if plain and ema:
        notes.append(f"took {found[0]!r}; the averaged weights in {ema[0]!r} were left out")
    if len(found) > 1:
        notes.append(f"took {found[0]!r}; {', '.join(map(repr, found[1:]))} was left out")
    return found[0]


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    """Whether there are tensors in it, or in a wrapper in it; it may hold itself."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if any(isinstance(value, Tensor) for value in current.values()):
            return True
        waiting += [current[key] for key in (*WRAPPERS, *EMA_WRAPPERS) if isinstance(current.get(key), Mapping)]
    return False


def _is_state_dict(key: Any, value: Any) -> bool:
    """Whether it is weights under a name that is none of the wrappers'."""
    return (
        type(key) is str
        and is_name(key)
        and isinstance(value, Mapping)
        and any(type(name) is str and name.endswith(".weight") and isinstance(value[name], Tensor) for name in value)
    )


def _tensors(content: Any, source: str, notes: list[str], extra: dict[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a dict; plain values such as `epoch` may lie beside them."""
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{source}: holds {_kind_of(content)}, not a state dict of named tensors")
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    wrong = [
        str(key)
        for key, value in content.items()
        if (type(key) is not str if isinstance(value, Tensor) else _should_be_a_tensor(key))
    ]
    if wrong:
        raise CheckpointError(f"{source}: not a state dict: {first_few(wrong)} are not tensors with a name")
    if others:
        extra.update({str(key): content[key] for key in others if not isinstance(content[key], Mapping)})
        notes.append(f"left out {first_few(map(str, others))}, no tensors")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _kind_of(content: Any) -> str:
    if isinstance(content, Opaque):
        return f"an object of {content.kind[:80]!a}"
    if isinstance(content, Mapping) and not content:
        return "an empty dict"
    return f"a {type(content).__name__}"


def _should_be_a_tensor(key: Any) -> bool:
    """Whether a key is that of a weight: of a module in a module, and not the state that it keeps beside weights."""
    return type(key) is str and "." in key and not key.endswith("._extra_state")


def _one_network(
    state_dict: dict[str, Tensor], source: str, wrapping: list[str], notes: list[str]
) -> dict[str, Tensor]:
    """Without what surrounds the one network's keys: wrapping parts, other modules' keys, a common prefix."""
    for part in _WRAPPING_PARTS:
        if any(_without(part, key) != key for key in state_dict if part in key):
            wrapping.append(f"{part}.")
            shortened = (_without(part, key) for key in state_dict)
            state_dict = renamed(state_dict, shortened, source)
    state_dict = _leave_out(state_dict, _COUNTED, "counts of operations", notes)
    state_dict = _leave_out(state_dict, _NOT_OF_THE_NETWORK, "not of the network", notes)
    state_dict = _leave_out(state_dict, _EMA_PREFIX, "averaged weights", notes)
    for _ in range(_MAX_WRAPPING):
        state_dict = _without_buffers_beside(state_dict, notes)
        prefixes = {key.partition(".")[0] for key in state_dict}
        prefix = next(iter(prefixes))
        if len(prefixes) > 1 or _ROOT.fullmatch(prefix) or not all("." in key for key in state_dict):
            break
        wrapping.append(f"{prefix}.")
        state_dict = {key.removeprefix(f"{prefix}."): value for key, value in state_dict.items()}
    networks = sorted({key.partition(".")[0] for key in state_dict if re.match(r"[A-Za-z_]\w*\.conv1\.weight$", key)})
    if len(networks) > 1:
        names = ", ".join(f"{name}." for name in networks)
        raise CheckpointError(f"{source}: holds several networks ({names}): save the one you mean alone")
    return state_dict


def _without(part: str, key: str) -> str:
    """The key without a wrapping part; a container's `conv1.module.0` and `downsample.0.module.0` stay."""
    kept = _IN_CONTAINER.sub(r"\1\n", key)
    return ".".join(p for p in kept.split(".") if p != part).replace("\n", ".module")


def _leave_out(
    state_dict: dict[str, Tensor], pattern: re.Pattern[str], what: str, notes: list[str]
) -> dict[str, Tensor]:
    """Without the keys that match, unless all do."""
    out = [key for key in state_dict if pattern.match(key)]
    if not out or len(out) == len(state_dict):
        return state_dict
    notes.append(f"left out {first_few(out)}: {what}")
    return {key: value for key, value in state_dict.items() if key not in set(out)}


def _without_buffers_beside(state_dict: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Without top-level modules and tensors that have no weights (`class_weights`, `normalize.mean`), if others do."""
    layers = {key.partition(".")[0] for key in state_dict if key.endswith(_OF_LAYERS)}
    if not layers:
        return state_dict
    beside = {
        key: value
        for key, value in state_dict.items()
        if (name := key.partition(".")[0]) not in layers and not ("." in key and _ROOT.fullmatch(name))
    }
    if beside:
        notes.append(f"left out {first_few(beside)}: not of the network{_normalises(beside)}")
    return {key: value for key, value in state_dict.items() if key not in beside}


def _normalises(beside: Mapping[str, Tensor]) -> str:
    """What to do about a mean and a deviation by which a network normalises its input itself."""
    values = {
        name: [round(number, 4) for number in value.flatten().tolist()]
        for name in ("mean", "std")
        for key, value in beside.items()
        if key.rpartition(".")[2] == name and value.numel() in (1, 3) and value.is_floating_point()
    }
    if len(values) < 2:
        return ""
    return f"; it normalised images by mean {values['mean']} and std {values['std']}: let preprocessing do the same"


def renamed(state_dict: Mapping[str, Tensor], names: Iterable[str], source: str) -> dict[str, Tensor]:
    """Return the state dict with other keys, in its order.

    Raises:
        CheckpointError: if two keys get one name.
    """
    result: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for (key, value), name in zip(state_dict.items(), names, strict=True):
        if name in result:
            raise CheckpointError(
                f"{source}: {origins[name]} and {key} both stand for {name}: say which layout it is with --layout"
            )
        result[name], origins[name] = value, key
    return result
