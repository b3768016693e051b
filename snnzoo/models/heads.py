"""Classifiers of several layers, as fine-tuning leaves them, described as plain data.

A description is a layer `["Linear", 512, 10, true]`, a list of descriptions (`nn.Sequential`, keys `0`,
`1` ...), or a dict of them (`nn.Sequential` with names). It goes into a converted file as JSON, and
`build` makes a module with the same state_dict keys from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from snnzoo.errors import CheckpointError, UsageError

Description = list[Any] | dict[str, Any]

_MAX_FEATURES, _MAX_WEIGHTS, _MAX_LAYERS, _MAX_DEPTH = 1 << 20, 1 << 28, 64, 8
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value <= _MAX_FEATURES:
        raise ValueError(f"a size must be a whole number from 1 to {_MAX_FEATURES}, got {value!r}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e6:
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, got {value!r}")
    return value


def _word(value: Any) -> str:
    if value not in ("none", "tanh"):
        raise ValueError(f"expected 'none' or 'tanh', got {value!r}")
    return str(value)


# Each kind of layer: how to make it, and its arguments with what checks them.
_Kind = tuple[Callable[..., nn.Module], dict[str, Callable[[Any], Any]]]
_KINDS: dict[str, _Kind] = {
    "Linear": (nn.Linear, {"in_features": _size, "out_features": _size, "bias": _flag}),
    "BatchNorm1d": (nn.BatchNorm1d, {"num_features": _size, "eps": _number, "affine": _flag}),
    "LayerNorm": (nn.LayerNorm, {"normalized_shape": _size, "eps": _number}),
    "Dropout": (nn.Dropout, {"p": _number}),
    "LeakyReLU": (nn.LeakyReLU, {"negative_slope": _number}),
    "ELU": (nn.ELU, {"alpha": _number}),
    "GELU": (nn.GELU, {"approximate": _word}),
    "Flatten": (nn.Flatten, {}),
    **{
        kind.__name__: (kind, {})
        for kind in (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Mish, nn.Tanh, nn.Sigmoid)
    },
}


def describe(module: nn.Module) -> Description | None:
    """The description of a classifier; None if it holds a layer that a description cannot express.

    Example:
        >>> describe(nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 10)))
        [['Dropout', 0.2], ['Linear', 512, 10, True]]
    """
    if type(module) is nn.Sequential:
        children = {name: describe(child) for name, child in module.named_children()}
        if any(child is None for child in children.values()):
            return None
        return list(children.values()) if _is_numbered(children) else children
    kind = type(module).__name__
    if kind not in _KINDS or type(module) is not _KINDS[kind][0]:
        return None
    values = []
    for argument in _KINDS[kind][1]:
        value = getattr(module, argument)
        if argument == "bias":
            value = value is not None
        if argument == "normalized_shape":
            if len(value) != 1 or not isinstance(module.weight, Tensor) or not isinstance(module.bias, Tensor):
                return None
            value = value[0]
        values.append(value)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return None
    if isinstance(module, nn.BatchNorm1d) and not module.track_running_stats:
        return None
    return [kind, *values]


def _is_numbered(names: Mapping[str, Any]) -> bool:
    return list(names) == [str(i) for i in range(len(names))]


def build(description: Any) -> nn.Module:
    """The module that a description, of whatever source, is of: `[N, features] -> [N, classes]`.

    Raises:
        UsageError: if it is not a description, is implausibly large, or its layers do not fit each other.
    """
    try:
        features(description)
        return _build(description)
    except (ValueError, TypeError) as error:
        raise UsageError(f"head: {error}") from None


def features(description: Any) -> tuple[int, int]:
    """Inputs and outputs of a classifier: those of its first and last Linear layer.

    Raises:
        UsageError: as `build`.
    """
    try:
        layers = _flat(description)
    except ValueError as error:
        raise UsageError(f"head: {error}") from None
    linears = [layer for layer in layers if layer[0] == "Linear"]
    if not linears:
        raise UsageError("head: it has no Linear layer")
    width = linears[0][1]
    for kind, *arguments in layers:
        if kind in ("Linear", "BatchNorm1d", "LayerNorm") and arguments[0] != width:
            raise UsageError(f"head: a {kind} layer takes {arguments[0]} features after a layer of {width}")
        width = arguments[1] if kind == "Linear" else width
    if sum(layer[1] * layer[2] for layer in linears) > _MAX_WEIGHTS:
        raise UsageError(f"head: it has more than {_MAX_WEIGHTS} weights")
    return linears[0][1], width


def _flat(description: Any, depth: int = 0) -> list[list[Any]]:
    """The layers in order, each checked; a ValueError says what is wrong."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
    if isinstance(description, list) and description and isinstance(description[0], str):
        _layer(description)
        return [description]
    if isinstance(description, dict):
        wrong = [name for name in description if not _is_name(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot be the name of a layer")
        description = list(description.values())
    if not isinstance(description, list):
        raise ValueError(f"expected a list or dict that describes layers, got {type(description).__name__}")
    if len(description) > _MAX_LAYERS:
        raise ValueError(f"it has more than {_MAX_LAYERS} layers")
    layers = [layer for part in description for layer in _flat(part, depth + 1)]
    if len(layers) > _MAX_LAYERS:
        raise ValueError(f"it has more than {_MAX_LAYERS} layers")
    return layers


def _is_name(name: Any) -> bool:
    """Whether a module can have a child of that name: a word that `nn.Sequential` does not use itself."""
    return (
        isinstance(name, str)
        and _NAME.fullmatch(name) is not None
        and name != "training"
        and not hasattr(nn.Sequential, name)
    )


def _layer(description: list[Any]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    kind, *values = description
    if kind not in _KINDS:
        raise ValueError(f"unknown layer {kind!r}, expected one of {', '.join(_KINDS)}")
    make, arguments = _KINDS[kind]
    if len(values) > len(arguments) or (kind in ("Linear", "BatchNorm1d", "LayerNorm") and not values):
        raise ValueError(f"{kind} takes {len(arguments)} arguments ({', '.join(arguments) or 'none'}), got {values}")
    if kind == "Linear" and len(values) < 2:
        raise ValueError(f"Linear takes in_features, out_features, bias, got {values}")
    given = {name: check(value) for (name, check), value in zip(arguments.items(), values, strict=False)}
    if kind == "Dropout" and not 0 <= given.get("p", 0.5) <= 1:
        raise ValueError(f"Dropout takes a probability from 0 to 1, got {given['p']}")
    return make, given


def _build(description: Any) -> nn.Module:
    if isinstance(description, dict):
        module = nn.Sequential()
        for name, part in description.items():
            module.add_module(name, _build(part))
        return module
    if description and isinstance(description[0], str):
        make, arguments = _layer(description)
        return make(**arguments)
    return nn.Sequential(*(_build(part) for part in description))


def infer(state_dict: Mapping[str, Tensor], prefix: str = "fc.") -> tuple[Description | None, str | None]:
    """The classifier that keys and shapes speak of, and a line on what was assumed where they do not.

    Layers without tensors leave gaps in the numbers. Between two Linear layers, the first gap is taken
    for a ReLU; all others for layers that do nothing in evaluation, such as dropout.

    Args:
        state_dict: any; only keys that begin with `prefix` count.
        prefix: of the classifier, with its dot.

    Returns:
        the description, None for a plain Linear layer with bias or for no classifier at all; and the
        line, None if nothing had to be assumed.

    Raises:
        CheckpointError: if a layer is of no kind known, or the layers do not fit each other.
    """
    tensors = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not tensors or (set(tensors) == {"weight", "bias"} and tensors["weight"].ndim == 2):
        return None, None
    assumed: list[str] = []
    state = _State()
    description = _infer(tensors, prefix, state, assumed)
    try:
        features(description)
    except UsageError as error:
        raise CheckpointError(f"classifier {prefix}*: {error}") from None
    if not assumed:
        return description, None
    return description, f"classifier {prefix}*: assumed {', '.join(assumed)}; what has no weights leaves no keys"


class _State:
    """What the layers so far say about the next gap."""

    after_linear = False
    activated = False


def _infer(tensors: Mapping[str, Tensor], path: str, state: _State, assumed: list[str]) -> Description:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, rest = key.partition(".")
        if not rest:
            return _infer_layer(tensors, path, state)
        groups.setdefault(name, {})[rest] = value
    if all(name.isdecimal() and str(int(name)) == name for name in groups):
        return _infer_numbered({int(name): groups[name] for name in groups}, path, state, assumed)
    if not all(_is_name(name) for name in groups):
        raise CheckpointError(f"classifier {path}*: the order of its layers {', '.join(groups)} is not known")
    named: dict[str, Any] = {}
    for name, group in groups.items():
        if state.after_linear and not state.activated:
            named[f"relu_before_{name}"] = ["ReLU"]
            state.activated = True
            assumed.append(f"a ReLU before {path}{name}")
        named[name] = _infer(group, f"{path}{name}.", state, assumed)
    return named


def _infer_numbered(
    groups: Mapping[int, Mapping[str, Tensor]], path: str, state: _State, assumed: list[str]
) -> list[Any]:
    if max(groups) >= _MAX_LAYERS:
        raise CheckpointError(f"classifier {path}*: position {max(groups)} is implausible")
    layers: list[Any] = []
    for position in range(max(groups) + 1):
        if position in groups:
            layers.append(_infer(groups[position], f"{path}{position}.", state, assumed))
        elif state.after_linear and not state.activated:
            layers.append(["ReLU"])
            state.activated = True
            assumed.append(f"a ReLU at {path}{position}")
        else:
            layers.append(["Identity"])
            assumed.append(f"dropout or nothing at {path}{position}")
    return layers


def _infer_layer(tensors: Mapping[str, Tensor], path: str, state: _State) -> list[Any]:
    names, weight = set(tensors) - {"num_batches_tracked"}, tensors.get("weight")
    if weight is not None and weight.ndim == 2 and names <= {"weight", "bias"}:
        state.after_linear, state.activated = True, False
        return ["Linear", weight.shape[1], weight.shape[0], "bias" in names]
    if {"running_mean", "running_var"} <= names <= {"weight", "bias", "running_mean", "running_var"}:
        return ["BatchNorm1d", tensors["running_mean"].numel(), 1e-5, weight is not None]
    if weight is not None and weight.ndim == 1 and names == {"weight", "bias"}:
        return ["LayerNorm", weight.numel(), 1e-5]
    shapes = ", ".join(f"{path}{name} {list(value.shape)}" for name, value in tensors.items())
    raise CheckpointError(
        f"classifier {path}*: no kind of layer known has {shapes}: expected Linear, BatchNorm1d or LayerNorm"
    )
