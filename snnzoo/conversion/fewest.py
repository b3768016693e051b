"""Fewest events: thresholds, gamma and a dead zone that trade exactness for silence, at one price for the network.

An error costs what it changes the logits by: its square times the squared slope of the logits, over their spread. An
event costs the synaptic operations that it sets off, over those of the ANN, times one multiplier. Each channel takes
the threshold that costs least; the multiplier is the largest whose network still agrees with the ANN on images held
back (rate against distortion, as in H. Everett 1963, Operations Research 11:399, "Generalized Lagrange multiplier
method").

Errors grow on their way, so that an operation saved costs a network far more than its neurons reckon one by one: what
it does cost is measured, and at that price the network takes the gamma, the dead zone and the delay of all neurons.

A neuron that sends before what reaches it has settled has to take much of it back. So neurons begin the later, the
deeper they are: with thresholds larger by so many steps of gamma, nothing is sent before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from snnzoo.codings import Coding, Delta
from snnzoo.conversion.calibration import Calibration, Calibrator, Site
from snnzoo.conversion.choice import Judge
from snnzoo.conversion.inputs import ann_input
from snnzoo.conversion.operations import Operations
from snnzoo.conversion.recipes import Recipe, Trade, calibrated_network, capped, descend, fit_extrapolation
from snnzoo.errors import UsageError
from snnzoo.graph.graph import Graph
from snnzoo.graph.network import Ann
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import run_node
from snnzoo.progress import Progress

MULTIPLIERS = tuple(2.0 ** -(k / 2) for k in range(28, -3, -1))
FIRST_MULTIPLIER = 2.0**-8
GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
DEAD_ZONES = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
USUAL_DEAD_ZONE = 0.7
DELAYS = (0, 2, 4, 6, 8, 10, 12, 16, 20, 24)  # in steps, as far as there are twice as many
ROUNDS = 2  # of choosing the coding, then the multiplier
FRACTIONS = tuple(8 * 0.85**i for i in range(24))  # of the largest activation: from 8, which skips steps, down to 0.19
FEW_IMAGES, FEW_POSITIONS = 32, 512  # on which codings are compared
MORE_IMAGES, MORE_POSITIONS = 64, 2048  # on which a network is fitted that is judged
SLOPE_IMAGES, DIRECTIONS = 32, 4  # for the slopes of the logits


@dataclass(frozen=True)
class Settings:
    """What all neurons have in common: the coding, and by how many steps the deepest ones begin later."""

    coding: Coding
    delay: int = 0

    def later(self, depth: float) -> float:
        """Return what a threshold is multiplied with at a depth from 0 to 1."""
        return self.coding.gamma ** (-self.delay * depth) if isinstance(self.coding, Delta) else 1.0


@dataclass(frozen=True)
class Prices:
    """What errors and events cost in one network.

    Args:
        errors: of a site's path, what a mean squared error of 1 in each channel changes the logits by: squared, over
            their spread, `[C]`.
        events: of a site's path, the share of the ANN's operations that is set off if each neuron of a channel sends
            one event.
        spread: mean squared deviation of an image's logits, summed over classes.
    """

    errors: Mapping[str, Tensor]
    events: Mapping[str, float]
    spread: float

    def threshold(self, site: Site, multiplier: float, later: float = 1.0) -> Tensor:
        """Return the threshold of each channel that costs least, `[C]`; of those tried, times `later`."""
        tried = later * torch.tensor(FRACTIONS, dtype=site.peak.dtype).to(site.peak.device).unsqueeze(1)
        thresholds = capped(site, tried * site.peak / site.coding.span(1))
        errors, events = site.errors_and_events(thresholds)
        costs = self.errors[site.name] * errors + multiplier * self.events[site.name] * events
        return thresholds.gather(0, costs.argmin(0, keepdim=True))[0]


@dataclass(frozen=True)
class Fewest(Trade):
    """What was found: the coding, the delay, the multiplier, and how the network made of them agrees with its ANN.

    `depths` are those of sites, by their paths (`depths_of`).
    """

    prices: Prices
    depths: Mapping[str, float]
    multiplier: float = FIRST_MULTIPLIER
    delay: int = 0
    name: ClassVar[str] = "fewest"
    kept: ClassVar[tuple[str, ...]] = ("multiplier", "delay")

    @property
    def settings(self) -> Settings:
        return Settings(self.coding, self.delay)

    def with_settings(self, settings: Settings) -> Fewest:
        """Return the same trade by other settings."""
        return replace(self, coding=settings.coding, delay=settings.delay)

    def fit(self, site: Site) -> dict[str, Tensor]:
        later = self.settings.later(self.depths[site.name])
        return self.recipe.with_threshold(site, self.prices.threshold(site, self.multiplier, later))


def fewest_events(
    ann: Ann,
    calibrator: Calibrator,
    images: Tensor,
    recipe: Recipe,
    time_steps: int,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fewest:
    """Return the coding, the delay and the multiplier of the fewest operations within the recipe's tolerance.

    Args:
        images: `[N, C, H, W]`, N >= 2, or frames `[N, T, C, H, W]`: a network is fitted on some, and judged on others.
        recipe: its coding is where the search starts; a gamma or a dead zone that was given is kept.

    Returns:
        what agrees best, of the smallest multiplier, if nothing is within the tolerance.

    Raises:
        UsageError: for fewer than two images.
    """
    if len(images) < 2:
        raise UsageError('minimise="events" is judged on images held back: give at least 2, a few hundred to be of use')
    operations = Operations.of(ann)
    fitted = images[: min(MORE_IMAGES, len(images) // 2)]
    judge = Judge(ann, images[len(fitted) :], recipe.tolerance, batch_size)
    prices = _prices(ann, calibrator, ann_input(fitted[:SLOPE_IMAGES]), operations, seed)
    best = Fewest(recipe, _start(recipe), prices, depths_of(ann.graph), held_back=len(images) - len(fitted))
    done, price = 0, 0.0

    def calibrated(trade: Fewest, images: Tensor, positions: int) -> Calibration:
        nonlocal done
        if progress:
            progress(min(done, 49), 50, f"fewest events: {trade.coding}")
        done += 1
        return calibrator.run(images, trade.coding, trade.fit, time_steps, positions=positions)

    def error_and_operations(trade: Fewest) -> tuple[float, float]:
        found = calibrated(trade, fitted[:FEW_IMAGES], FEW_POSITIONS)
        lacking = fit_extrapolation(trade.coding, found.expected, found.actual)[1]
        error = lacking * found.expected.shape[1] / prices.spread
        return error, operations.synaptic(found.layers, time_steps) / operations.dense

    def cost(settings: Settings) -> float:
        error, share = error_and_operations(best.with_settings(settings))
        return error + price * share

    def judged(trade: Fewest) -> Fewest:
        found = calibrated(trade, fitted, MORE_POSITIONS)
        agreement, close = judge.agreement(calibrated_network(ann, trade.coding, found), time_steps)
        return replace(trade, agreement=agreement if close else 0.0)

    for _ in range(ROUNDS):
        price = _price_of_operations(best, error_and_operations)
        for candidates in _lines(recipe, time_steps):
            best = best.with_settings(descend(candidates(best.settings), best.settings, cost))
        best = _largest_within(best, judged)
    if progress:
        progress(50, 50, "fewest events: done")
    return best


def _price_of_operations(trade: Fewest, error_and_operations: Callable[[Fewest], tuple[float, float]]) -> float:
    """By how much a network's error grows for what a larger multiplier saves of all operations; at least that."""
    around = (replace(trade, multiplier=factor * trade.multiplier) for factor in (0.5, 2.0))
    (error, operations), (more_error, fewer_operations) = map(error_and_operations, around)
    saved = operations - fewer_operations
    return max(trade.multiplier, (more_error - error) / saved) if saved > 0 else trade.multiplier


