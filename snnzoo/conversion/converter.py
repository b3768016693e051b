"""ANN to SNN: build the ANN, calibrate, replace its neurons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.codings import Coding
from snnzoo.conversion.calibration import Parameters, SiteReport, calibrate, work
from snnzoo.conversion.choice import HELD_BACK, SEARCH_IMAGES, Choice, choose, fit_extrapolation
from snnzoo.conversion.converted_file import Conversion
from snnzoo.conversion.data_free import data_free_parameters
from snnzoo.conversion.inputs import ann_input, has_frames
from snnzoo.conversion.metadata import MAX_TIME_STEPS
from snnzoo.conversion.recipes import Recipe, make_recipe
from snnzoo.conversion.sites import install
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.models import heads
from snnzoo.models.base import SpikingNet
from snnzoo.models.factory import build_ann, check_convertible
from snnzoo.progress import Progress
from snnzoo.recognition import identify, read_layout


def convert(
    ann: nn.Module,
    images: Tensor | Iterable[Any] | None = None,
    recipe: str | Recipe = "delta",
    time_steps: int | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> SpikingNet:
    """Convert a ResNet or VGG to a spiking network, training-free.

    Args:
        ann: a torchvision (or our) ResNet or VGG, in any mode, also fine-tuned with a replaced `fc`, wrapped in
            DataParallel or compiled. Not changed.
        images: calibration images, preprocessed: `[N, C, H, W]`, or batches of them (a DataLoader); or frames of
            events, `[T, N, C, H, W]`, whose mean over T is what `ann` takes. None converts a ResNet data-free,
            from the BN statistics: less exact.
        recipe: "delta", "differential", "signed" or "rate", or a `Recipe`; or "auto" for the delta network of the
            fewest steps and levels that agrees with the ANN, option `tolerance=0.5` (see `choose`).
        time_steps: T that the network is meant for; if None, that of the frames, or the recipe's default. Not
            with "auto".
        batch_size: of the calibration passes.
        seed: of what calibration samples; fixes the result.
        progress: called with (done, total, description).
        options: of the recipe, such as `levels=3` or `threshold="max"`.

    Returns:
        a network on the ANN's device, layer-by-layer, in eval mode: `[T, N, C, H, W] -> [T, N, num_classes]`, the
        logits decoded after each step. Give it a static image as `x.expand(T, *x.shape)`.

    Raises:
        UsageError: for an unknown recipe or option, T < 1, no images, or images of a wrong shape.
        SnnzooError: if `ann` is no network of the zoo, computes something else than one, or its `fc` cannot
            be kept in a file.

    Example:
        >>> snn = snnzoo.convert(torchvision.models.resnet18(weights="DEFAULT"), images, time_steps=4)
    """
    images = None if images is None else _collect(images)
    own = _as_ann(ann, images)
    choice = None
    if recipe == "auto":
        if images is None or time_steps is not None or options.keys() - {"tolerance"}:
            raise UsageError('recipe="auto" takes images and a tolerance, and chooses the rest itself')
        choice = choose(own, images, **options, batch_size=batch_size, seed=seed, progress=progress)
        recipe, time_steps = choice.recipe, choice.time_steps
    elif not isinstance(recipe, Recipe):
        recipe = make_recipe(recipe, **options)
    return convert_ann(
        own, images, recipe, time_steps, batch_size=batch_size, seed=seed, progress=progress, choice=choice
    )


def convert_ann(
    ann: SpikingNet,
    images: Tensor | None,
    recipe: Recipe,
    time_steps: int | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    calibration_source: str | None = None,
    choice: Choice | None = None,
    **origin: Any,
) -> SpikingNet:
    """Turn the ANN that `build_ann` made into a spiking network, in place; arguments as `convert`.

    Args:
        images: samples with the batch first: `[N, C, H, W]`, or frames `[N, T, C, H, W]`.
        calibration_source: where the images are from, for the record.
        choice: how recipe and time steps were chosen, for the record.
        origin: `preprocess`, `classes` and `source` of the `Conversion`.
    """
    if time_steps is None:
        frames = images is not None and has_frames(images)
        time_steps = images.shape[1] if images is not None and frames else recipe.coding.default_time_steps
    if not 1 <= time_steps <= MAX_TIME_STEPS:
        raise UsageError(f"time_steps must be at least 1 and at most {MAX_TIME_STEPS}, got {time_steps}")
    if images is not None and has_frames(images) and images.shape[1] != time_steps:
        raise UsageError(f"the data have {images.shape[1]} frames each, so time_steps must be that, got {time_steps}")
    record = {**recipe.to_dict(), "calibration": {"source": None, "images": 0}}
    if choice is not None:
        record["choice"] = choice.to_dict()
    layers: list[SiteReport] = []
    coding, extrapolation = recipe.coding, 0.0
    check_convertible(ann.model_name, with_images=images is not None)
    if images is None:
        parameters = data_free_parameters(ann, coding)
    else:
        _check_images(ann, images)
        coding, extrapolation, parameters, layers = _calibrated(
            ann, images, recipe, time_steps, batch_size, seed, progress
        )
        digest = hashlib.sha256(images.contiguous().numpy(force=True).tobytes()).hexdigest()
        record["calibration"] = {"source": calibration_source, "images": len(images), "sha256": digest, "seed": seed}
    install(ann, coding, parameters, extrapolation)
    ann.conversion = Conversion(
        ann.model_name,
        ann.model_kwargs,
        coding,
        time_steps,
        record,
        layers=[layer.to_dict() for layer in layers],
        extrapolation=extrapolation,
        **origin,
    )
    return ann


def _calibrated(
    ann: SpikingNet,
    images: Tensor,
    recipe: Recipe,
    time_steps: int,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> tuple[Coding, float, Parameters, list[SiteReport]]:
    """Return the best of the recipe's codings, the readout's extrapolation, and all sites fitted to them."""
    codings = recipe.candidates or (recipe.coding,)
    few, judged = images[:SEARCH_IMAGES], images[-SEARCH_IMAGES:]
    searches = len(codings) if len(codings) > 1 else 0
    done, total = 0, searches * work(ann, few, time_steps) + work(ann, images, time_steps)

    def report(count: int, where: str) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total, f"calibrating: {where}")

    def fitted(coding: Coding, images: Tensor) -> tuple[Parameters, list[SiteReport]]:
        return calibrate(
            ann,
            images,
            coding,
            recipe.fit,
            time_steps,
            batch_size=batch_size,
            seed=seed,
            percentile=recipe.site_percentile,
            report=report,
        )

    best = codings[0]
    if searches:
        errors = [
            fit_extrapolation(ann, coding, fitted(coding, few)[0], judged, time_steps, batch_size)[1]
            for coding in codings
        ]
        best = codings[errors.index(min(errors))]
    parameters, reports = fitted(best, images)
    extrapolation = 0.0
    if best.extrapolates:
        held_back = images[-HELD_BACK:]
        extrapolation, _ = fit_extrapolation(ann, best, parameters, held_back, time_steps, batch_size)
        report(0, "readout")
    return best, extrapolation, parameters, reports


def _as_ann(module: nn.Module, images: Tensor | None) -> SpikingNet:
    """Our ANN with the weights of a user's module, on its device and in its dtype."""
    name = type(module).__name__
    if isinstance(module, SpikingNet):
        check_convertible(module.model_name, with_images=True)
    state_dict = read_layout(module.state_dict(), name).state_dict
    parameter = next(iter(state_dict.values()))
    model, kwargs = identify(state_dict, name)
    classifier = next((m for key, m in module.named_modules() if key.rpartition(".")[2] == "fc"), None)
    if kwargs.get("head") is not None and classifier is not None:
        kwargs["head"] = heads.describe(classifier)  # the keys alone do not tell all
        if kwargs["head"] is None:
            raise SnnzooError(f"{name}: its fc holds a layer that cannot be kept in a file: {_oneline(classifier)}")
    own = build_ann(model, state_dict, name, **kwargs).to(parameter.device, parameter.dtype)
    if images is not None:
        _check_images(own, images)
        _require_same_outputs(module, own, ann_input(images[:2].to(parameter.device, parameter.dtype)))
    return own


