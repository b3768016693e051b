"""What has been counted so far. Parts counted apart, by other processes or earlier, add up exactly."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnzoo.errors import UsageError
from snnzoo.evaluation.activity import Activity
from snnzoo.evaluation.energy import ann_energy, snn_energy
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

    @classmethod
    def empty(cls, time_steps: Sequence[int], classes: int) -> Tally:
        hits = torch.zeros(len(time_steps), 3, dtype=torch.long)
        return cls(list(time_steps), classes, torch.zeros(2, dtype=torch.long), hits)

    @property
    def images(self) -> int:
        return self.confusion.total()

    def count(self, labels: Tensor, expected: Tensor | None, logits: Tensor) -> None:
        """Count one batch: `labels [N]`, the ANN's logits `[N, classes]` or None, the network's `[T, N, classes]`.

        Raises:
            UsageError: if a label is none of the network's classes.
        """
        if int(labels.max()) >= self.classes:
            raise UsageError(f"the data has a label {int(labels.max())}, but the network has {self.classes} classes")
        if expected is not None:
            self.ann_hits += _hits(expected, labels)
        for row, t in enumerate(self.time_steps):
            self.hits[row, :2] += _hits(logits[t - 1], labels)
            if expected is not None:
                self.hits[row, 2] += (logits[t - 1].argmax(1) == expected.argmax(1)).sum().cpu()
        predictions = logits[self.time_steps[-1] - 1].argmax(1)
        self.confusion.update(zip(labels.tolist(), predictions.tolist(), strict=True))

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
        )

    def evaluation(self, event_bits: int = 1, with_ann: bool = True) -> Evaluation:
        """Return the counts as rates; `event_bits` is that of the coding, `with_ann` tells whether there was an ANN."""
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
                    snn_energy(activity, t, event_bits),
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
        return Evaluation(images, ann, results, layers, self.classes, dict(self.confusion), self.left_out)

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
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """Rebuild what `to_dict` gave."""
        made = {
            "ann_hits": torch.tensor(values["ann_hits"]),
            "hits": torch.tensor(values["hits"]),
            "confusion": Counter({(label, prediction): count for label, prediction, count in values["confusion"]}),
            "activity": Activity(**values["activity"]),
        }
        return cls(**{**values, **made})


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the best, and among the best five: `[2]`, on the CPU."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    matches = best == labels.unsqueeze(1)
    return torch.stack([matches[:, 0].sum(), matches.sum()]).cpu()
