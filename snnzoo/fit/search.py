"""Answering what a checkpoint's keys leave open by what fits the images best."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from snnzoo.errors import SnnzooError
from snnzoo.fit.check import DOUBTFUL, beyond
from snnzoo.fit.statistics import Fit, measure_fit
from snnzoo.fit.variants import ROWS, Row, Subject
from snnzoo.progress import Progress

IMAGES = 32  # that answers about the graph are tried on; those about images only run its first layer, on all
LEAST_GAIN = 0.01  # nats, by which an answer must fit better than the one that was taken first


@dataclass(frozen=True)
class Decision:
    """How one question was answered.

    Args:
        question: the row's name.
        taken: the answer.
        assumed: the one that would have been taken without images.
        ties: others that fit about as well as the one taken.
        divergences: of each answer that was tried, in nats.
    """

    question: str
    taken: str
    assumed: str
    ties: tuple[str, ...]
    divergences: dict[str, float]

    @property
    def changed(self) -> bool:
        """Whether images gave another answer than would have been taken without."""
        return self.taken != self.assumed

    def taken_back(self) -> Decision:
        """Return the decision for what would have been taken without images."""
        return dataclasses.replace(self, taken=self.assumed, ties=())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ties": list(self.ties)}

    def __str__(self) -> str:
        shown = f"{self.divergences[self.taken]:.2g} instead of {self.divergences[self.assumed]:.2g}"
        return f"{self.question}: {self.taken} ({shown} with {self.assumed})"


def best_fit(
    subject: Subject, rows: Iterable[Row] = ROWS, progress: Progress | None = None
) -> tuple[Subject, list[Decision]]:
    """Return the subject with the answers that fit its images best, and how each question was answered.

    Greedy: one row after the other, each on what the rows before it chose. An answer replaces the one that the subject
    has only if its divergence is smaller by the row's `ratio`, and by `LEAST_GAIN`; anything closer is a tie. And only
    if it fits: images of another kind, or fine-tuning, would bend the network to what it is not.

    Args:
        progress: called with (done, total, description).
    """
    given = subject
    decisions: list[Decision] = []
    rows = list(rows)
    for done, row in enumerate(rows):
        if progress:
            progress(done, len(rows), f"fitting: {row.name}")
        answers = row.answers(subject)
        fits = {name: fit for name, other in answers.items() if (fit := _fit(row, other)) is not None}
        assumed = next(iter(answers), None)
        if assumed is not None and assumed in fits and len(fits) > 1:
            decisions.append(_decided(row, assumed, fits))
            subject = answers[decisions[-1].taken]
    if progress:
        progress(len(rows), len(rows), "fitting: done")
    if subject.graph != given.graph:
        fit = measure_fit(subject.graph, subject.tensors, subject.images[:IMAGES])
        if fit is None or beyond(DOUBTFUL, fit.mean, fit.images):
            of_graph = {row.name for row in rows if not row.of_images}
            subject = dataclasses.replace(subject, graph=given.graph)
            decisions = [d.taken_back() if d.question in of_graph else d for d in decisions]
    return subject, decisions


def _decided(row: Row, assumed: str, fits: Mapping[str, Fit]) -> Decision:
    measured = {name: fit.mean for name, fit in fits.items()}

    def is_worse(name: str, than: str) -> bool:
        return measured[name] > row.ratio * measured[than] and measured[name] - measured[than] > LEAST_GAIN

    best = min(measured, key=measured.__getitem__)
    fitting = row.layers is None or not beyond(DOUBTFUL, measured[best], fits[best].images)
    taken = best if is_worse(assumed, best) and fitting else assumed
    ties = tuple(name for name in measured if name != taken and not is_worse(name, taken))
    return Decision(row.name, taken, assumed, ties, {name: round(value, 6) for name, value in measured.items()})


def _fit(row: Row, subject: Subject) -> Fit | None:
    images = subject.images if row.layers else subject.images[:IMAGES]
    try:
        return measure_fit(subject.graph, subject.tensors, images, row.layers)
    except (RuntimeError, SnnzooError):  # shapes that do not go together, in small images
        return None
