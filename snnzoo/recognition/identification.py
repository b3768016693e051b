"""Which model a state dict in torchvision's keys belongs to, read off its keys and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snnzoo.checkpoints.layout_rules import is_neuron_key
from snnzoo.errors import CheckpointError
from snnzoo.models.heads import Description, features
from snnzoo.models.registry import MODELS
from snnzoo.recognition.head import infer_head

_BLOCK = re.compile(r"layer(\d+)\.\d+\.conv1\.weight$")
_VGG_FIRST = "features.0.weight"
_POOLED = 512 * 7 * 7  # features that the classifier of torchvision's VGGs sees
_STEMS = {(4, 7): "imagenet", (4, 3): "cifar", (3, 3): None}  # by stages, and by the size of the first kernel
_VGG_LAYER = re.compile(r"features\.(\d+)\.weight$")


@dataclass(frozen=True)
class Architecture:
    """What keys and shapes tell of a ResNet or VGG; None where they are missing.

    Args:
        name: the model of the zoo with these blocks, None if it has none.
        block: "basic" or "bottleneck"; "plain" for a VGG.
        stages: blocks in each stage; convolutions of a VGG.
        depth: layers with weights on the longest path, as in ResNet-50.
        groups, width_per_group: of the first 3x3 convolution, as torchvision counts them.
        stem: width of the first convolution's kernel.
        in_channels, num_classes: of the input and the classifier.
        option: shortcut of a CIFAR ResNet.
        head: description of a classifier that is more than one Linear layer with bias; of a VGG, that is not
            torchvision's.
        hidden_features: of a VGG's classifier that is.
        batch_norm: False for a ResNet without BN.
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
    head: Description | None = None
    hidden_features: int | None = None
    batch_norm: bool = True

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that build it, as far as they are known."""
        stem = _STEMS.get((len(self.stages), self.stem or 0))
        settled = {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "option": self.option,
            "head": self.head,
            "hidden_features": self.hidden_features,
            "stem": stem if stem != "imagenet" else None,
            "batch_norm": None if self.batch_norm else False,
        }
        return {key: value for key, value in settled.items() if value is not None}


def identify(state_dict: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Any]]:
    """Return the model's name, and the arguments that its shapes settle: `num_classes`, `in_channels`, `option` ...

    Raises:
        CheckpointError: if no model of the zoo has these keys and shapes.
    """
    found = architecture(state_dict)
    if found.block == "plain":
        kind, first, last = "VGG", _VGG_FIRST, "classifier.6.weight"
    else:
        kind, first, last = "ResNet", "conv1.weight", "fc.weight"
    for key, value in ((first, found.in_channels), (last, found.num_classes)):
        if value is None:
            raise CheckpointError(f"{source}: not a {kind} in torchvision's keys: {key} is missing")
    if found.name is None:
        raise CheckpointError(
            f"{source}: no model of the zoo has its keys and shapes (blocks in each stage: "
            f"{list(found.stages) or 'none'})"
        )
    if found.block != "plain" and (len(found.stages), found.stem) not in _STEMS:
        known = " or ".join(f"{kernel}x{kernel}" for stages, kernel in _STEMS if stages == len(found.stages))
        raise CheckpointError(
            f"{source}: no model of the zoo has its keys and shapes: {found.name} has a stem of {known}, this one "
            f"{found.stem}x{found.stem}"
        )
    return found.name, found.kwargs


def architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """Return what the keys and shapes of a state dict in torchvision's keys tell, however incomplete.

    Raises:
        CheckpointError: if the classifier's layers are of no kind known.
    """
    if any(_VGG_LAYER.match(key) for key in state_dict):
        return _vgg(state_dict)
    blocks = Counter(int(match[1]) for key in state_dict if (match := _BLOCK.match(key)))
    stages = tuple(blocks[stage] for stage in sorted(blocks))
    bottleneck = "layer1.0.conv3.weight" in state_dict
    groups, width = _groups_and_width(state_dict) if bottleneck else (1, 64)
    stem = _shape(state_dict, "conv1.weight", 4)
    option = None
    if len(stages) == 3:
        option = "B" if "layer2.0.downsample.0.weight" in state_dict else "A"
    head = infer_head(state_dict)[0]
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
        num_classes=features(head)[1] if head is not None else classes,
        option=option,
        head=head,
        batch_norm=not ("conv1.bias" in state_dict and "bn1.weight" not in state_dict),
    )


def _vgg(state_dict: Mapping[str, Tensor]) -> Architecture:
    """A VGG: its convolutions lie two places apart, or three with BN, and one more where a pool lies between."""
    first = _shape(state_dict, _VGG_FIRST, 4)
    places = sorted(int(match[1]) for key in state_dict if (match := _VGG_LAYER.match(key)))
    batch_norm = "features.1.running_mean" in state_dict
    convolutions = [place for place in places if _shape(state_dict, f"features.{place}.weight", 4)]
    stages = [0]
    for place, following in zip(convolutions, [*convolutions[1:], None], strict=True):
        stages[-1] += 1
        if following is not None and following - place > (3 if batch_norm else 2):
            stages.append(0)
    wanted = {"convolutions": tuple(stages), "batch_norm": batch_norm}
    head = vgg_head(state_dict)
    hidden = None if head is None else _hidden_features(head)
    return Architecture(
        name=next((name for name, spec in MODELS.items() if spec.kwargs == wanted), None),
        block="plain",
        stages=tuple(stages),
        depth=sum(stages) + 3,
        groups=1,
        width_per_group=64,
        stem=first[-1] if first else None,
        in_channels=first[1] if first else None,
        num_classes=None if head is None or _lacks_its_end(head) else features(head)[1],
        head=head if hidden is None else None,
        hidden_features=hidden,
    )


def vgg_head(state_dict: Mapping[str, Tensor]) -> Description | None:
    """Return the description of a VGG's classifier; None if there is none.

    Raises:
        CheckpointError: if its layers are of no kind known.
    """
    weight = _shape(state_dict, "classifier.weight", 2)
    if weight is not None:
        return ["Linear", weight[1], weight[0], "classifier.bias" in state_dict]
    return infer_head({key: value for key, value in state_dict.items() if not is_neuron_key(key)}, "classifier.")[0]


def _hidden_features(head: Description) -> int | None:
    """The width of a classifier that is torchvision's, None for any other."""
    match head:
        case [["Linear", _, int(width), _], *_] if head == _torchvision_head(width, features(head)[1]):
            return width
    return None


def _lacks_its_end(head: Description) -> bool:
    """Whether it is torchvision's without the last layer, as features are taken from a VGG."""
    given, width = features(head)
    return given == _POOLED and head == _torchvision_head(width, 1)[:4]


def _torchvision_head(width: int, classes: int) -> list[Any]:
    """torchvision's classifier, as `infer_head` describes it."""
    hidden = [[["Linear", inputs, width, True], ["ReLU"], ["Identity"]] for inputs in (_POOLED, width)]
    return [*hidden[0], *hidden[1], ["Linear", width, classes, True]]


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
    return next((name for name, spec in MODELS.items() if spec.kwargs == wanted and spec.convertible), None)
