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

from snnzoo.errors import UsageError

Description = list[Any] | dict[str, Any]

MAX_LAYERS = 64
_MAX_FEATURES, _MAX_WEIGHTS, _MAX_DEPTH = 1 << 20, 1 << 28, 8
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
    """Return the description of a classifier; None if it holds a layer that a description cannot express.

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
    """Build the module that a description, of whatever source, is of: `[N, features] -> [N, classes]`.

    Raises:
        UsageError: if it is not a description, is implausibly large, or its layers do not fit each other.
    """
    try:
        features(description)
        return _build(description)
    except (ValueError, TypeError) as error:
        raise UsageError(f"head: {error}") from None


def classifier(features_in: int, num_classes: int, head: Description | None) -> nn.Module:
    """Return a network's classifier: one Linear layer, or what `head` describes.

    Raises:
        UsageError: as `build`, and if the head takes another number of features.
    """
    if head is None:
        return nn.Linear(features_in, num_classes)
    given = features(head)[0]
    if given != features_in:
        raise UsageError(f"the head takes {given} features, but the network has {features_in}")
    return build(head)


def features(description: Any) -> tuple[int, int]:
    """Return the inputs and outputs of a classifier: those of its first and last Linear layer.

    Raises:
        UsageError: as `build`.
    """
    try:
        layers = _layers_of(description)
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


def _layers_of(description: Any, depth: int = 0) -> list[list[Any]]:
    """The layers in order, each checked; a ValueError says what is wrong."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
    if isinstance(description, list) and description and isinstance(description[0], str):
        _layer(description)
        return [description]
    if isinstance(description, dict):
        wrong = [name for name in description if not is_layer_name(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot be the name of a layer")
        description = list(description.values())
    if not isinstance(description, list):
        raise ValueError(f"expected a list or dict that describes layers, got {type(description).__name__}")
    if len(description) > MAX_LAYERS:
        raise ValueError(f"it has more than {MAX_LAYERS} layers")
    layers = [layer for part in description for layer in _layers_of(part, depth + 1)]
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"it has more than {MAX_LAYERS} layers")
    return layers


def is_layer_name(name: Any) -> bool:
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
