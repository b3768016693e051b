"""Building a model of the zoo by its name, and giving it weights. Nothing here imports torch until then."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from snnzoo.checkpoints import manifest
from snnzoo.checkpoints.layout_rules import is_neuron_key
from snnzoo.errors import CheckpointError, UsageError
from snnzoo.models.registry import MODELS, list_weights, model_spec, split_tag
from snnzoo.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snnzoo.models.base import NeuronFactory, SpikingNet
    from snnzoo.models.heads import Description

NEURONS = {"if": "IFNode", "lif": "LIFNode", "plif": "ParametricLIFNode"}


def create_model(
    name: str,
    weights: str | Enum | None = None,
    neuron: str | NeuronFactory = "if",
    **kwargs: Any,
) -> SpikingNet:
    """Build a spiking network, layer-by-layer by default: `[T, N, C, H, W] -> [T, N, num_classes]`.

    Args:
        name: a model, or `model.weights` such as `"resnet18.IMAGENET1K_V1"`.
        weights: a weights name of the manifest, "DEFAULT", or a torchvision `Weights` member.
        neuron: "if", "lif", "plif", or a callable that makes a neuron (`neuron.LIFNode`,
            `functools.partial(neuron.IFNode, v_reset=None)`; `nn.ReLU` gives the ANN).
        kwargs: `num_classes`, `in_channels`, `step_mode`, and `head`, the description of another classifier
            (`models.heads`); for ResNets `batch_norm=False` where BN was folded into convolutions, and of CIFAR's
            `option`, of the others `stem="cifar"`; `hidden_features` and `pool="avg"` for VGGs; `pool_first=False` for
            ResNets and VGGs whose max pools are behind neurons; `connect` for SEW ResNets.

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


def build(name: str, neuron: str | NeuronFactory = "if", **kwargs: Any) -> SpikingNet:
    """Build model `name` with fresh weights. Arguments as `create_model`."""
    spec = model_spec(name)
    network = getattr(importlib.import_module(spec.module), spec.network)
    arguments = {"num_classes": spec.num_classes, **spec.kwargs, **kwargs}
    if kwargs.get("head") is not None:
        arguments["num_classes"] = _classes_of(kwargs["head"], kwargs.get("num_classes"))
    try:
        net: SpikingNet = network(neuron=neuron_factory(neuron), **arguments)
    except (TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{name}: {error}") from error
    net.model_name = name
    net.model_kwargs = {"num_classes": arguments["num_classes"], **kwargs}
    net.model_kwargs.pop("step_mode", None)
    return net


def build_ann(name: str, state_dict: dict[str, Tensor], source: str, **kwargs: Any) -> SpikingNet:
    """Build the ANN of model `name` with these weights: single-step, in eval mode, a ReLU for each neuron.

    Args:
        state_dict: in torchvision's keys.
        source: named in errors.
        kwargs: as `create_model`.

    Raises:
        UsageError: if it is a network to train.
        CheckpointError: if the weights do not fit.
    """
    from torch import nn

    check_convertible(name, with_images=True)
    ann = build(name, neuron=nn.ReLU, step_mode="s", **kwargs)
    load_ann_weights(ann, state_dict, source)
    return ann.eval()


def ann_shapes(name: str, **kwargs: Any) -> nn.Module:
    """Build the ANN of model `name` on the meta device, shapes without data. Arguments as `create_model`."""
    import torch
    from torch import nn

    with torch.device("meta"):
        return build(name, nn.ReLU, step_mode="s", **kwargs)


def is_for_small_images(net: nn.Module) -> bool:
    """Whether a network of the zoo is made for images as small as CIFAR's, 32 pixels, by its stem or classifier."""
    from snnzoo.models.vgg import VGG

    if isinstance(net, VGG):
        return net.pooled == 1
    return bool(getattr(net, "model_kwargs", {}).get("stem") == "cifar")


def anns_with(convolutions: int, in_channels: int, names: Iterable[str] = MODELS) -> Iterator[nn.Module]:
    """Yield the ANNs of the models `names` that have this many convolutions, each shortcut option by itself."""
    for name in names:
        if not MODELS[name].convertible:  # the keys and shapes of another model
            continue
        for options, count in _convolutions(MODELS[name].kwargs):
            if count == convolutions:
                yield ann_shapes(name, in_channels=in_channels, **options)


def _convolutions(kwargs: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The options of a model, each with the number of its convolutions."""
    if "blocks" in kwargs:
        plain = 1 + 6 * kwargs["blocks"]
        return [({"option": "A"}, plain), ({"option": "B"}, plain + 2)]
    if "convolutions" in kwargs:  # a VGG has numbers for names already
        return []
    if kwargs["block"] == "basic":
        return [({}, 1 + 2 * sum(kwargs["layers"]) + 3)]
    return [({}, 1 + 3 * sum(kwargs["layers"]) + 4)]


def neuron_factory(neuron: str | NeuronFactory) -> NeuronFactory:
    """Return what makes the neurons called "if", "lif" or "plif"; a callable is returned as it is."""
    if not isinstance(neuron, str):
        return neuron
    if neuron.lower() not in NEURONS:
        raise UsageError(f"unknown neuron {neuron!r}: expected one of {', '.join(NEURONS)}, or a callable")
    factory: NeuronFactory = getattr(importlib.import_module("snnzoo.neuron"), NEURONS[neuron.lower()])
    return factory


def _classes_of(head: Description, num_classes: int | None) -> int:
    from snnzoo.models import heads

    classes = heads.features(head)[1]
    if num_classes not in (None, classes):
        raise UsageError(f"the head has {classes} classes, not {num_classes}: give --num-classes {classes}")
    return classes


def check_convertible(name: str, with_images: bool) -> None:
    """Refuse to convert model `name` where there is no way to.

    Raises:
        UsageError: if it has no ANN to be converted from, or its thresholds need images.
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


def weights_of(entry: manifest.WeightsEntry, progress: Progress | None = None) -> dict[str, Tensor]:
    """Return the state dict of a manifest entry in torchvision's keys, downloaded or made where necessary."""
    from snnzoo.checkpoints.download import fetch
    from snnzoo.checkpoints.files import read_checkpoint
    from snnzoo.checkpoints.layouts import translate

    content = read_checkpoint(fetch(entry, progress))
    return translate(content, entry.tag, partial(anns_with, names=[entry.model]), entry.layout).state_dict


def load_ann_weights(net: SpikingNet, state_dict: dict[str, Tensor], source: str) -> None:
    """Load a state dict in torchvision's keys strictly; neuron parameters keep their initial values.

    Raises:
        CheckpointError: naming `source` and the first few keys that are missing, unexpected or mismatched.
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
