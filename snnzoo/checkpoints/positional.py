"""ResNets whose layers have numbers for names (`0.0.weight`), known by the order and shapes of their layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

# From a number of convolutions and of input channels, the networks that have them; shapes are all that counts.
Networks = Callable[[int, int], Iterable[nn.Module]]

_RANK = {"conv1": 1, "bn1": 2, "conv2": 3, "bn2": 4, "conv3": 5, "bn3": 6, "downsample": 7, "shortcut": 7}


def names_by_position(state_dict: Mapping[str, Tensor], networks: Networks) -> dict[str, str] | None:
    """Return torchvision's name for each key, where the layers are those of one of `networks` in its order.

    The order is the file's or, since safetensors files are sorted by name, that of the numbers in the keys.
    Everything before the first Linear layer must match one network in kind and shape; what follows is `fc`.
    """
    if not any(re.search(r"(^|\.)\d+\.", key) for key in state_dict):
        return None
    for keys in (list(state_dict), sorted(state_dict, key=_numeric_order)):
        layers: dict[str, dict[str, Tensor]] = {}
        for key in keys:
            path, _, leaf = key.rpartition(".")
            layers.setdefault(path, {})[leaf] = state_dict[key]
        body = _body(layers)
        own = _matching_paths([layers[path] for path in body], networks)
        if own is not None:
            names = dict(zip(body, own, strict=True)) | _classifier_paths([path for path in layers if path not in body])
            return {f"{path}.{leaf}": f"{names[path]}.{leaf}" for path in layers for leaf in layers[path]}
    return None


def _numeric_order(key: str) -> list[tuple[int, int, str]]:
    parts = key.split(".")[:-1]
    return [(0, int(part), "") if part.isdecimal() else (1, _RANK.get(part, 99), part) for part in parts]


def _body(layers: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """The paths up to the last convolution and the BN behind it."""
    last = max((i for i, tensors in enumerate(layers.values()) if _is_convolution(tensors)), default=-2)
    return list(layers)[: last + 2]


def _is_convolution(tensors: Mapping[str, Tensor]) -> bool:
    return "weight" in tensors and tensors["weight"].ndim == 4


def _classifier_paths(paths: list[str]) -> dict[str, str]:
    """`fc` for one Linear layer; `fc.0`, `fc.3` ... for several, numbered as they are."""
    if len(paths) == 1:
        return {paths[0]: "fc"}
    numbers = [int(number) if (number := path.rpartition(".")[2]).isdecimal() else None for path in paths]
    first = next((number for number in numbers if number is not None), 0)
    return {
        path: f"fc.{index if number is None else number - first}"
        for index, (path, number) in enumerate(zip(paths, numbers, strict=True))
    }


def _matching_paths(layers: list[Mapping[str, Tensor]], networks: Networks) -> list[str] | None:
    """The paths of the layers of the one network that has these shapes in this order."""
    convolutions = [layer["weight"] for layer in layers if "weight" in layer and layer["weight"].ndim == 4]
    if not convolutions or len(layers) != 2 * len(convolutions):
        return None
    for net in networks(len(convolutions), convolutions[0].shape[1]):
        own = [
            (path, module) for path, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
        ]
        if all(_fits(module, layer) for (_, module), layer in zip(own, layers, strict=True)):
            return [path for path, _ in own]
    return None


def _fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    own = {name: value.shape for name, value in module.state_dict().items() if name != "num_batches_tracked"}
    return own == {name: value.shape for name, value in tensors.items() if name != "num_batches_tracked"}
