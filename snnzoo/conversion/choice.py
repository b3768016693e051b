"""Choosing for the user: which of several codings, and how many steps and levels, by the logits they give."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.conversion.ann import capture_ann
from snnzoo.conversion.answers import answers, is_close
from snnzoo.conversion.calibration import calibrate
from snnzoo.conversion.inputs import ann_input, has_frames, network_input
from snnzoo.conversion.neurons import install
from snnzoo.conversion.recipes import Recipe, make_recipe
from snnzoo.errors import UsageError
from snnzoo.functional import reset_net
from snnzoo.graph.network import Ann, SpikingNetwork
from snnzoo.progress import Progress

TIME_STEPS = (1, 2, 4, 8, 16)
LEVELS = (1, 3, 7)
TOLERANCE = 0.5  # percentage points
SEARCH_IMAGES = 96  # on which each of several codings is calibrated
HELD_BACK = 256  # images at most, on which choices of T and K are judged
MOST_EXTRAPOLATION = 1.0  # beyond, noise of the last step outweighs what it foretells


@dataclass(frozen=True)
class Candidate:
    """A delta network that was tried: T, K, its agreement with the ANN in percent, and its cost.

    `events` counts spikes per neuron over all T steps, averaged over the layers.
    """

    time_steps: int
    levels: int
    agreement: float
    events: float


@dataclass(frozen=True)
class Choice:
    """What `choose` chose, and all that it tried. `within` is False if nothing came within the tolerance."""

    chosen: Candidate
    within: bool
    tolerance: float
    held_back: int
    candidates: tuple[Candidate, ...]

    @property
    def recipe(self) -> Recipe:
        return make_recipe("delta", levels=self.chosen.levels)

    @property
    def time_steps(self) -> int:
        return self.chosen.time_steps

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    ann: nn.Module,
    images: Tensor,
    tolerance: float = TOLERANCE,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Choice:
    """The fewest time steps, and for these the smallest K, whose top-1 agrees with the ANN's within `tolerance`.

    Of one output, its sign must agree so, and its error be small (`answers.is_close`).

    Each candidate is calibrated on some of the images, and judged on others. More levels are taken to agree
    no less: where the largest K fails, the smaller ones at that T are not tried.

    Args:
        ann: what `capture_ann` made, or a network for it.
        images: preprocessed, `[N, C, H, W]`, N >= 2; or frames of events, `[N, T, C, H, W]`, which settle T.
        tolerance: percentage points of agreement that may be missing to 100.
        progress: called with (done, total, description).

    Returns:
        the choice; the candidate of the best agreement if none is within the tolerance.

    Raises:
        UsageError: if the tolerance is not in [0, 100), or there are fewer than two images.
    """
    if not 0 <= tolerance < 100:
        raise UsageError(f"tolerance must be percentage points in [0, 100), got {tolerance}")
    if len(images) < 2:
        raise UsageError(
            "choosing time steps and levels takes at least 2 calibration images, a few hundred to be of use: "
            "give more, or choose a recipe yourself"
        )
    fitted = images[: min(SEARCH_IMAGES, len(images) // 2)]
    held_back = images[len(fitted) :][:HELD_BACK]
    candidates: list[Candidate] = []
    own = ann if isinstance(ann, Ann) else capture_ann(ann, images)

    def within(time_steps: int, levels: int) -> bool:
        if progress:
            progress(len(candidates), len(TIME_STEPS) + len(LEVELS) - 1, f"choosing: T={time_steps}, {levels} levels")
        recipe = make_recipe("delta", levels=levels)
        coding = recipe.coding
        parameters, sites = calibrate(
            own.graph, own.tensors(), fitted, coding, recipe.fit, time_steps, batch_size=batch_size, seed=seed
        )
        extrapolation, _ = fit_extrapolation(own, install(own, coding, parameters), fitted, time_steps, batch_size)
        net = install(own, coding, parameters, extrapolation)
        expected, actual = both_logits(own, net, held_back, time_steps, batch_size)
        agreement = 100 * (answers(expected) == answers(actual[-1])).double().mean().item()
        events = time_steps * sum(site.events for site in sites) / len(sites)
        candidates.append(Candidate(time_steps, levels, agreement, events))
        return agreement >= 100 - tolerance and is_close(expected, actual[-1])

    all_steps = (images.shape[1],) if has_frames(images) else TIME_STEPS
    enough = next((steps for steps in all_steps if within(steps, LEVELS[-1])), None)
    if enough is None:
        chosen = max(candidates, key=lambda candidate: (candidate.agreement, candidate.time_steps))
    else:
        widest = candidates[-1]
        fewer = any(within(enough, levels) for levels in LEVELS[:-1])
        chosen = candidates[-1] if fewer else widest
    if progress:
        progress(1, 1, "choosing: done")
    return Choice(chosen, enough is not None, tolerance, len(held_back), tuple(candidates))


def fit_extrapolation(
    ann: Ann, net: SpikingNetwork, images: Tensor, time_steps: int, batch_size: int
) -> tuple[float, float]:
    """Return the `extrapolation` of the readout that brings the logits closest to the ANN's, 0 where there is none.

    Args:
        net: converted, without extrapolation.

    Returns:
        the extrapolation, and the mean squared difference of logits that is left.
    """
    expected, actual = both_logits(ann, net, images, time_steps, batch_size)
    lacking = expected - actual[-1]
    extrapolation = 0.0
    if net.coding is not None and net.coding.extrapolates and len(actual) > 1:
        change = actual[-1] - actual[-2]
        best = (lacking * change).sum() / change.square().sum().clamp(min=1e-30)
        extrapolation = round(best.clamp(0, MOST_EXTRAPOLATION).item(), 3)
        lacking = lacking - extrapolation * change
    return extrapolation, lacking.square().mean().item()


def both_logits(
    ann: Ann, net: SpikingNetwork, images: Tensor, time_steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the ANN's logits `[N, num_classes]`, and the network's after each step, `[T, N, num_classes]`."""
    assert net.coding is not None
    weight = next(ann.parameters())
    expected, actual = [], []
    with torch.inference_mode():
        for x in images.to(weight.device, weight.dtype).split(batch_size):
            reset_net(net)
            expected.append(ann(ann_input(x)))
            actual.append(net(network_input(x, net.coding, time_steps)))
    reset_net(net)
    return torch.cat(expected), torch.cat(actual, 1)
