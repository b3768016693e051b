"""Recipes: which coding a network is converted to, and how the parameters of its neurons are fitted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from snnzoo.codings import CODINGS, Coding, Delta
from snnzoo.codings.activations import Clamp
from snnzoo.conversion.calibration import Calibration, Site
from snnzoo.conversion.neurons import install
from snnzoo.errors import UsageError, suggestion
from snnzoo.graph.network import Ann, SpikingNetwork

# Of the largest activation, from 235 down to 0.09: a neuron deep in a network has to follow what small errors before it
# have grown to, which with a fine coding may be far more than it sends itself.
FRACTIONS = tuple(1.2 * 0.86**i for i in (-35, -26, -17, -11, -6, -3, *range(18)))
COARSE_TO_FINE = ((-5, 0, 5, 10, -10), (-2, 2), (-1, 1))  # how far from the best place until then to look
NEGLIGIBLE = 1e-7  # an error over the mean square of what a channel sends
BIAS_PASSES = 3
LEAST_ANSWER = 0.25  # that outputs are taken to follow a change of the bias by
BALANCE_PASSES = 30
MOST_EXTRAPOLATION = 1.0  # beyond, noise of the last step outweighs what it foretells
GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
OWN_GAMMAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
FINE_LEVELS = 31  # from which on neurons gain by a gamma of their own
Setting = TypeVar("Setting", bound=Hashable)
THRESHOLDS = ("max", "percentile", "mse", "balanced")
MINIMISED = ("events", "steps")
FITTING = ("threshold", "bias_correction", "percentile")  # options of every recipe
TRADING = ("minimise", "tolerance")  # too, but kept only where something is minimised


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
        minimise: "events" takes the thresholds (and of delta the `gamma` and the `dead_zone`, where they are not given)
            of the fewest synaptic operations whose agreement with the ANN is within `tolerance`
            (`snnzoo.conversion.fewest`); "steps" those (of delta, and its `gamma`) with which images have
            their class after the fewest steps (`snnzoo.conversion.earliest`); None the most exact ones.
        tolerance: percentage points of agreement that may then be missing to 100, on images held back from calibration.
        own_gammas: of delta, whether each neuron takes the gamma with which its decoded output has the least error.

    Raises:
        UsageError: if an argument is out of range.
    """

    coding: Coding
    threshold: str = "mse"
    bias_correction: bool = True
    percentile: float = 99.9
    candidates: tuple[Coding, ...] = ()
    minimise: str | None = None
    tolerance: float = 0.5
    own_gammas: bool = False

    def __post_init__(self) -> None:
        if self.threshold not in THRESHOLDS:
            raise UsageError(f"threshold must be one of {', '.join(THRESHOLDS)}, got {self.threshold!r}")
        if self.threshold == "balanced" and self.coding.readout != "mean":
            raise UsageError(f"balanced thresholds are for codings whose mean decodes, not for {self.coding.name}")
        if not 0 < self.percentile <= 100:
            raise UsageError(f"percentile must be in (0, 100], got {self.percentile}")
        if self.minimise not in (None, *MINIMISED):
            raise UsageError(f"minimise must be {' or '.join(MINIMISED)}, got {self.minimise!r}")
        if self.minimise == "events" and self.threshold != "mse":
            raise UsageError(f"minimise chooses the thresholds itself: leave threshold={self.threshold!r} out")
        if self.own_gammas and (self.minimise or not isinstance(self.coding, Delta)):
            raise UsageError("own_gammas are for delta coding, where nothing is minimised")
        if not 0 <= self.tolerance < 100:
            raise UsageError(f"tolerance must be percentage points in [0, 100), got {self.tolerance}")

    @property
    def fits(self) -> int:
        """How many neurons `fit` fits for one site."""
        return len(OWN_GAMMAS) if self.own_gammas else 1

    @property
    def site_percentile(self) -> float:
        """The percentile of activations that `fit` looks at, as `Site.percentile`."""
        return self.percentile if self.threshold == "percentile" else 100.0

    def fit(self, site: Site) -> dict[str, Tensor]:
        """Return the parameters of one neuron site."""
        if not self.own_gammas:
            return self.with_threshold(site, self._threshold(site))
        tried = [replace(site, coding=replace(self.coding, gamma=gamma)) for gamma in OWN_GAMMAS]  # type: ignore[call-arg]
        fits = [self.with_threshold(one, self._threshold(one)) for one in tried]
        errors = torch.stack([one.measure(found)[1] for one, found in zip(tried, fits, strict=True)])
        best = int(errors.argmin())
        site.coding = tried[best].coding
        return fits[best]

    def with_threshold(self, site: Site, v_threshold: Tensor) -> dict[str, Tensor]:
        """Return the parameters of one neuron site whose threshold `[C]` is chosen."""
        theta = capped(site, v_threshold)
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
        if self.own_gammas:
            settings["gamma"] = None
        options = (*FITTING, *TRADING) if self.minimise else FITTING
        return {"name": self.coding.name, **settings, **{name: getattr(self, name) for name in options}}


