"""Which classifier of several layers the keys and shapes of a state dict speak of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snnzoo.errors import CheckpointError, UsageError
from snnzoo.models.heads import MAX_LAYERS, Description, features, is_layer_name


def infer_head(state_dict: Mapping[str, Tensor], prefix: str = "fc.") -> tuple[Description | None, str | None]:
    """Return the classifier that keys and shapes speak of, and a line on what was assumed where they do not.

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
    if not all(is_layer_name(name) for name in groups):
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
    if max(groups) >= MAX_LAYERS:
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
