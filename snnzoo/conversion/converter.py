"""ANN to SNN: capture the network, calibrate, put neurons in the place of its activations."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from snnzoo.codings import Coding
from snnzoo.conversion.ann import capture_ann
from snnzoo.conversion.calibration import SAMPLED_POSITIONS, Calibration, Calibrator, Site, SiteReport
from snnzoo.conversion.choice import Choice, choose
from snnzoo.conversion.converted_file import Conversion
from snnzoo.conversion.earliest import earliest_answers
from snnzoo.conversion.exits import calibrate_exits
from snnzoo.conversion.fewest import fewest_events
from snnzoo.conversion.inputs import MOST_IMAGES, ann_input, collected, has_frames
from snnzoo.conversion.metadata import MAX_TIME_STEPS
from snnzoo.conversion.moments import data_free_parameters
from snnzoo.conversion.neurons import NO_GAMMAS, install
from snnzoo.conversion.recipes import FINE_LEVELS, Recipe, Trade, descend, fit_extrapolation, make_recipe
from snnzoo.distributed import ALONE, Rank
from snnzoo.errors import UsageError
from snnzoo.fit import check
from snnzoo.graph.network import Ann, SpikingNetwork
from snnzoo.progress import Progress

SEARCH_IMAGES = 16  # on which each of several codings is calibrated
SEARCH_POSITIONS = 256  # of each channel, for that
USUAL_SEARCHES = 3  # of the codings, until the best one is found
Fit = Callable[[Site], dict[str, Tensor]]


def convert(
    ann: nn.Module,
    images: Any = None,
    recipe: str | Recipe = "delta",
    time_steps: int | None = None,
    *,
    batch_size: int = 32,
    seed: int = 0,
    check_fit: bool = True,
    progress: Progress | None = None,
    exit_images: Any = None,
    notify: Callable[[str], None] | None = None,
    **options: Any,
) -> SpikingNetwork:
    """Convert a network to a spiking one, training-free.

    Args:
        ann: any network of convolutions, pools, sums, products and scalar activations, from images to logits:
            torchvision's, timm's, transformers', ours or the user's own; in any mode, also wrapped in DataParallel or
            compiled. Not changed.
        images: calibration images, preprocessed: `[N, C, H, W]`, a tensor or NumPy array, or batches of them (a
            DataLoader, also of tuples or dicts), of which the first 512 images are taken: let it shuffle; or frames
            of events, `[T, N, C, H, W]`, whose mean over T is what `ann` takes. None converts data-free, from the BN
            statistics: less exact.
        recipe: "delta", "differential", "signed" or "rate", or a `Recipe`; or "auto" for the delta network of the
            fewest steps and levels that agrees with the ANN, option `tolerance=0.5` (see `choose`).
        time_steps: T that the network is meant for; if None, that of the frames, or the recipe's default. Not
            with "auto".
        batch_size: of the calibration passes.
        seed: of what calibration samples; fixes the result.
        check_fit: whether to refuse a network whose BN statistics are far from what the images give (`fit.check`);
            otherwise that is only said.
        progress: called with (done, total, description).
        exit_images: others than `images`, on which rules of early exit are chosen (`calibrate_exits`); None for none.
        notify: called with a line on what does not fit; if None, it is a Python warning.
        options: of the recipe, such as `levels=3`, `threshold="max"` or `minimise="events"` (with its `tolerance`).

    Returns:
        a network on the ANN's device, layer-by-layer, in eval mode: `[T, N, C, H, W] -> [T, N, classes]`, the
        logits decoded after each step. Give it a static image as `x.expand(T, *x.shape)`.

    Raises:
        UsageError: for an unknown recipe or option, T < 1, no images, or images of a wrong shape.
        SnnzooError: naming the operation and its module, if the network cannot be converted; or if its weights are
            damaged, or its BN does not fit the images at all.

    Example:
        >>> snn = snnzoo.convert(torchvision.models.resnet18(weights="DEFAULT"), images, time_steps=4)
    """
    images = None if images is None else collected(images)
    own = capture_ann(ann, images)
    images = None if images is None else images.to(next(own.parameters()).dtype)
    fit = None
    if images is not None:
        fit = check.check_fit(own, ann_input(images), force=not check_fit, notify=notify)
    choice = None
    if recipe == "auto":
        if images is None or time_steps is not None or options.keys() - {"tolerance"}:
            raise UsageError('recipe="auto" takes images and a tolerance, and chooses the rest itself')
        choice = choose(own, images, **options, batch_size=batch_size, seed=seed, progress=progress)
        recipe, time_steps = choice.recipe, choice.time_steps
    elif not isinstance(recipe, Recipe):
        recipe = make_recipe(recipe, **options)
    return convert_ann(
        own,
        images,
        recipe,
        time_steps,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        choice=choice,
        exit_images=None if exit_images is None else collected(exit_images, 2 * MOST_IMAGES),
        fit=fit and fit.to_dict(),
    )


def convert_ann(
    ann: nn.Module,
    images: Tensor | None,
    recipe: Recipe,
    time_steps: int | None = None,
    *,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    calibration_source: str | None = None,
    choice: Choice | None = None,
    exit_images: Tensor | None = None,
    rank: Rank = ALONE,
    **origin: Any,
) -> SpikingNetwork:
    """Convert a network, with all that a file says of it; arguments as `convert`.

    Args:
        ann: what `capture_ann` made, or a network for it.
        images: samples with the batch first: `[N, C, H, W]`, or frames `[N, T, C, H, W]`.
        calibration_source: where the images are from, for the record.
        choice: how recipe and time steps were chosen, for the record.
        exit_images: samples that rules of early exit are chosen on.
        rank: of several processes, this one: they share the samples, and all return the network that one would.
        origin: `preprocess`, `classes`, `source` and `fit` of the `Conversion`.

    Raises:
        SnnzooError: also if the weights are damaged, or there are neither images nor trained BN.
    """
    own = ann if isinstance(ann, Ann) else capture_ann(ann, images)
    if time_steps is None:
        frames = images is not None and has_frames(images)
        time_steps = images.shape[1] if images is not None and frames else recipe.coding.default_time_steps
    if not 1 <= time_steps <= MAX_TIME_STEPS:
        raise UsageError(f"time_steps must be at least 1 and at most {MAX_TIME_STEPS}, got {time_steps}")
    if images is not None and has_frames(images) and images.shape[1] != time_steps:
        raise UsageError(f"the data have {images.shape[1]} frames each, so time_steps must be that, got {time_steps}")
    for node in own.graph.neurons:
        recipe.coding.check_activation(node.activation)
    record = {**recipe.to_dict(), "calibration": {"source": None, "images": 0}}
    if choice is not None:
        record["choice"] = choice.to_dict()
    layers: list[SiteReport] = []
    coding, extrapolation, gammas = recipe.coding, 0.0, NO_GAMMAS
    if images is None:
        if recipe.minimise:
            raise UsageError(f'minimise="{recipe.minimise}" is judged on images: give calibration images')
        check.check_data_free(own)
        parameters = data_free_parameters(own.graph, own.tensors(), coding)
    else:
        coding, extrapolation, found, trade = _calibrated(
            own, images, recipe, time_steps, batch_size, seed, progress, rank
        )
        parameters, gammas, layers = found.parameters, found.gammas, found.layers
        if trade is not None:
            record[trade.name] = trade.to_dict()
        digest = hashlib.sha256(images.contiguous().numpy(force=True).tobytes()).hexdigest()
        record["calibration"] = {"source": calibration_source, "images": len(images), "sha256": digest, "seed": seed}
    net = install(own, coding, parameters, extrapolation, gammas)
    reports = [layer.to_dict() for layer in layers]
    net.conversion = Conversion(
        own.model_name,
        coding,
        time_steps,
        record,
        extrapolation,
        gammas=dict(gammas),
        layers=reports,
        input_shape=own.input_shape,
        **origin,
    )
    if exit_images is not None and time_steps > 1:
        calibrate_exits(net, exit_images, batch_size=batch_size, progress=progress, rank=rank)
    return net


def _calibrated(
    ann: Ann,
    images: Tensor,
    recipe: Recipe,
    time_steps: int,
    batch_size: int,
    seed: int,
    progress: Progress | None,
    rank: Rank,
) -> tuple[Coding, float, Calibration, Trade | None]:
    """The best of the recipe's codings, its readout, all sites fitted to it, and how the least of something was."""
    calibrator = Calibrator(ann, recipe.coding, batch_size=batch_size, seed=seed, rank=rank)
    trade: Trade | None = None
    fit = recipe.fit
    if recipe.minimise == "events":
        trade = fewest_events(ann, calibrator, images, recipe, time_steps, batch_size, seed, progress)
    elif recipe.minimise == "steps":
        trade = earliest_answers(ann, calibrator, images, recipe, time_steps, batch_size, progress)
    if trade is not None:
        recipe, fit = replace(recipe, coding=trade.coding, candidates=()), trade.fit
    few = images[:SEARCH_IMAGES]
    fine = recipe.candidates and recipe.coding.largest_unit >= FINE_LEVELS
    own = replace(recipe, own_gammas=True) if fine else recipe
    search = USUAL_SEARCHES * calibrator.cost(len(few), time_steps, SEARCH_POSITIONS) if recipe.candidates else 0.0
    search += calibrator.cost(len(few), time_steps, SEARCH_POSITIONS, own.fits) if fine else 0.0
    done, limit, total = 0.0, search, search + calibrator.cost(len(images), time_steps, fits=own.fits)

    def report(cost: float, where: str) -> None:
        nonlocal done
        done = min(done + cost, limit)
        if progress:
            progress(round(done), round(total), f"calibrating: {where}")

    def calibrated(coding: Coding, fit: Fit, images: Tensor, positions: int) -> Calibration:
        fits = own.fits if fit == own.fit else 1
        return calibrator.run(
            images,
            coding,
            fit,
            time_steps,
            positions=positions,
            percentile=recipe.site_percentile,
            fits=fits,
            report=report,
        )

    @functools.cache
    def error(coding: Coding, fit: Fit = fit) -> float:
        found = calibrated(coding, fit, few, SEARCH_POSITIONS)
        return fit_extrapolation(coding, found.expected, found.actual)[1]

    best = descend(recipe.candidates, recipe.coding, error) if recipe.candidates else recipe.coding
    if fine and error(best, own.fit) < error(best):
        fit = own.fit
    done, limit = search, total
    found = calibrated(best, fit, images, SAMPLED_POSITIONS)
    report(total, "readout")
    extrapolation, _ = fit_extrapolation(best, found.expected, found.actual)
    return best, extrapolation, found, trade
