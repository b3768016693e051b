"""What early exit gives and takes, counted beside the rows of fixed time steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.early_exit import NEVER, ExitRule
from snnzoo.evaluation.activity import Activity
from snnzoo.evaluation.costs import facts, snn_energy
from snnzoo.evaluation.results import ExitResult

CURVE = (0.0, *(1 - 0.75**k for k in range(1, 36)), NEVER)  # thresholds, the closer the surer


@dataclass
class ExitCounts:
    """Whole numbers of images. Parts counted apart add up exactly.

    Shapes: `hits [3]`: top-1, top-5, agreement; `steps [T]`: images that left after each step; `curve
    [len(CURVE), 2]`: steps and top-1 with each threshold, the same at all steps.
    """

    hits: Tensor
    steps: Tensor
    curve: Tensor
    activity: Activity = field(default_factory=Activity)
    speed: float = 0.0  # images per second, of the first batch; 0 where it was not measured

    @classmethod
    def empty(cls, time_steps: int) -> ExitCounts:
        hits, steps, curve = (torch.zeros(shape, dtype=torch.long) for shape in ((3,), (time_steps,), (len(CURVE), 2)))
        return cls(hits, steps, curve)

    def count(self, hits: Tensor, steps: Tensor) -> None:
        """Count one batch: what its answers hit, `[3]`, and after how many steps each image left, `[N]`."""
        self.hits += hits
        self.steps += torch.bincount(steps.cpu() - 1, minlength=len(self.steps))

    def count_curve(self, rule: ExitRule, labels: Tensor, logits: Tensor) -> None:
        """Count one batch for every threshold: `labels [N]`, all logits `[T, N, classes]`."""
        for place, threshold in enumerate(CURVE):
            same = replace(rule, thresholds=(threshold,) * len(rule.thresholds))
            answers, steps = same.apply(logits)
            self.curve[place] += torch.stack([steps.sum(), (answers.argmax(1) == labels).sum()]).cpu()

    def plus(self, other: ExitCounts) -> ExitCounts:
        """Return what both counted, on different images."""
        activity = copy.deepcopy(self.activity)
        activity.add(other.activity)
        counts = (self.hits + other.hits, self.steps + other.steps, self.curve + other.curve)
        return ExitCounts(*counts, activity, self.speed or other.speed)

    def result(self, coding: Coding | None, with_ann: bool) -> ExitResult:
        """Return the counts as rates; arguments as of `Tally.evaluation`."""
        time_steps, images = len(self.steps), int(self.steps.sum())
        top1, top5, agreement = (self.hits.double() / images).tolist()
        mean_steps = sum(t * count for t, count in enumerate(self.steps.tolist(), start=1)) / images
        curve = (self.curve.double() / images).tolist()
        return ExitResult(
            mean_steps,
            top1,
            top5,
            agreement if with_ann else None,
            self.speed,
            self.activity.events_per_neuron_step(time_steps) * time_steps / mean_steps,
            self.activity.synaptic_operations(time_steps),
            snn_energy(self.activity, facts(coding, time_steps)),
            self.steps.tolist(),
            [(steps, top1) for steps, top1 in curve],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        tensors = {name: getattr(self, name).tolist() for name in ("hits", "steps", "curve")}
        return {**tensors, "activity": self.activity.to_dict(), "speed": self.speed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExitCounts:
        """Rebuild what `to_dict` gave."""
        tensors = {name: torch.tensor(values[name]) for name in ("hits", "steps", "curve")}
        return cls(**tensors, activity=Activity(**values["activity"]), speed=values["speed"])
