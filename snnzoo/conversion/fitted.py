"""A network made to fit its calibration images, as far as its checkpoint leaves that open, and checked on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from snnzoo.conversion.inputs import ann_input, has_frames
from snnzoo.data.preprocess import Preprocess
from snnzoo.fit.check import check_fit, is_trained, spread
from snnzoo.fit.search import Decision, best_fit
from snnzoo.fit.statistics import Fit
from snnzoo.fit.variants import ROWS, Subject, prepared_anew
from snnzoo.graph.network import Ann
from snnzoo.progress import Progress


@dataclass(frozen=True)
class Fitted:
    """What is converted.

    Args:
        ann: the network, as it fits best.
        images: calibration images, as it fits them best.
        preprocess: how they are prepared.
        fit: of the network's BN to them; None if it has none that was trained.
        decisions: what the checkpoint left open, and how that was answered.
    """

    ann: Ann
    images: Tensor
    preprocess: Preprocess | None
    fit: Fit | None
    decisions: tuple[Decision, ...] = ()

    def to_dict(self) -> dict[str, Any] | None:
        """Return plain values, as `Conversion.fit` has them."""
        if self.fit is None:
            return None
        return {**self.fit.to_dict(), "decisions": [decision.to_dict() for decision in self.decisions]}


def fitted(
    ann: Ann,
    images: Tensor,
    preprocess: Preprocess | None,
    *,
    open_graph: bool = False,
    open_preprocess: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Fitted:
    """Return a network as it fits its calibration images best, and how well it does.

    Args:
        images: `[N, C, H, W]`; or frames `[N, T, C, H, W]`, of which nothing is open.
        preprocess: of the images; None for frames.
        open_graph: whether weights leave the architecture open; not where code or configuration tells it.
        open_preprocess: whether normalisation and order of channels are guessed only.
        force: convert what does not fit at all, too.
        progress: called with (done, total, description).
        notify: called with a line on what was decided, and on what does not fit.

    Raises:
        SnnzooError: for a gross misfit.
    """
    decisions: list[Decision] = []
    advice: Callable[[], str] | None = None
    if not has_frames(images) and is_trained(ann):
        rows = [row for row in ROWS if (open_preprocess if row.of_images else open_graph)]
        subject = Subject(ann.graph, ann.tensors(), images[spread(len(images))], preprocess)
        best, decisions = best_fit(subject, rows, progress)
        if best.preprocess is not None and preprocess is not None:
            images = prepared_anew(images, preprocess, best.preprocess)
        preprocess, ann = best.preprocess, ann.with_graph(best.graph)
        if not open_preprocess:
            advice = partial(_advice, best)
    if notify is not None:
        for line in lines(decisions):
            notify(line)
    fit = check_fit(ann, ann_input(images), force=force, advice=advice, notify=notify)
    return Fitted(ann, images, preprocess, fit, tuple(decisions))


def _advice(subject: Subject) -> str:
    """What preprocessing would fit better; nothing if the one that was given does."""
    _, decisions = best_fit(subject, [row for row in ROWS if row.of_images])
    better = [str(decision) for decision in decisions if decision.changed]
    return f"--preprocess auto would take {' and '.join(better)}" if better else ""


def lines(decisions: Iterable[Decision]) -> list[str]:
    """Return what was decided otherwise than without images, and what images could not tell, a line each."""
    decisions = list(decisions)
    changed = [str(decision) for decision in decisions if decision.changed]
    ties = [
        f"{decision.question} ({decision.taken}, or {', '.join(decision.ties)})"
        for decision in decisions
        if decision.ties
    ]
    said = []
    if changed:
        said.append(f"taken because it fits the images best, in nats: {'; '.join(changed)}")
    if ties:
        said.append(f"not told apart by the images: {'; '.join(ties)}; the first of each is taken")
    return said
