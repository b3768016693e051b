"""The zoo's models as data: what there is, by name. Nothing here imports torch; `models.factory` builds."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from snnzoo.checkpoints import manifest
from snnzoo.errors import UsageError, suggestion


@dataclass(frozen=True)
class ModelSpec:
    """How a model is built: a class of `snnzoo.models`, by module and name, and its arguments.

    `convertible` says whether it has an ANN to be converted from, `data_free` whether that takes no images.
    """

    module: str
    network: str
    kwargs: dict[str, Any]
    num_classes: int
    preprocess: str
    description: str = field(compare=False, default="")
    convertible: bool = True
    data_free: bool = True


def _imagenet(block: str, layers: tuple[int, ...], description: str, **kwargs: int) -> ModelSpec:
    arguments = {"block": block, "layers": layers, **kwargs}
    return ModelSpec("snnzoo.models.resnet", "ResNet", arguments, 1000, "imagenet", description)


def _cifar(blocks: int) -> ModelSpec:
    description = f"CIFAR ResNet-{6 * blocks + 2}, option A or B"
    return ModelSpec("snnzoo.models.cifar_resnet", "CifarResNet", {"blocks": blocks}, 10, "cifar10", description)


def _vgg(convolutions: tuple[int, ...], batch_norm: bool) -> ModelSpec:
    description = f"VGG-{sum(convolutions) + 3}{' with BN' if batch_norm else ''}"
    arguments = {"convolutions": convolutions, "batch_norm": batch_norm}
    return ModelSpec("snnzoo.models.vgg", "VGG", arguments, 1000, "imagenet", description, data_free=False)


def _sew(block: str, layers: tuple[int, ...], description: str) -> ModelSpec:
    arguments = {"block": block, "layers": layers}
    return ModelSpec(
        "snnzoo.models.sew_resnet", "SEWResNet", arguments, 1000, "imagenet", description, convertible=False
    )


_VGGS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

MODELS: dict[str, ModelSpec] = {
    "resnet18": _imagenet("basic", (2, 2, 2, 2), "ResNet-18"),
    "resnet34": _imagenet("basic", (3, 4, 6, 3), "ResNet-34"),
    "resnet50": _imagenet("bottleneck", (3, 4, 6, 3), "ResNet-50"),
    "resnet101": _imagenet("bottleneck", (3, 4, 23, 3), "ResNet-101"),
    "resnet152": _imagenet("bottleneck", (3, 8, 36, 3), "ResNet-152"),
    "resnext50_32x4d": _imagenet("bottleneck", (3, 4, 6, 3), "ResNeXt-50 32x4d", groups=32, width_per_group=4),
    "resnext101_32x8d": _imagenet("bottleneck", (3, 4, 23, 3), "ResNeXt-101 32x8d", groups=32, width_per_group=8),
    "resnext101_64x4d": _imagenet("bottleneck", (3, 4, 23, 3), "ResNeXt-101 64x4d", groups=64, width_per_group=4),
    "wide_resnet50_2": _imagenet("bottleneck", (3, 4, 6, 3), "Wide ResNet-50-2", width_per_group=128),
    "wide_resnet101_2": _imagenet("bottleneck", (3, 4, 23, 3), "Wide ResNet-101-2", width_per_group=128),
    **{f"resnet{6 * n + 2}": _cifar(n) for n in (3, 5, 7, 9, 18, 200)},
    **{f"vgg{depth}": _vgg(convolutions, False) for depth, convolutions in _VGGS.items()},
    **{f"vgg{depth}_bn": _vgg(convolutions, True) for depth, convolutions in _VGGS.items()},
    "sew_resnet18": _sew("basic", (2, 2, 2, 2), "SEW ResNet-18"),
    "sew_resnet34": _sew("basic", (3, 4, 6, 3), "SEW ResNet-34"),
    "sew_resnet50": _sew("bottleneck", (3, 4, 6, 3), "SEW ResNet-50"),
    "sew_resnet101": _sew("bottleneck", (3, 4, 23, 3), "SEW ResNet-101"),
    "sew_resnet152": _sew("bottleneck", (3, 8, 36, 3), "SEW ResNet-152"),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the models that match a shell pattern such as `"resnet*"`."""
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def model_spec(name: str) -> ModelSpec:
    """Return the spec of model `name`; a UsageError with near names if there is none."""
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: {suggestion(name, MODELS, 'snnzoo list shows all models')}")
    return MODELS[name]


def list_weights(manifest_file: Path | None = None) -> tuple[manifest.WeightsEntry, ...]:
    """Return every weights set: the package's, those of the user's config folder and those of `manifest_file`.

    Raises:
        ManifestError: if an entry is malformed, or is for a model that the zoo has not.
    """
    entries = manifest.all_entries(manifest_file)
    for entry in entries:
        if entry.model not in MODELS:
            hint = suggestion(entry.model, MODELS, "snnzoo list shows all models")
            raise manifest.ManifestError(
                f"{entry.origin}: {entry.tag}: field 'model' names an unknown model {entry.model!r}: {hint}"
            )
    return entries


def split_tag(name: str, weights: str | Enum | None = None) -> tuple[str, str | None]:
    """Return the model's name and the weights' (None if neither names any); torchvision `Weights` members are accepted.

    >>> split_tag("resnet18.digits")
    ('resnet18', 'digits')

    Raises:
        UsageError: if the name carries weights and other weights are asked for as well.
    """
    model, _, tag = name.partition(".")
    model_spec(model)
    weights = weights_name(model, weights)
    if tag and weights and tag != weights:
        raise UsageError(f"{name} names weights {tag!r}, but weights {weights!r} were asked for too")
    return model, (weights or tag or None)


def weights_name(model: str, weights: str | Enum | None) -> str | None:
    """Return the name of weights, given by it or as a torchvision `Weights` member; a UsageError if not of `model`."""
    if not isinstance(weights, Enum):
        return weights
    owner = type(weights).__name__.removesuffix("_Weights").lower()
    if owner != model:
        raise UsageError(f"{type(weights).__name__}.{weights.name} are weights of {owner}, not of {model}")
    return weights.name