def _oneline(module: nn.Module) -> str:
    return " ".join(repr(module).split())


def _check_images(ann: SpikingNet, images: Tensor) -> None:
    channels = next(ann.parameters()).shape[1]
    if images.shape[-3] != channels:
        raise UsageError(f"calibration images have {images.shape[-3]} channels, but {ann.model_name} takes {channels}")
    if not bool(images.isfinite().all()):
        raise SnnzooError("calibration images hold NaN or infinite values: check the preprocessing")


def _collect(images: Tensor | Iterable[Any]) -> Tensor:
    """`[N, C, H, W]` from a tensor, or from batches of images or of (images, labels); frames `[N, T, C, H, W]`."""
    if not isinstance(images, Tensor):
        batches = [batch[0] if isinstance(batch, (list, tuple)) else batch for batch in images]
        if not batches:
            raise UsageError("no calibration images were given")
        images = torch.cat(batches, dim=1 if has_frames(batches[0]) else 0)
    if images.ndim not in (4, 5) or images.numel() == 0:
        raise UsageError(
            f"calibration images must have the shape [N, C, H, W], or frames [T, N, C, H, W], got {list(images.shape)}"
        )
    return images.transpose(0, 1) if has_frames(images) else images


def _require_same_outputs(theirs: nn.Module, ours: SpikingNet, images: Tensor) -> None:
    """A module may have a network's weights and yet compute something else."""
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
            f"{type(theirs).__name__} has the weights of a {ours.model_name}, but computes something else: its logits "
            f"differ"
        )