def _largest_within(trade: Fewest, judged: Callable[[Fewest], Fewest]) -> Fewest:
    """The trade at the largest multiplier within the tolerance, by bisection: a larger one is taken to agree less."""
    low, high = 0, len(MULTIPLIERS)  # the last that is within, the first that is not
    found: Fewest | None = None
    place = MULTIPLIERS.index(trade.multiplier)
    while high - low > 1 or found is None:
        tried = judged(replace(trade, multiplier=MULTIPLIERS[place]))
        if tried.within:
            low, found = place, tried
        elif place == 0:
            return tried
        else:
            high = place
        place = low if high - low <= 1 else _next(low, high, found is not None)
    return found


def _next(low: int, high: int, within: bool) -> int:
    """Near the last place within, where there is one: multipliers of two rounds differ little."""
    return min(low + 4, high - 1) if within and high == len(MULTIPLIERS) else (low + high) // 2


def _start(recipe: Recipe) -> Coding:
    coding = recipe.coding
    keeps = not isinstance(coding, Delta) or coding.dead_zone > 0.5
    return coding if keeps else replace(coding, dead_zone=USUAL_DEAD_ZONE)  # type: ignore[call-arg]


def _lines(recipe: Recipe, time_steps: int) -> Sequence[Callable[[Settings], list[Settings]]]:
    """Settings that are free: for each, the candidates through those given."""
    if not isinstance(recipe.coding, Delta):
        return ()

    def of_coding(name: str, values: Sequence[float]) -> Callable[[Settings], list[Settings]]:
        return lambda given: [replace(given, coding=replace(given.coding, **{name: value})) for value in values]

    delays = [delay for delay in DELAYS if 2 * delay <= time_steps]
    lines = [lambda given: [replace(given, delay=delay) for delay in delays]] if len(delays) > 1 else []
    if recipe.candidates:
        lines.append(of_coding("gamma", GAMMAS))
    if recipe.coding.dead_zone == 0.5:
        lines.append(of_coding("dead_zone", DEAD_ZONES))
    return lines


