"""ANN to SNN: build the ANN, calibrate, replace its neurons."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.checkpoints.layouts import to_torchvision
from snnzoo.conversion.codings import install
from snnzoo.conversion.file import Conversion
from snnzoo.conversion.recipes import Recipe, make_recipe
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.models import registry
from snnzoo.models.identify import identify
from snnzoo.models.resnet import SpikingNet

Progress = Callable[[int, int, str], None]


def build_ann(model: str, state_dict: dict[str, Tensor], source: str, **kwargs: Any) -> SpikingNet:
    """The ANN of `model` with these weights: single-step, eval mode, ReLU at every neuron site.

    Raises:
        CheckpointError: if the weights do not fit.
    """
    ann = registry.build(model, neuron=nn.ReLU, step_mode="s", **kwargs)
    registry.load_ann_weights(ann, state_dict, source)
    return ann.eval()


def convert(
    ann: nn.Module,
    images: Tensor | Iterable[Any],
    recipe: str | Recipe = "delta",
    time_steps: int | None = None,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    **options: Any,
) -> SpikingNet:
    """Convert a ResNet to a spiking network, training-free.

    Args:
        ann: a torchvision (or our) ResNet, also wrapped in DataParallel or compiled. Not changed.
        images: calibration images, preprocessed: `[N, C, H, W]`, or batches of them (a DataLoader).
        recipe: "delta" or "rate", or a `Recipe`.
        time_steps: T that the network is meant for; the recipe's default if None.
        batch_size: of the calibration passes.
        progress: called with (done, total, description).
        options: of the recipe, such as `levels=3` or `threshold="max"`.

    Returns:
        a network on the ANN's device, layer-by-layer, in eval mode: `[T, N, C, H, W] -> [T, N, num_classes]`, the
        logits decoded after each step. Give it a static image as `x.expand(T, *x.shape)`.

    Raises:
        UsageError: for an unknown recipe or option, T < 1, or no images.
        SnnzooError: if `ann` is no ResNet of the zoo, or computes something else than one.

    Example:
        >>> snn = snnzoo.convert(torchvision.models.resnet18(weights="DEFAULT"), images, time_steps=4)
    """
    images = _collect(images)
    state_dict = to_torchvision(ann.state_dict(), type(ann).__name__)
    parameter = next(iter(state_dict.values()))
    name, kwargs = identify(state_dict, type(ann).__name__)
    own = build_ann(name, state_dict, type(ann).__name__, **kwargs).to(parameter.device, parameter.dtype)
    _require_same_outputs(ann, own, images[:2].to(parameter.device, parameter.dtype))
    if not isinstance(recipe, Recipe):
        recipe = make_recipe(recipe, **options)
    return convert_ann(own, images, recipe, time_steps, batch_size=batch_size, progress=progress)


def convert_ann(
    ann: SpikingNet,
    images: Tensor,
    recipe: Recipe,
    time_steps: int | None = None,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    calibration_source: str | None = None,
    **origin: Any,
) -> SpikingNet:
    """Turn the ANN that `build_ann` made into a spiking network, in place; arguments as `convert`.

    Args:
        calibration_source: where the images are from, for the record.
        origin: `preprocess`, `classes` and `source` of the `Conversion`.
    """
    time_steps = recipe.default_time_steps if time_steps is None else time_steps
    if time_steps < 1:
        raise UsageError(f"time_steps must be at least 1, got {time_steps}")
    done, total = 0, recipe.work(len(images))

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total, f"calibrating {ann.model_name}")

    coding, parameters = recipe.calibrate(ann, images, time_steps, batch_size, report)
    install(ann, coding, parameters)
    digest = hashlib.sha256(images.contiguous().numpy(force=True).tobytes()).hexdigest()
    calibration = {"source": calibration_source, "images": len(images), "sha256": digest}
    record = {**recipe.to_dict(), "calibration": calibration}
    ann.conversion = Conversion(ann.model_name, ann.model_kwargs, coding, time_steps, record, **origin)
    return ann


def _collect(images: Tensor | Iterable[Any]) -> Tensor:
    """`[N, C, H, W]` from a tensor, or from batches of images or of (images, labels)."""
    if not isinstance(images, Tensor):
        batches = [batch[0] if isinstance(batch, (list, tuple)) else batch for batch in images]
        if not batches:
            raise UsageError("no calibration images were given")
        images = torch.cat(batches)
    if images.ndim != 4 or len(images) == 0:
        raise UsageError(f"calibration images must have the shape [N, C, H, W], got {list(images.shape)}")
    return images


def _require_same_outputs(theirs: nn.Module, ours: SpikingNet, images: Tensor) -> None:
    """A module may have a ResNet's weights and yet compute something else."""
    if isinstance(theirs, SpikingNet):
        return  # its weights are what is converted, whatever its neurons
    training = {module: module.training for module in theirs.modules()}
    try:
        theirs.eval()
        with torch.inference_mode():
            expected, actual = theirs(images), ours(images)
    finally:
        for module, mode in training.items():
            module.training = mode
    scale = expected.abs().amax().clamp(min=1e-6)
    if expected.shape != actual.shape or not bool(((expected - actual).abs() <= 1e-3 * scale).all()):
        raise SnnzooError(
            f"{type(theirs).__name__} has the weights of a ResNet, but computes something else: its logits differ"
        )
