"""Recipes: which coding a network is converted to, and how the parameters of its neurons are fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import CODINGS, Coding, Delta
from snnzoo.codings.activations import Clamp
from snnzoo.conversion.calibration import Site
from snnzoo.errors import UsageError, suggestion

FRACTIONS = tuple(1.1 * 0.87**i for i in range(18))  # of the largest activation: 1.1 down to 0.1
NEGLIGIBLE = 1e-5  # an error over the mean square of what a channel sends
BIAS_PASSES = 5
BALANCE_PASSES = 30
GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
THRESHOLDS = ("max", "percentile", "mse", "balanced")
FITTING = ("threshold", "bias_correction", "percentile")  # options of every recipe


@dataclass(frozen=True)
class Recipe:
    """A coding, and how thresholds and biases are fitted to calibration images.

    Args:
        coding: what the network is converted to.
        threshold: "mse" (least squared error of the decoded output), "max", "percentile" (robust normalisation,
            Rueckauer et al. 2017, Front. Neurosci. 11:682), or "balanced" (local threshold balancing, without
            simulation; for codings whose mean decodes).
        bias_correction: whether each channel's mean error is taken out by a bias.
        percentile: of each channel's activations, in (0, 100].
        candidates: other settings of the coding to try; the one whose logits come closest to the ANN's at the last
            step is taken. Without images, `coding` is.

    Raises:
        UsageError: if an argument is out of range.
    """

    coding: Coding
    threshold: str = "mse"
    bias_correction: bool = True
    percentile: float = 99.9
    candidates: tuple[Coding, ...] = ()

    def __post_init__(self) -> None:
        if self.threshold not in THRESHOLDS:
            raise UsageError(f"threshold must be one of {', '.join(THRESHOLDS)}, got {self.threshold!r}")
        if self.threshold == "balanced" and self.coding.readout != "mean":
            raise UsageError(f"balanced thresholds are for codings whose mean decodes, not for {self.coding.name}")
        if not 0 < self.percentile <= 100:
            raise UsageError(f"percentile must be in (0, 100], got {self.percentile}")

    @property
    def site_percentile(self) -> float:
        """The percentile of activations that `fit` looks at, as `Site.percentile`."""
        return self.percentile if self.threshold == "percentile" else 100.0

    def fit(self, site: Site) -> dict[str, Tensor]:
        """Return the parameters of one neuron site."""
        theta = _capped(site, self._threshold(site))
        return fit_bias(site, theta) if self.bias_correction else site.parameters(theta)

    def _threshold(self, site: Site) -> Tensor:
        if self.threshold == "mse":
            return fit_threshold(site)
        if self.threshold == "balanced":
            return balanced_threshold(site)
        return (site.peak if self.threshold == "max" else site.percentile) / site.coding.span(1)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON has it; a setting that is searched for is None."""
        settings: dict[str, Any] = self.coding.settings()
        for name, value in settings.items():
            if any(getattr(other, name) != value for other in self.candidates):
                settings[name] = None
        return {"name": self.coding.name, **settings, **{name: getattr(self, name) for name in FITTING}}


def _capped(site: Site, v_threshold: Tensor) -> Tensor:
    """Not above the activation's cap, where neurons know none but that they send no more than theta a step."""
    if isinstance(site.activation, Clamp) and not site.coding.any_activation:
        return v_threshold.clamp(max=site.activation.maximum)
    return v_threshold


def fit_threshold(site: Site) -> Tensor:
    """Return the fraction `[C]` of each channel's peak that decodes with the least squared error.

    Of fractions whose errors are next to nothing the largest is taken: it leaves room for what comes before the
    network has settled.
    """
    top = site.peak / site.coding.span(1)
    best, best_error = top, torch.full_like(top, torch.inf)
    negligible = NEGLIGIBLE * site.target.square().mean(0)
    for fraction in FRACTIONS:
        theta = _capped(site, fraction * top)
        error = site.residual(theta).square().mean(0)
        better = error < best_error - negligible
        best, best_error = torch.where(better, theta, best), torch.where(better, error, best_error)
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
    """Return the threshold at which clipping costs as much as coarse steps (after Bu et al. 2024, arXiv 2409.03368).

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


def make_recipe(name: str, **options: Any) -> Recipe:
    """Return the recipe of the coding called `name`; of delta without a gamma, one that searches it.

    Args:
        options: the coding's settings, such as `levels=3`, and those of `Recipe`.

    Raises:
        UsageError: for an unknown name, an option that the recipe does not have, or a value out of range.
    """
    if name not in CODINGS:
        raise UsageError(f"unknown recipe {name!r}: {suggestion(name, CODINGS, 'known: ' + ', '.join(CODINGS))}")
    settings = CODINGS[name]().settings()
    known = (*settings, *FITTING)
    for option in options:
        if option not in known:
            raise UsageError(f"recipe {name} has no option {option!r}, only {', '.join(known)}")
    fitting = {option: options.pop(option) for option in FITTING if option in options}
    given = {option: value for option, value in options.items() if value is not None}
    coding = CODINGS[name](**given)
    if not isinstance(coding, Delta) or "gamma" in given:
        return Recipe(coding, **fitting)
    typical = replace(coding, gamma=0.7 if coding.levels == 1 else 0.5)
    return Recipe(typical, **fitting, candidates=tuple(replace(coding, gamma=gamma) for gamma in GAMMAS))
