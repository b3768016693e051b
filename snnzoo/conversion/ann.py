"""The ANN to convert: a user's module, captured as a graph with its tensors."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snnzoo.conversion.inputs import ann_input, check_floating
from snnzoo.data.preprocess import PRESETS
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.graph.capture import capture, plain
from snnzoo.graph.graph import Graph
from snnzoo.graph.network import Ann
from snnzoo.graph.rewrites import pool_before_activations
from snnzoo.graph.trained import with_relu
from snnzoo.models.base import SpikingNet
from snnzoo.models.factory import check_convertible
from snnzoo.models.registry import MODELS

SIZES = (224, 32)  # pixels that a network is tried with where neither images nor the zoo tell


def capture_ann(
    module: nn.Module,
    images: Tensor | None = None,
    model: str | None = None,
    size: tuple[int, int] | None = None,
    notify: Callable[[str], None] = warnings.warn,
) -> Ann:
    """Return a user's network as the ANN of a graph, on its device, single precision or better.

    Args:
        module: as `convert` takes it.
        images: samples of the right shape, `[N, C, H, W]` or `[N, T, C, H, W]`; if None, a network is tried with usual
            sizes.
        model: its name in files; the class's if None.
        size: height and width of its images, where none are given and it is known.
        notify: called with a line on what of it is left out.

    Raises:
        SnnzooError: naming the operation and its module, if the network cannot be converted.
        UsageError: for images of a wrong shape, or a network that is only trained as it is.
    """
    module = plain(module)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"expected a network to convert, got a {type(module).__name__}: snnzoo.load_ann makes one of a state dict"
        )
    by_position = getattr(module, "by_position", False)
    name = model or str(getattr(module, "model_name", type(module).__name__))
    if isinstance(module, SpikingNet):
        if name in MODELS:
            check_convertible(name, with_images=True)
        module = with_relu(module)
    module = _with_plain_weights(module)
    if images is not None:
        _check_images(images)
        example = ann_input(images[:2])
        graph, shape = _captured(module, example, name, notify), list(example.shape[1:])
    else:
        graph, shape = _captured_blind(module, size, notify)
    graph = pool_before_activations(graph)
    if isinstance(module, SpikingNet) and isinstance(getattr(module, "fc", None), nn.Sequential):
        head = next(node for node in graph if node.path.split(".")[0] == "fc")  # a classifier of several layers
        graph = dataclasses.replace(graph, readout=head.inputs[0])
    if not graph.neurons:
        raise SnnzooError(f"{name} has no activations: there is nothing that neurons could stand for")
    tensors = {key: value.detach() for key, value in module.state_dict().items()}
    half = {torch.float16, torch.bfloat16}
    tensors = {key: value.float() if value.dtype in half else value.clone() for key, value in tensors.items()}
    ann = Ann(graph, tensors, name, shape).eval()
    ann.by_position = by_position
    return ann


def _with_plain_weights(module: nn.Module) -> nn.Module:
    """A copy whose pruned, weight-normed and parametrized weights are plain parameters; else the module itself."""
    hooked = [(owner, hook) for owner in module.modules() for hook in _weight_hooks(owner).values()]
    if not hooked and not any(map(parametrize.is_parametrized, module.modules())):
        return module
    for owner, hook in hooked:  # what the hook computed: a copy cannot have been computed from anything
        name = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
        setattr(owner, name, getattr(owner, name).detach())
    module = copy.deepcopy(module)
    for owner in module.modules():
        for key, hook in _weight_hooks(owner).items():
            hook.remove(owner)
            del owner._forward_pre_hooks[key]
        if parametrize.is_parametrized(owner):
            for name in list(owner.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(owner, name)
    return module


def _weight_hooks(module: nn.Module) -> dict[int, Any]:
    """Those of a module that compute one of its weights before it runs."""
    kinds = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return {key: hook for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds)}


def first_channels(module: nn.Module) -> int | None:
    """Return how many channels the images of a network have, by its first convolution; None if it has none."""
    return next((m.in_channels for m in plain(module).modules() if isinstance(m, nn.Conv2d)), None)


def _captured(module: nn.Module, example: Tensor, name: str, notify: Callable[[str], None]) -> Graph:
    """Captured; where that fails on images of other channels than the first convolution's, they are the reason."""
    try:
        return capture(module, example, notify)
    except SnnzooError:
        channels = first_channels(module)
        if channels is None or example.ndim != 4 or example.shape[1] == channels:
            raise
        raise UsageError(f"calibration images have {example.shape[1]} channels, but {name} takes {channels}") from None


def _captured_blind(
    module: nn.Module, given: tuple[int, int] | None, notify: Callable[[str], None]
) -> tuple[Graph, list[int]]:
    """Captured without images, at the size that is given, or else the first that it takes."""
    channels = first_channels(module)
    shape = next(iter(module.parameters())).shape
    if channels is None and len(shape) == 2:
        return capture(module, torch.zeros(1, shape[1]), notify), [shape[1]]
    channels = channels or 3
    failure: SnnzooError | None = None
    spec = MODELS.get(getattr(module, "model_name", ""))
    own = () if spec is None else (PRESETS[spec.preprocess].size,)
    for size in (*own, *((side, side) for side in SIZES)) if given is None else (given,):
        try:
            return capture(module, torch.zeros(1, channels, *size), notify), [channels, *size]
        except SnnzooError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _check_images(images: Tensor) -> None:
    check_floating(images, "calibration images")
    if not bool(images.isfinite().all()):
        raise SnnzooError("calibration images hold NaN or infinite values: check the preprocessing")