@dataclass(frozen=True)
class Trade:
    """What was found that minimises something, `conversion.fewest` or `.earliest`: a coding, and how to fit neurons.

    `agreement` with the ANN is in percent, of `held_back` images; `within` whether that is in the recipe's tolerance.
    """

    recipe: Recipe
    coding: Coding
    agreement: float = field(default=0.0, kw_only=True)
    held_back: int = field(default=0, kw_only=True)
    name: ClassVar[str]  # where a file keeps it
    kept: ClassVar[tuple[str, ...]]  # what it keeps beside what all trades have

    @property
    def within(self) -> bool:
        """Whether the agreement is within the recipe's tolerance."""
        return self.agreement >= 100 - self.recipe.tolerance

    def fit(self, site: Site) -> dict[str, Tensor]:
        """Return the parameters of one neuron site."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the file keeps them."""
        return {name: getattr(self, name) for name in (*self.kept, "agreement", "held_back", "within")}


def capped(site: Site, v_threshold: Tensor) -> Tensor:
    """Not above the activation's cap, where neurons know none but that they send no more than theta a step."""
    if isinstance(site.activation, Clamp) and not site.coding.any_activation:
        return v_threshold.clamp(max=site.activation.maximum)
    return v_threshold


def fit_threshold(site: Site) -> Tensor:
    """Return the fraction `[C]` of each channel's peak that decodes with the least squared error, coarse to fine.

    Of fractions whose errors are next to the same the one tried first is kept.
    """
    top = site.peak / site.coding.span(1)
    fractions = torch.tensor(FRACTIONS, dtype=top.dtype).to(top.device)
    negligible = NEGLIGIBLE * site.target.square().mean(0)
    best = torch.full_like(top, len(FRACTIONS) // 2, dtype=torch.long)  # places in FRACTIONS
    best_error = torch.full_like(top, torch.inf)
    for apart in COARSE_TO_FINE:
        around = torch.tensor(apart).to(top.device).unsqueeze(1)
        places = (best + around).clamp(0, len(FRACTIONS) - 1)
        errors = site.errors(capped(site, top * fractions[places]))
        for place, error in zip(places, errors, strict=True):
            better = error < best_error - negligible
            best, best_error = torch.where(better, place, best), torch.where(better, error, best_error)
    return capped(site, top * fractions[best])


def fit_bias(site: Site, v_threshold: Tensor) -> dict[str, Tensor]:
    """Add to each channel's bias what its decoded output lacks on average, as long as that lessens the error.

    Returns:
        the parameters of the neuron.
    """
    bias = best = torch.zeros_like(v_threshold)
    residual = site.residual(v_threshold)
    lacking, best_error = residual.mean(0), residual.square().mean(0)
    answer = torch.ones_like(bias)  # how much of a change of the bias its outputs follow
    for _ in range(BIAS_PASSES):
        change = lacking / answer
        bias = bias + change
        residual = site.residual(v_threshold, bias)
        still, error = residual.mean(0), residual.square().mean(0)
        answer = ((lacking - still) / change).nan_to_num(1.0).clamp(LEAST_ANSWER, 1.0)
        lacking = still
        best = torch.where(error < best_error, bias, best)
        best_error = torch.minimum(error, best_error)
    return site.parameters(v_threshold, best)


def fit_extrapolation(coding: Coding, expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Return the `extrapolation` of the readout that brings the logits closest to the ANN's, 0 where there is none.

    Args:
        expected: logits of the ANN, `[N, classes]`.
        actual: those of the network after each step, without extrapolation, `[T, N, classes]`.

    Returns:
        the extrapolation, and the mean squared difference of logits that is left.
    """
    lacking = expected - actual[-1]
    extrapolation = 0.0
    if coding.extrapolates and len(actual) > 1:
        change = actual[-1] - actual[-2]
        best = (lacking * change).sum() / change.square().sum().clamp(min=1e-30)
        extrapolation = round(best.clamp(0, MOST_EXTRAPOLATION).item(), 3)
        lacking = lacking - extrapolation * change
    return extrapolation, lacking.square().mean().item()


def calibrated_network(ann: Ann, coding: Coding, found: Calibration) -> SpikingNetwork:
    """Return the network of what calibration found, with the readout's extrapolation fitted to the same images."""
    extrapolation, _ = fit_extrapolation(coding, found.expected, found.actual)
    return install(ann, coding, found.parameters, extrapolation, found.gammas)


def descend(candidates: Sequence[Setting], start: Setting, error: Callable[[Setting], float]) -> Setting:
    """Return the candidate with neighbours of no less error that is reached from `start`, always going where it falls.

    Along one setting of a coding, or another number, the error has one minimum, so that few need to be tried.
    """
    error = functools.cache(error)
    place = candidates.index(start) if start in candidates else len(candidates) // 2
    for step in (-1, 1):
        while 0 <= place + step < len(candidates) and error(candidates[place + step]) < error(candidates[place]):
            place += step
    return candidates[place]


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
    known = (*settings, *FITTING, *TRADING)
    for option in options:
        if option not in known:
            raise UsageError(f"recipe {name} has no option {option!r}, only {', '.join(known)}")
    fitting = {option: options.pop(option) for option in (*FITTING, *TRADING) if option in options}
    if "tolerance" in fitting and not fitting.get("minimise"):
        raise UsageError('tolerance is for minimise="events" or "steps", and for recipe="auto": leave it out')
    given = {option: value for option, value in options.items() if value is not None}
    coding = CODINGS[name](**given)
    if not isinstance(coding, Delta) or "gamma" in given:
        return Recipe(coding, **fitting)
    typical = replace(coding, gamma=0.7 if coding.levels == 1 else 0.5)
    return Recipe(typical, **fitting, candidates=tuple(replace(coding, gamma=gamma) for gamma in GAMMAS))
