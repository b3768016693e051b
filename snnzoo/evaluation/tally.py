"""What has been counted so far. Parts counted apart, by other processes or earlier, add up exactly."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.conversion.answers import answers
from snnzoo.early_exit import ExitRule
from snnzoo.errors import UsageError
from snnzoo.evaluation.activity import Activity
from snnzoo.evaluation.costs import ann_energy, energy_ratios, energy_results, facts, snn_energy
from snnzoo.evaluation.exits import ExitCounts
from snnzoo.evaluation.results import Evaluation, LayerResult, TimeStepResult


@dataclass
class Tally:
    """Whole numbers of images, and what was measured on the first batch alone.

    Shapes: `ann_hits [2]`: top-1 and top-5; `hits [len(time_steps), 3]`: top-1, top-5, agreement;
    `confusion` counts by true class and prediction at the last T.
    """

    time_steps: list[int]
    classes: int
    ann_hits: Tensor
    hits: Tensor
    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)
    activity: Activity = field(default_factory=Activity)
    speeds: list[float] = field(default_factory=list)  # images per second at each T
    layer_errors: dict[str, list[float]] = field(default_factory=dict)  # of each site, at each T
    left_out: list[str] = field(default_factory=list)  # images that cannot be read, and why
    exit: ExitCounts | None = None  # where a rule of early exit was given

    @classmethod
    def empty(cls, time_steps: Sequence[int], classes: int, rule: ExitRule | None = None) -> Tally:
        hits = torch.zeros(len(time_steps), 3, dtype=torch.long)
        exit = ExitCounts.empty(rule.time_steps) if rule else None
        return cls(list(time_steps), classes, torch.zeros(2, dtype=torch.long), hits, exit=exit)

    @property
    def images(self) -> int:
        return self.confusion.total()

    def count(self, labels: Tensor, expected: Tensor | None, logits: Tensor) -> None:
        """Count one batch: `labels [N]`, the ANN's logits `[N, classes]` or None, the network's `[T, N, classes]`.

        Raises:
            UsageError: if a label is none of the network's classes.
        """
        if int(labels.max()) >= max(self.classes, 2):  # one output tells two classes apart
            raise UsageError(f"the data has a label {int(labels.max())}, but the network has {self.classes} classes")
        if expected is not None:
            self.ann_hits += _hits(expected, labels)
        for row, t in enumerate(self.time_steps):
            self.hits[row] += _all_hits(logits[t - 1], labels, expected)
        predictions = answers(logits[self.time_steps[-1] - 1])
        self.confusion.update(zip(labels.tolist(), predictions.tolist(), strict=True))

    def count_exits(
        self, rule: ExitRule, labels: Tensor, expected: Tensor | None, logits: Tensor, answers: Tensor, steps: Tensor
    ) -> None:
        """Count one batch's early exit: its answers `[N, classes]` and steps `[N]`, beside the logits of all steps."""
        assert self.exit is not None
        self.exit.count(_all_hits(answers, labels, expected), steps)
        self.exit.count_curve(rule, labels, logits[: rule.time_steps])

    def plus(self, other: Tally) -> Tally:
        """Return what both counted, on different images."""
        activity = copy.deepcopy(self.activity)
        activity.add(other.activity)
        return Tally(
            self.time_steps,
            self.classes,
            self.ann_hits + other.ann_hits,
            self.hits + other.hits,
            self.confusion + other.confusion,
            activity,
            self.speeds or other.speeds,
            self.layer_errors or other.layer_errors,
            [*self.left_out, *other.left_out],
            self.exit.plus(other.exit) if self.exit and other.exit else None,
        )

    def evaluation(self, coding: Coding | None = None, with_ann: bool = True) -> Evaluation:
        """Return the counts as rates, of a network of this coding (None: trained), `with_ann` or without one."""
        images, activity = self.images, self.activity
        results = []
        for row, (t, speed) in enumerate(zip(self.time_steps, self.speeds, strict=True)):
            top1, top5, agreement = (self.hits[row].double() / images).tolist()
            results.append(
                TimeStepResult(
                    t,
                    top1,
                    top5,
                    agreement if with_ann else None,
                    speed,
                    activity.events_per_neuron_step(t),
                    activity.synaptic_operations(t),
                    snn_energy(activity, facts(coding, t)),
                    energy_ratios(activity, facts(coding, t)) if with_ann else {},
                )
            )
        top1, top5 = (self.ann_hits.double() / images).tolist()
        multiply_accumulates = activity.dense_operations()
        ann = {
            "top1": top1,
            "top5": top5,
            "multiply_accumulates": multiply_accumulates,
            "energy_uj": ann_energy(activity),
        }
        if not with_ann:
            ann = {}
        layers = [
            LayerResult(site, activity.neurons[site], rates, self.layer_errors.get(site, []))
            for site, rates in activity.event_rates().items()
        ]
        exit = self.exit.result(coding, with_ann) if self.exit else None
        evaluation = Evaluation(images, ann, results, layers, self.classes, dict(self.confusion), self.left_out, exit)
        if with_ann:
            evaluation.energy = energy_results(activity, facts(coding, self.time_steps[-1]))
        return evaluation

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "time_steps": self.time_steps,
            "classes": self.classes,
            "ann_hits": self.ann_hits.tolist(),
            "hits": self.hits.tolist(),
            "confusion": [[*pair, count] for pair, count in self.confusion.items()],
            "activity": self.activity.to_dict(),
            "speeds": self.speeds,
            "layer_errors": self.layer_errors,
            "left_out": self.left_out,
            "exit": self.exit and self.exit.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """Rebuild what `to_dict` gave."""
        made = {
            "ann_hits": torch.tensor(values["ann_hits"]),
            "hits": torch.tensor(values["hits"]),
            "confusion": Counter({(label, prediction): count for label, prediction, count in values["confusion"]}),
            "activity": Activity(**values["activity"]),
            "exit": values["exit"] and ExitCounts.from_dict(values["exit"]),
        }
        return cls(**{**values, **made})


def _all_hits(logits: Tensor, labels: Tensor, expected: Tensor | None) -> Tensor:
    """Top-1, top-5 and agreement with the ANN's logits, where there are any: `[3]`, on the CPU."""
    agreed = torch.zeros(1, dtype=torch.long)
    if expected is not None:
        agreed = (answers(logits) == answers(expected)).sum().cpu().view(1)
    return torch.cat([_hits(logits, labels), agreed])


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the best, and among the best five: `[2]`, on the CPU."""
    if logits.shape[1] == 1:
        return (answers(logits) == labels).sum().expand(2).cpu()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    matches = best == labels.unsqueeze(1)
    return torch.stack([matches[:, 0].sum(), matches.sum()]).cpu()
