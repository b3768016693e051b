"""Which model a state dict in torchvision's keys belongs to, read off its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snnzoo.errors import CheckpointError
from snnzoo.models.registry import MODELS

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight$")


def identify(state_dict: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Any]]:
    """The model's name, and the arguments that its shapes settle: `num_classes`, `in_channels`, `option`.

    Raises:
        CheckpointError: if no model of the zoo has these keys and shapes.
    """
    blocks = [tuple(map(int, match.groups())) for key in state_dict if (match := _BLOCK.match(key))]
    stages = tuple(sum(stage == s for s, _ in blocks) for stage in sorted({stage for stage, _ in blocks}))
    try:
        found = _imagenet_model(state_dict, stages) if len(stages) == 4 else _cifar_model(state_dict, stages)
        if found is not None:
            name, kwargs = found
            classes, channels = state_dict["fc.weight"].shape[0], state_dict["conv1.weight"].shape[1]
            return name, {"num_classes": classes, "in_channels": channels, **kwargs}
    except KeyError as error:
        raise CheckpointError(f"{source}: not a ResNet in torchvision's keys: {error.args[0]} is missing") from None
    raise CheckpointError(
        f"{source}: no model of the zoo has its keys and shapes (blocks in each stage: {list(stages) or 'none'})"
    )


def _imagenet_model(state_dict: Mapping[str, Tensor], stages: tuple[int, ...]) -> tuple[str, dict[str, Any]] | None:
    bottleneck = "layer1.0.conv3.weight" in state_dict
    wanted: dict[str, Any] = {"block": "bottleneck" if bottleneck else "basic", "layers": stages}
    if bottleneck:
        width, per_group = state_dict["layer1.0.conv2.weight"].shape[:2]
        groups = width // per_group
        settings = {"groups": groups, "width_per_group": per_group if groups > 1 else width}
        defaults = {"groups": 1, "width_per_group": 64}
        wanted.update({key: value for key, value in settings.items() if value != defaults[key]})
    return next(((name, {}) for name, spec in MODELS.items() if spec.kwargs == wanted), None)


def _cifar_model(state_dict: Mapping[str, Tensor], stages: tuple[int, ...]) -> tuple[str, dict[str, Any]] | None:
    if len(set(stages)) != 1 or len(stages) != 3:
        return None
    option = "B" if "layer2.0.downsample.0.weight" in state_dict else "A"
    wanted = {"blocks": stages[0]}
    return next(((name, {"option": option}) for name, spec in MODELS.items() if spec.kwargs == wanted), None)
