"""The zoo's models by name. Nothing here imports torch until a model is built."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnzoo.checkpoints import manifest
from snnzoo.errors import CheckpointError, UsageError, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snnzoo.models.heads import Description
    from snnzoo.models.resnet import SpikingNet

_NEURON_KEY = re.compile(r"(^|\.)(downsample_)?sn\d*\.")

NEURONS = {"if": "IFNode", "lif": "LIFNode", "plif": "ParametricLIFNode"}


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
    """Names of the models that match a shell pattern such as `"resnet*"`."""
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def model_spec(name: str) -> ModelSpec:
    """The spec of model `name`; a UsageError with near names if there is none."""
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: {suggestion(name, MODELS, 'snnzoo list shows all models')}")
    return MODELS[name]


def check_convertible(name: str, with_images: bool) -> None:
    """Refuse to convert model `name` where there is no way to.

    Raises:
        UsageError: if it has no ANN to be converted from, or its thresholds cannot be had without images.
    """
    spec = model_spec(name)
    if not spec.convertible:
        ann = next(other for other, its in MODELS.items() if its.convertible and its.kwargs == spec.kwargs)
        raise UsageError(f"{name} is a network to train: no ANN joins spikes as its blocks do; convert {ann} instead")
    if not (spec.data_free or with_images):
        raise UsageError(
            f"{name} has layers with no BN, whose thresholds cannot be guessed: give calibration images, a few hundred "
            f"without labels (--calib-data DIR)"
        )


def list_weights(manifest_file: Path | None = None) -> tuple[manifest.WeightsEntry, ...]:
    """Every weights set: the package's, those of the user's config folder and those of `manifest_file`.

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
    """`("resnet18.digits", None) -> ("resnet18", "digits")`; torchvision `Weights` members are accepted.

    Raises:
        UsageError: if the name carries weights and other weights are asked for as well.
    """
    model, _, tag = name.partition(".")
    model_spec(model)
    if isinstance(weights, Enum):
        owner = type(weights).__name__.removesuffix("_Weights").lower()
        if owner != model:
            raise UsageError(f"{type(weights).__name__}.{weights.name} are weights of {owner}, not of {model}")
        weights = weights.name
    if tag and weights and tag != weights:
        raise UsageError(f"{name} names weights {tag!r}, but weights {weights!r} were asked for too")
    return model, (weights or tag or None)


