"""Earliest answers: neurons whose first steps say most, for images that leave early.

Neurons that are fitted to what they have sent after all T steps may send next to nothing at first. So they are fitted
to what they have sent after `settled` steps; what comes later refines that. Of the network, `settled` and the coding's
gamma are those with which images have the ANN's class for good after the fewest steps, on images held back.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.conversion.calibration import Calibrator, Site
from snnzoo.conversion.exits import FEWEST_IMAGES, earliest_steps, readouts
from snnzoo.conversion.inputs import ann_input
from snnzoo.conversion.recipes import Recipe, Trade, calibrated_network, descend
from snnzoo.errors import UsageError
from snnzoo.graph.network import Ann
from snnzoo.progress import Progress

SHARES = (1 / 4, 5 / 16, 3 / 8, 1 / 2, 3 / 4, 1)  # of T, that neurons may settle in
GAMMAS = (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
ROUNDS = 2  # of choosing gamma, then the share
FITTED, POSITIONS = 64, 2048  # images and positions of each channel that a network is fitted on which is judged


@dataclass(frozen=True)
class Earliest(Trade):
    """What was found: the coding, the steps that neurons settle in, and those after which images have their class."""

    settled: int
    mean_steps: float = 0.0
    name: ClassVar[str] = "earliest"
    kept: ClassVar[tuple[str, ...]] = ("settled", "mean_steps")

    def fit(self, site: Site) -> dict[str, Tensor]:
        return self.recipe.fit(replace(site, coding=self.coding, x_seq=site.x_seq[: self.settled]))


def earliest_answers(
    ann: Ann,
    calibrator: Calibrator,
    images: Tensor,
    recipe: Recipe,
    time_steps: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Earliest:
    """Return the coding and the steps to settle in from which images may leave first.

    Args:
        images: `[N, C, H, W]`, or frames `[N, T, C, H, W]`: a network is fitted on some, and judged on others.
        recipe: its coding is where the search starts; a gamma that was given is kept.

    Returns:
        what agrees best if nothing agrees within the recipe's tolerance.

    Raises:
        UsageError: for one time step, or fewer than 65 images.
    """
    if time_steps == 1:
        raise UsageError('minimise="steps" is for more than one time step')
    if len(images) <= FEWEST_IMAGES:
        raise UsageError(f'minimise="steps" is judged on images held back: give at least {FEWEST_IMAGES + 1}')
    fitted = images[: min(FITTED, len(images) - FEWEST_IMAGES)]
    held_back = images[len(fitted) :]
    with torch.inference_mode():
        batches = ann_input(held_back).to(next(ann.parameters()).device).split(batch_size)
        classes = torch.cat([ann(batch) for batch in batches]).argmax(1).cpu()
    done = 0

    @functools.cache
    def judged(coding: Coding, settled: int) -> Earliest:
        nonlocal done
        if progress:
            progress(min(done, 19), 20, f"earliest answers: {coding}, settled in {settled}")
        done += 1
        trial = Earliest(recipe, coding, settled, held_back=len(held_back))
        found = calibrator.run(fitted, coding, trial.fit, time_steps, positions=POSITIONS)
        logits = readouts(calibrated_network(ann, coding, found), held_back, time_steps, batch_size)
        mean_steps, agreement = earliest_steps(logits, classes)
        return replace(trial, mean_steps=mean_steps, agreement=agreement)

    def cost(coding: Coding, settled: int) -> float:
        trial = judged(coding, settled)
        return trial.mean_steps if trial.within else time_steps + 100 - trial.agreement

    codings = _codings(recipe)
    settlings = sorted({max(1, round(share * time_steps)) for share in SHARES})
    found: list[Earliest] = []
    for settled in (settlings[min(1, len(settlings) - 1)], time_steps):  # of deep networks, the last step may be needed
        coding = recipe.coding
        for _ in range(ROUNDS):
            coding = descend(codings, coding, functools.partial(cost, settled=settled))
            settled = descend(settlings, settled, functools.partial(cost, coding))
        found.append(judged(coding, settled))
        if found[-1].within:
            break
    if progress:
        progress(20, 20, "earliest answers: done")
    return min(found, key=lambda trial: cost(trial.coding, trial.settled))


def _codings(recipe: Recipe) -> list[Coding]:
    """Those with other gammas, in order, where the recipe leaves it open."""
    if not recipe.candidates:
        return [recipe.coding]
    return [replace(recipe.coding, gamma=gamma) for gamma in GAMMAS]  # type: ignore[call-arg]
