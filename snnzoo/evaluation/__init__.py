"""Measuring a converted network against its ANN, on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.evaluation.evaluator import evaluate
    from snnzoo.evaluation.results import Evaluation, LayerResult, TimeStepResult

__all__ = ["Evaluation", "LayerResult", "TimeStepResult", "evaluate"]

__getattr__ = lazy_exports(
    __name__,
    {
        "evaluate": "snnzoo.evaluation.evaluator",
        **dict.fromkeys(("Evaluation", "LayerResult", "TimeStepResult"), "snnzoo.evaluation.results"),
    },
)