def neuron_factory(neuron: str | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A neuron by name ("if", "lif", "plif"), or any callable that makes one."""
    if not isinstance(neuron, str):
        return neuron
    if neuron.lower() not in NEURONS:
        raise UsageError(f"unknown neuron {neuron!r}: expected one of {', '.join(NEURONS)}, or a callable")
    factory: Callable[[], nn.Module] = getattr(importlib.import_module("snnzoo.neuron"), NEURONS[neuron.lower()])
    return factory


def build(
    name: str, neuron: str | Callable[[], nn.Module] = "if", head: Description | None = None, **kwargs: Any
) -> SpikingNet:
    """Model `name` with fresh weights. Arguments as `create_model`."""
    spec = model_spec(name)
    network = getattr(importlib.import_module(spec.module), spec.network)
    arguments = {"num_classes": spec.num_classes, **spec.kwargs, **kwargs}
    if head is not None:
        arguments["num_classes"] = _classes_of(head, kwargs.get("num_classes"))
    try:
        net: SpikingNet = network(neuron=neuron_factory(neuron), **arguments)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from error
    net.model_name = name
    net.model_kwargs = {"num_classes": arguments["num_classes"], **kwargs}
    net.model_kwargs.pop("step_mode", None)
    if head is not None:
        _replace_classifier(net, head)
    return net


def _classes_of(head: Description, num_classes: int | None) -> int:
    from snnzoo.models import heads

    classes = heads.features(head)[1]
    if num_classes not in (None, classes):
        raise UsageError(f"the head has {classes} classes, not {num_classes}: give --num-classes {classes}")
    return classes


def _replace_classifier(net: SpikingNet, head: Description) -> None:
    """Put the classifier that `head` describes at `net.fc`: stateless, and after the readout."""
    from snnzoo.models import heads

    if not hasattr(net, "fc"):
        raise UsageError(f"{net.model_name}: its classifier cannot be replaced by a head")
    wanted, given = getattr(net.fc, "in_features", None), heads.features(head)[0]
    if wanted != given:
        raise UsageError(f"{net.model_name}: the head takes {given} features, but the network has {wanted}")
    net.fc = heads.build(head)
    net.model_kwargs["head"] = head


def create_model(
    name: str,
    weights: str | Enum | None = None,
    neuron: str | Callable[[], nn.Module] = "if",
    **kwargs: Any,
) -> SpikingNet:
    """Build a spiking network, layer-by-layer by default: `[T, N, C, H, W] -> [T, N, num_classes]`.

    Args:
        name: a model, or `model.weights` such as `"resnet18.IMAGENET1K_V1"`.
        weights: a weights name of the manifest, "DEFAULT", or a torchvision `Weights` member.
        neuron: "if", "lif", "plif", or a callable that makes a neuron (`neuron.LIFNode`,
            `functools.partial(neuron.IFNode, v_reset=None)`; `nn.ReLU` gives the ANN).
        kwargs: `num_classes`, `in_channels`, `step_mode`, `option` for CIFAR ResNets, `hidden_features` for
            VGGs, `connect` for SEW ResNets, and for ResNets `head`, the description of a classifier of several
            layers (`models.heads`) instead of one Linear layer.

    Raises:
        UsageError: for an unknown name or argument, or `num_classes` other than the weights'.
        CheckpointError: if the weights cannot be fetched or do not fit.

    Example:
        >>> net = create_model("resnet18", weights="digits", neuron="lif")
    """
    model, tag = split_tag(name, weights)
    if tag is None:
        return build(model, neuron, **kwargs)
    entry = manifest.find(model, tag, list_weights())
    num_classes = kwargs.setdefault("num_classes", entry.num_classes)
    if num_classes != entry.num_classes:
        raise UsageError(
            f"weights {entry.tag} have {entry.num_classes} classes, not {num_classes}: leave num_classes out, and "
            f"replace the classifier after loading"
        )
    net = build(model, neuron, **kwargs)
    load_ann_weights(net, weights_of(entry), entry.tag)
    return net


def weights_of(
    entry: manifest.WeightsEntry, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Tensor]:
    """The state dict of a manifest entry in torchvision's key layout, downloaded or made where necessary."""
    from snnzoo.checkpoints import layouts
    from snnzoo.checkpoints.download import fetch
    from snnzoo.checkpoints.files import read_checkpoint

    return layouts.to_torchvision(read_checkpoint(fetch(entry, progress)), entry.tag, entry.layout)


def load_ann_weights(net: SpikingNet, state_dict: dict[str, Tensor], source: str) -> None:
    """Load a state dict in torchvision's keys strictly; neuron parameters keep their initial values.

    Raises:
        CheckpointError: naming `source` and the first few keys that are missing, unexpected or misshapen.
    """
    from snnzoo.checkpoints.layouts import check_fits

    own = net.state_dict()
    check_fits(own, state_dict, source)
    usable = {
        key: value
        for key, value in state_dict.items()
        if not is_neuron_key(key) or (key in own and own[key].shape == value.shape)
    }
    missing, _ = net.load_state_dict(usable, strict=False)
    lost = [key for key in missing if not is_neuron_key(key) and not key.endswith("num_batches_tracked")]
    if lost:
        raise CheckpointError(f"{source}: keys missing: {', '.join(lost)}")


def is_neuron_key(key: str) -> bool:
    """Whether a state_dict key belongs to a neuron (`sn1.w`, `layer1.0.sn2.module.surrogate_function.alpha`)."""
    return _NEURON_KEY.search(key) is not None
