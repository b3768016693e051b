"""Which model a state dict in torchvision's keys belongs to, read off its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snnzoo.errors import CheckpointError
from snnzoo.models import heads
from snnzoo.models.registry import MODELS

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight$")


@dataclass(frozen=True)
class Architecture:
    """What keys and shapes tell of a ResNet; None where they are missing.

    Args:
        name: the model of the zoo with these blocks, None if it has none.
        block: "basic" or "bottleneck".
        stages: blocks in each stage.
        depth: layers with weights on the longest path, as in ResNet-50.
        groups, width_per_group: of the first 3x3 convolution, as torchvision counts them.
        stem: width of the first convolution's kernel.
        in_channels, num_classes: of the input and the classifier.
        option: shortcut of a CIFAR ResNet.
        head: description of a classifier that is more than one Linear layer with bias.
    """

    name: str | None
    block: str
    stages: tuple[int, ...]
    depth: int
    groups: int
    width_per_group: int
    stem: int | None
    in_channels: int | None
    num_classes: int | None
    option: str | None = None
    head: heads.Description | None = None

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that build it, as far as they are known."""
        settled = {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "option": self.option,
            "head": self.head,
        }
        return {key: value for key, value in settled.items() if value is not None}


def identify(state_dict: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Any]]:
    """The model's name, and the arguments that its shapes settle: `num_classes`, `in_channels`, `option`, `head`.

    Raises:
        CheckpointError: if no model of the zoo has these keys and shapes.
    """
    found = architecture(state_dict)
    for key, value in (("conv1.weight", found.in_channels), ("fc.weight", found.num_classes)):
        if value is None:
            raise CheckpointError(f"{source}: not a ResNet in torchvision's keys: {key} is missing")
    if found.name is None:
        raise CheckpointError(
            f"{source}: no model of the zoo has its keys and shapes (blocks in each stage: "
            f"{list(found.stages) or 'none'})"
        )
    wanted = 7 if len(found.stages) == 4 else 3
    if found.stem != wanted:
        raise CheckpointError(
            f"{source}: no model of the zoo has its keys and shapes: {found.name} has a {wanted}x{wanted} stem, this "
            f"one {found.stem}x{found.stem}"
        )
    return found.name, found.kwargs


def architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """What the keys and shapes of a state dict in torchvision's keys tell, however incomplete.

    Raises:
        CheckpointError: if the classifier's layers are of no kind known.
    """
    blocks = [tuple(map(int, match.groups())) for key in state_dict if (match := _BLOCK.match(key))]
    stages = tuple(sum(stage == s for s, _ in blocks) for stage in sorted({stage for stage, _ in blocks}))
    bottleneck = "layer1.0.conv3.weight" in state_dict
    groups, width = _groups_and_width(state_dict) if bottleneck else (1, 64)
    stem = _shape(state_dict, "conv1.weight", 4)
    option = None
    if len(stages) == 3:
        option = "B" if "layer2.0.downsample.0.weight" in state_dict else "A"
    head = heads.infer(state_dict)[0]
    classifier = _shape(state_dict, "fc.weight", 2)
    classes = classifier[0] if classifier else None
    block = "bottleneck" if bottleneck else "basic"
    return Architecture(
        name=_name(block, stages, groups, width),
        block=block,
        stages=stages,
        depth=sum(stages) * (3 if bottleneck else 2) + 2,
        groups=groups,
        width_per_group=width,
        stem=stem[-1] if stem else None,
        in_channels=stem[1] if stem else None,
        num_classes=heads.features(head)[1] if head is not None else classes,
        option=option,
        head=head,
    )


def _shape(state_dict: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...] | None:
    value = state_dict.get(key)
    return tuple(value.shape) if value is not None and value.ndim == ndim else None


def _groups_and_width(state_dict: Mapping[str, Tensor]) -> tuple[int, int]:
    """Groups and width per group of the first 3x3 convolution, `[planes, planes / groups, 3, 3]`."""
    shape = _shape(state_dict, "layer1.0.conv2.weight", 4)
    if shape is None or shape[1] == 0:
        return 1, 64
    groups = shape[0] // shape[1]
    return groups, shape[1] if groups > 1 else shape[0]


def _name(block: str, stages: tuple[int, ...], groups: int, width: int) -> str | None:
    wanted: dict[str, Any] = {"block": block, "layers": stages}
    if len(stages) == 3 and len(set(stages)) == 1 and block == "basic":
        wanted = {"blocks": stages[0]}
    elif block == "bottleneck":
        settings = (("groups", groups, 1), ("width_per_group", width, 64))
        wanted |= {key: value for key, value, default in settings if value != default}
    return next((name for name, spec in MODELS.items() if spec.kwargs == wanted), None)
