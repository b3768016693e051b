"""Recipes: from an ANN and calibration images to a coding and the parameters of its neurons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnzoo.conversion import calibration
from snnzoo.conversion.codings import Coding, DeltaCoding, RateCoding, install
from snnzoo.errors import UsageError, suggestion
from snnzoo.models.resnet import SpikingNet

Parameters = dict[str, dict[str, Tensor]]

GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GAMMA_IMAGES = 64  # images on which gamma is searched


@dataclass(frozen=True)
class Recipe:
    """Base class. `default_time_steps` is what a converted network runs for unless told otherwise."""

    name: ClassVar[str]

    @property
    def default_time_steps(self) -> int:
        raise NotImplementedError

    def work(self, images: int) -> int:
        """What `calibrate` will report in total, for this many calibration images."""
        raise NotImplementedError

    def calibrate(
        self, ann: SpikingNet, images: Tensor, time_steps: int, batch_size: int, report: Callable[[int], None]
    ) -> tuple[Coding, Parameters]:
        """Choose the coding, and for each neuron site its per-channel parameters.

        Args:
            ann: ReLU network, single-step, in eval mode.
            images: calibration images, `[N, C, H, W]`.
            time_steps: T that the network is meant for.
            report: called with the number of images done, as they are done.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class RateRecipe(Recipe):
    """Rate coding with IF neurons (Rueckauer et al. 2017, Front. Neurosci. 11:682).

    Args:
        threshold: "max", or "percentile" (robust normalisation).
        percentile: of each channel's activations, in (0, 100].

    Raises:
        UsageError: if an argument is out of range.
    """

    threshold: str = "percentile"
    percentile: float = 99.9

    name = "rate"

    def __post_init__(self) -> None:
        if self.threshold not in ("max", "percentile"):
            raise UsageError(f"threshold must be 'max' or 'percentile', got {self.threshold!r}")
        if not 0 < self.percentile <= 100:
            raise UsageError(f"percentile must be in (0, 100], got {self.percentile}")

    @property
    def default_time_steps(self) -> int:
        return 32

    def work(self, images: int) -> int:
        return images if self.threshold == "max" else 2 * images

    def calibrate(
        self, ann: SpikingNet, images: Tensor, time_steps: int, batch_size: int, report: Callable[[int], None]
    ) -> tuple[Coding, Parameters]:
        thresholds = calibration.channel_maxima(ann, images, batch_size, report)
        if self.threshold == "percentile":
            thresholds = calibration.channel_percentiles(ann, images, thresholds, self.percentile, batch_size, report)
        thresholds = calibration.fill_dead_channels(thresholds)
        return RateCoding(), {site: {"v_threshold": theta} for site, theta in thresholds.items()}


@dataclass(frozen=True)
class DeltaRecipe(Recipe):
    """Delta coding: graded spikes of up to `levels` levels, refined each step by the ratio `gamma`.

    At t = 0 the `levels` levels span each channel's maximum.

    Args:
        levels: K >= 1.
        gamma: in (0, 1]; None searches the one whose logits come closest to the ANN's at the last step.

    Raises:
        UsageError: if an argument is out of range.
    """

    levels: int = 3
    gamma: float | None = None

    name = "delta"

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UsageError(f"levels must be at least 1, got {self.levels}")
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise UsageError(f"gamma must be in (0, 1], got {self.gamma}")

    @property
    def default_time_steps(self) -> int:
        return 8 if self.levels == 1 else 4

    def work(self, images: int) -> int:
        return images + (len(GAMMAS) * min(images, GAMMA_IMAGES) if self.gamma is None else 0)

    def calibrate(
        self, ann: SpikingNet, images: Tensor, time_steps: int, batch_size: int, report: Callable[[int], None]
    ) -> tuple[Coding, Parameters]:
        maxima = calibration.fill_dead_channels(calibration.channel_maxima(ann, images, batch_size, report))
        offsets = calibration.resting_inputs(ann)
        parameters = {
            site: {"v_threshold": peak / self.levels, "offset": offsets[site]} for site, peak in maxima.items()
        }
        if self.gamma is not None:
            return DeltaCoding(self.levels, self.gamma), parameters
        codings = [DeltaCoding(self.levels, gamma) for gamma in GAMMAS]
        return closest_coding(ann, codings, parameters, images[:GAMMA_IMAGES], time_steps, report), parameters


def closest_coding(
    ann: SpikingNet,
    codings: Sequence[Coding],
    parameters: Parameters,
    images: Tensor,
    time_steps: int,
    report: Callable[[int], None],
) -> Coding:
    """Of several codings, the one whose logits after `time_steps` are closest to the ANN's (squared error)."""
    parameter = next(ann.parameters())
    images = images.to(parameter.device, parameter.dtype)
    errors = []
    with torch.inference_mode():
        expected = ann(images)
        for coding in codings:
            snn = copy.deepcopy(ann)
            install(snn, coding, parameters)
            errors.append((snn(images.expand(time_steps, *images.shape))[-1] - expected).square().mean().item())
            report(len(images))
    return codings[errors.index(min(errors))]


RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (DeltaRecipe, RateRecipe)}


def make_recipe(name: str, **options: Any) -> Recipe:
    """The recipe called `name` with these options.

    Raises:
        UsageError: for an unknown name, or an option that the recipe does not have.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}: {suggestion(name, RECIPES, 'known: ' + ', '.join(RECIPES))}")
    known = RECIPES[name].__dataclass_fields__
    for option in options:
        if option not in known:
            raise UsageError(f"recipe {name} has no option {option!r}, only {', '.join(known)}")
    return RECIPES[name](**options)
