"""Recipes: which coding a network is converted to, and how the parameters of its neurons are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnzoo.conversion.calibration import Site
from snnzoo.conversion.codings import Coding, DeltaCoding, DifferentialCoding, RateCoding, SignedCoding
from snnzoo.errors import UsageError, suggestion

FRACTIONS = tuple(1.1 * 0.87**i for i in range(18))  # of the largest activation: 1.1 down to 0.1
BIAS_PASSES = 5
BALANCE_PASSES = 30
GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
THRESHOLDS = ("max", "percentile", "mse", "balanced")


@dataclass(frozen=True)
class Recipe:
    """Base class: thresholds of least squared error, then bias correction.

    `default_time_steps` is what a converted network runs for unless told otherwise.
    """

    name: ClassVar[str]

    @property
    def default_time_steps(self) -> int:
        raise NotImplementedError

    @property
    def site_percentile(self) -> float:
        """The percentile of activations that `fit` looks at, as `Site.percentile`."""
        return 100.0

    def codings(self) -> Sequence[Coding]:
        """The coding; or several, of which calibration finds the best."""
        raise NotImplementedError

    def typical_coding(self) -> Coding:
        """The coding where the best is not searched for."""
        return self.codings()[0]

    def fit(self, site: Site) -> dict[str, Tensor]:
        """The parameters of one neuron site."""
        return fit_bias(site, fit_threshold(site))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


def fit_threshold(site: Site) -> Tensor:
    """For each channel, the fraction of the largest activation that decodes with the least squared error: `[C]`."""
    top = site.peak / site.coding.span(1)
    best, best_error = top, torch.full_like(top, torch.inf)
    for fraction in FRACTIONS:
        error = site.residual(fraction * top).square().mean(0)
        best = torch.where(error < best_error, fraction * top, best)
        best_error = torch.minimum(error, best_error)
    return best


def fit_bias(site: Site, v_threshold: Tensor) -> dict[str, Tensor]:
    """Add to each channel's bias what its decoded output lacks on average, as long as that lessens the error.

    Returns:
        the parameters of the neuron.
    """
    bias = best = torch.zeros_like(v_threshold)
    residual = site.residual(v_threshold)
    best_error = residual.square().mean(0)
    for _ in range(BIAS_PASSES):
        bias = bias + residual.mean(0)
        residual = site.residual(v_threshold, bias)
        error = residual.square().mean(0)
        best = torch.where(error < best_error, bias, best)
        best_error = torch.minimum(error, best_error)
    return site.parameters(v_threshold, best)


def balanced_threshold(site: Site) -> Tensor:
    """The threshold at which clipping costs as much as coarse steps (after Bu et al. 2024, arXiv 2409.03368).

    It minimises, from the ANN's activations a alone, E[max(a - theta, 0)^2] + P(0 < a < theta) *
    (theta/T)^2 / 12, the second term being the error of T equal steps; by fixed-point iteration, `[C]`.
    """
    steps = len(site.x_seq)
    activations = site.target
    theta = site.peak
    for _ in range(BALANCE_PASSES):
        above = activations > theta
        inside = ((activations > 0) & ~above).sum(0) / (12 * steps**2)
        # derivative zero: sum over a > theta of (a - theta) = theta * inside
        balanced = (activations * above).sum(0) / (above.sum(0) + inside).clamp(min=1e-30)
        theta = torch.where(balanced > 0, balanced, 0.9 * theta)
    return theta


@dataclass(frozen=True)
class DeltaRecipe(Recipe):
    """Delta coding: graded spikes of up to `levels` levels, refined each step by the ratio `gamma`.

    Args:
        levels: K >= 1; 1 is ternary.
        gamma: in (0, 1]; None searches the one whose logits come closest to the ANN's at the last step.

    Raises:
        UsageError: if an argument is out of range.
    """

    levels: int = 3
    gamma: float | None = None

    name = "delta"

    def __post_init__(self) -> None:
        _check_levels(self.levels)
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise UsageError(f"gamma must be in (0, 1], got {self.gamma}")

    @property
    def default_time_steps(self) -> int:
        return 8 if self.levels == 1 else 4

    def codings(self) -> Sequence[Coding]:
        return [DeltaCoding(self.levels, gamma) for gamma in (GAMMAS if self.gamma is None else (self.gamma,))]

    def typical_coding(self) -> Coding:
        typical = 0.7 if self.levels == 1 else 0.5
        return DeltaCoding(self.levels, typical if self.gamma is None else self.gamma)


@dataclass(frozen=True)
class DifferentialRecipe(Recipe):
    """Differential coding with multi-threshold neurons (Huang et al. 2025, ICML, arXiv 2503.00301).

    Args:
        levels: n >= 1 thresholds, each half of the one before.

    Raises:
        UsageError: if `levels` is out of range.
    """

    levels: int = 8

    name = "differential"

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    @property
    def default_time_steps(self) -> int:
        return 4

    def codings(self) -> Sequence[Coding]:
        return [DifferentialCoding(self.levels)]


@dataclass(frozen=True)
class SignedRecipe(Recipe):
    """Signed IF neurons: ternary spikes whose mean decodes."""

    name = "signed"

    @property
    def default_time_steps(self) -> int:
        return 16

    def codings(self) -> Sequence[Coding]:
        return [SignedCoding()]


@dataclass(frozen=True)
class RateRecipe(Recipe):
    """Rate coding with IF neurons (Rueckauer et al. 2017, Front. Neurosci. 11:682).

    Args:
        threshold: "mse" (least squared error of the decoded output), "max", "percentile" (robust
            normalisation), or "balanced" (local threshold balancing, without simulation).
        bias_correction: whether each channel's mean error is taken out by a bias.
        percentile: of each channel's activations, in (0, 100].

    Raises:
        UsageError: if an argument is out of range.
    """

    threshold: str = "mse"
    bias_correction: bool = True
    percentile: float = 99.9

    name = "rate"

    def __post_init__(self) -> None:
        if self.threshold not in THRESHOLDS:
            raise UsageError(f"threshold must be one of {', '.join(THRESHOLDS)}, got {self.threshold!r}")
        if not 0 < self.percentile <= 100:
            raise UsageError(f"percentile must be in (0, 100], got {self.percentile}")

    @property
    def default_time_steps(self) -> int:
        return 32

    @property
    def site_percentile(self) -> float:
        return self.percentile if self.threshold == "percentile" else 100.0

    def codings(self) -> Sequence[Coding]:
        return [RateCoding()]

    def fit(self, site: Site) -> dict[str, Tensor]:
        choices = {"max": lambda _: site.peak, "percentile": lambda _: site.percentile, "balanced": balanced_threshold}
        theta = choices.get(self.threshold, fit_threshold)(site)
        return fit_bias(site, theta) if self.bias_correction else site.parameters(theta)


def _check_levels(levels: int) -> None:
    if levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")


RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe for recipe in (DeltaRecipe, DifferentialRecipe, SignedRecipe, RateRecipe)
}


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
            raise UsageError(f"recipe {name} has no option {option!r}, only {', '.join(known) or 'none'}")
    return RECIPES[name](**options)
