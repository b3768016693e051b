"""Early exit: whether what is read out after a step is sure enough to stop there, image by image.

A network is read out after every step, and most images keep the class of an early one. A rule measures how sure a
readout is, and compares that with a threshold for each step:

- the gap between the two largest probabilities, as the cutoff of Wu et al. 2023 (arXiv 2301.09522) and the
  confidence score of SEENN (Li et al., NeurIPS 2023, arXiv 2304.01230) look at the best classes;
- the entropy of all probabilities, as DT-SNN (Li et al., DAC 2023, arXiv 2305.17346) does.

What neurons have not sent yet lacks in the readouts of all images alike, and where a readout was heading it goes on. So
a rule first adds to an early readout what each class lacks on average, and some of what it has changed lately.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from snnzoo.errors import UsageError

NEVER = 1.0  # a threshold that no readout is above
LATELY = 4  # a readout's trend is the change over this part of its steps


def gap(logits: Tensor) -> Tensor:
    """Return the difference of the two largest probabilities, `[..., classes] -> [...]`, from 0 to 1, float64."""
    best = logits.double().softmax(-1).topk(2, -1).values
    return best[..., 0] - best[..., 1]


def certainty(logits: Tensor) -> Tensor:
    """Return 1 minus the entropy of the probabilities over that of equal ones, `[..., classes] -> [...]`, float64."""
    log_probabilities = logits.double().log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return 1 - entropy / math.log(logits.shape[-1])


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"gap": gap, "entropy": certainty}


def trend(logits: Tensor, t: int) -> Tensor:
    """Return how much logits `[T, ...]` have changed lately at step t, counted from 0: `[...]`."""
    return logits[t] - logits[t - max(1, t // LATELY)] if t else torch.zeros_like(logits[0])


@dataclass(frozen=True)
class ExitRule:
    """When an image may leave.

    Args:
        measure: "gap" or "entropy", of `MEASURES`.
        thresholds: for each of the T - 1 steps before the last, what a readout must be above; `NEVER` for a step at
            which no image leaves. At the last step all leave.
        shift: `[T - 1, classes]`, added to each early readout first; None for nothing.
        onward: how many times its trend is added, too, for each early step; None for nothing.
        staying: the share of images that is expected to be left after each early step, from 0 to 1; None if that is not
            known. It says which steps are best run together, and changes no answer.

    Raises:
        ValueError: for another measure, thresholds or shares out of [0, 1], or a shift, `onward` or shares of another
            length.
    """

    measure: str
    thresholds: tuple[float, ...]
    shift: Tensor | None = None
    onward: tuple[float, ...] | None = None
    staying: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {self.measure!r}")
        if not all(0 <= threshold <= NEVER for threshold in self.thresholds):
            raise ValueError(f"thresholds must be from 0 to {NEVER:g}, got {self.thresholds}")
        if not all(0 <= share <= 1 for share in self.staying or ()):
            raise ValueError(f"shares of images that stay must be from 0 to 1, got {self.staying}")
        for name, given in (("shift", self.shift), ("onward", self.onward), ("staying", self.staying)):
            if given is not None and len(given) != len(self.thresholds):
                raise ValueError(f"{name} is of {len(given)} steps, the thresholds are of {len(self.thresholds)}")

    @property
    def time_steps(self) -> int:
        """T, after which all have left."""
        return len(self.thresholds) + 1

    @property
    def exits(self) -> list[int]:
        """The steps after which an image may leave, counted from 0; the last is one of them."""
        return [t for t, threshold in enumerate(self.thresholds) if threshold < NEVER] + [len(self.thresholds)]

    def readout(self, logits: Tensor, t: int) -> Tensor:
        """Return what the logits after step t, counted from 0, foretell of the last ones: `[N, classes]`.

        Args:
            logits: after each step until then, `[> t, N, classes]`.
        """
        readout = logits[t]
        if t >= len(self.thresholds):
            return readout
        if self.shift is not None:
            readout = readout + self.shift[t].to(readout)
        if self.onward is not None:
            readout = readout + self.onward[t] * trend(logits, t)
        return readout

    def foretold(self, logits: Tensor) -> Tensor:
        """Return `readout` after each step, `[T, N, classes]`, of logits of that shape."""
        return torch.stack([self.readout(logits, t) for t in range(len(logits))])

    def is_sure(self, readout: Tensor, t: int) -> Tensor:
        """Return which of `readout(...)`, `[N, classes]`, are sure enough to leave after step t: `[N]`, boolean."""
        if t >= len(self.thresholds):
            return torch.ones(len(readout), dtype=torch.bool, device=readout.device)
        return MEASURES[self.measure](readout) > self.thresholds[t]

    def apply(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return what images leave with, `[N, classes]`, and after how many steps, `[N]`, from all readouts.

        Args:
            logits: after each step, `[T, N, classes]`.

        Raises:
            ValueError: if T is not the rule's.
        """
        if len(logits) != self.time_steps:
            raise ValueError(f"the rule is for {self.time_steps} time steps, got logits of {len(logits)}")
        readouts = self.foretold(logits)
        sure = torch.stack([self.is_sure(step, t) for t, step in enumerate(readouts)])
        first = sure.int().argmax(0)
        return readouts[first, torch.arange(len(first), device=first.device)], first + 1


@dataclass(frozen=True)
class ChosenRule:
    """One row of an `ExitTable`.

    `tolerance` is the share of images, in percent, that may leave with another class than the last step's; `changed`
    that which did, and `mean_steps` how many steps an image took, both measured on images that thresholds were not
    chosen on. `staying`: as of `ExitRule`; of a file that was written before there was any, None.
    """

    tolerance: float
    thresholds: tuple[float, ...]
    changed: float
    mean_steps: float
    staying: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ExitTable:
    """The exit rules of a converted network, for a few tolerances.

    Args:
        measure: of `MEASURES`.
        images: number of the held-back images that the rules were chosen on.
        shift: `[T - 1][classes]`, as of `ExitRule`.
        rules: one a tolerance.
        onward: as of `ExitRule`; a file that was written before there was any has None.

    Raises:
        ValueError: for a rule that cannot be.
    """

    measure: str
    images: int
    shift: tuple[tuple[float, ...], ...]
    rules: tuple[ChosenRule, ...]
    onward: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for rule in self.rules:
            ExitRule(self.measure, rule.thresholds, staying=rule.staying)

    def rule(self, tolerance: float) -> ExitRule:
        """Return the rule of a tolerance in points.

        Raises:
            UsageError: naming those that there are, if it is none of them.
        """
        for rule in self.rules:
            if rule.tolerance == tolerance:
                shift = torch.tensor(self.shift, dtype=torch.float64)
                return ExitRule(self.measure, rule.thresholds, shift, self.onward, rule.staying)
        known = ", ".join(f"{rule.tolerance:g}" for rule in self.rules)
        raise UsageError(f"exit rules are kept for tolerances of {known} points, got {tolerance:g}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ExitTable:
        """Return the inverse of `to_dict`, also after JSON."""
        return cls(
            fields["measure"],
            fields["images"],
            tuple(map(tuple, fields["shift"])),
            tuple(ChosenRule(**{name: _as_tuple(value) for name, value in rule.items()}) for rule in fields["rules"]),
            _as_tuple(fields.get("onward")),
        )


def _as_tuple(value: Any) -> Any:
    """A list of JSON."""
    return tuple(value) if isinstance(value, list) else value