def depths_of(graph: Graph) -> dict[str, float]:
    """Return how deep each neuron is, by its path: those before it on the longest way, from 0 to 1 for the deepest."""
    before: dict[str, int] = {INPUT: 0}
    sites = {node.name for node in graph.neurons}
    for node in graph:
        before[node.name] = max((before[name] for name in node.inputs), default=0) + (node.name in sites)
    deepest = max(before.values())
    return {node.path: (before[node.name] - 1) / max(1, deepest - 1) for node in graph.neurons}


def _prices(ann: Ann, calibrator: Calibrator, images: Tensor, operations: Operations, seed: int) -> Prices:
    slopes, spread = squared_slopes(ann, images, seed)
    spread = max(spread, 1e-30)
    events = {}
    for path, channels in slopes.items():
        events[path] = operations.sites[path] / (operations.dense * len(channels))
    # calibration sees the outputs of a folded network, which may lack a gain
    errors = {path: slope * calibrator.gains[path].to(slope).square() / spread for path, slope in slopes.items()}
    return Prices(errors, events, spread)


def squared_slopes(ann: Ann, images: Tensor, seed: int = 0) -> tuple[dict[str, Tensor], float]:
    """Return how much the ANN's logits change with its activations.

    Differences of logits count: what all of them have in common does not (of one output, it does).

    Args:
        images: `[N, C, H, W]`.
        seed: of the random directions in the space of logits that are followed back.

    Returns:
        for each site's path, the squared slope summed over logits and over a channel's positions, mean over images,
        `[C]`; and the mean over images of the logits' squared deviation, summed over them.
    """
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, Tensor] = {}
    spread = 0.0
    for batch in images.split(8):
        sites, logits = _differentiable(ann, batch.to(next(ann.parameters()).device))
        spread += float(_centred(logits.detach()).square().sum())
        for _ in range(DIRECTIONS):
            direction = _centred(torch.randn(logits.shape, generator=generator)).to(logits)
            grads = torch.autograd.grad(
                (logits * direction).sum(), list(sites.values()), retain_graph=True, materialize_grads=True
            )
            for path, grad in zip(sites, grads, strict=True):
                channels = grad.square().movedim(1, 0).flatten(1).sum(1)
                totals[path] = totals.get(path, torch.zeros_like(channels)) + channels
    return {path: total / (len(images) * DIRECTIONS) for path, total in totals.items()}, spread / len(images)


def _differentiable(ann: Ann, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The activations that neurons stand for, and the logits that depend on them."""
    tensors = {key: value.detach() for key, value in ann.tensors().items()}
    names = {node.name for node in ann.graph.neurons}
    values, sites = {INPUT: images}, {}
    with torch.enable_grad():
        for node in ann.graph:
            value = run_node(node, tensors, [values[name] for name in node.inputs])
            if node.name in names:
                value = value if value.requires_grad else value.detach().requires_grad_()
                sites[node.path] = value
            values[node.name] = value
    return sites, values[ann.graph.output]


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True) if logits.shape[1] > 1 else logits
