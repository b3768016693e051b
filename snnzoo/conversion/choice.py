"""Choosing for the user: which of several codings, and how many steps and levels, by the logits they give."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.conversion.ann import capture_ann
from snnzoo.conversion.answers import answers, is_close
from snnzoo.conversion.calibration import Calibrator
from snnzoo.conversion.inputs import ann_input, has_frames, network_input
from snnzoo.conversion.operations import Operations
from snnzoo.conversion.recipes import Recipe, calibrated_network, make_recipe
from snnzoo.distributed import ALONE, Rank
from snnzoo.errors import UsageError
from snnzoo.graph.network import Ann, SpikingNetwork
from snnzoo.inference import prepare_for_inference
from snnzoo.progress import Progress

TIME_STEPS = (1, 2, 4, 8, 16)
LEVELS = (1, 3, 7)
TOLERANCE = 0.5  # percentage points
SEARCH_IMAGES = 64  # on which each candidate is calibrated
SEARCH_POSITIONS = 2048  # of each channel, for that
HELD_BACK = 256  # images at most, on which choices of T and K are judged
JUDGED_AT_A_TIME = 32  # of them, since many a candidate fails on the first


@dataclass(frozen=True)
class Candidate:
    """A delta network that was tried: T, K, its agreement with the ANN in percent (until it failed), and its cost.

    `events` counts spikes per neuron over all T steps, averaged over the layers; `energy` is that of the arithmetic,
    over the ANN's.
    """

    time_steps: int
    levels: int
    agreement: float
    events: float
    energy: float


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
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    rank: Rank = ALONE,
) -> Choice:
    """The fewest time steps, and for these the smallest K, whose top-1 agrees with the ANN's within `tolerance`.

    Of one output, its sign must agree so, and its error be small (`answers.is_close`).

    Each candidate is calibrated on some of the images, and judged on others, as long as it can still be within the
    tolerance. More levels are taken to agree no less: where the largest K fails, the smaller ones at that T are not
    tried.

    Args:
        ann: what `capture_ann` made, or a network for it.
        images: preprocessed, `[N, C, H, W]`, N >= 2; or frames of events, `[N, T, C, H, W]`, which settle T.
        tolerance: percentage points of agreement that may be missing to 100.
        progress: called with (done, total, description).
        rank: of several processes, this one (see `snnzoo.distributed`); all make the same choice.

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
    calibrator = Calibrator(own, make_recipe("delta").coding, batch_size=batch_size, seed=seed, rank=rank)
    operations = Operations.of(own)
    judge = Judge(own, held_back, tolerance, batch_size)

    def within(time_steps: int, levels: int) -> bool:
        if progress:
            progress(len(candidates), len(TIME_STEPS) + len(LEVELS) - 1, f"choosing: T={time_steps}, {levels} levels")
        recipe = make_recipe("delta", levels=levels)
        coding = recipe.coding
        found = calibrator.run(fitted, coding, recipe.fit, time_steps, positions=SEARCH_POSITIONS)
        agreement, close = judge.agreement(calibrated_network(own, coding, found), time_steps)
        events = time_steps * sum(site.events for site in found.layers) / len(found.layers)
        energy = operations.energy(found.layers, time_steps, coding)
        candidates.append(Candidate(time_steps, levels, agreement, events, energy))
        return agreement >= 100 - tolerance and close

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


class Judge:
    """Counts on how many of some images a network names the class that the ANN names."""

    def __init__(self, ann: Ann, images: Tensor, tolerance: float, batch_size: int) -> None:
        weight = next(ann.parameters())
        self.batches = images.to(weight.device, weight.dtype).split(min(batch_size, JUDGED_AT_A_TIME))
        self.most_missing = tolerance / 100 * len(images)
        with torch.inference_mode():
            self.expected = [ann(ann_input(batch)) for batch in self.batches]

    def agreement(self, net: SpikingNetwork, time_steps: int) -> tuple[float, bool]:
        """In percent, of the images until it is certain to be beyond the tolerance; and whether outputs are close."""
        fast = prepare_for_inference(net)
        seen = missing = 0
        outputs: list[Tensor] = []
        for batch, expected in zip(self.batches, self.expected, strict=True):
            outputs.append(fast.final(network_input(batch, net.coding, time_steps)))
            missing += int((answers(outputs[-1]) != answers(expected)).sum())
            seen += len(batch)
            if missing > self.most_missing:
                break
        close = is_close(torch.cat(self.expected[: len(outputs)]), torch.cat(outputs))
        return 100 * (seen - missing) / seen, close
