"""Measuring a converted network against its ANN, on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.evaluation.evaluator import evaluate
    from snnzoo.evaluation.results import Evaluation, ExitResult, LayerResult, TimeStepResult, powers_of_two

__all__ = ["Evaluation", "ExitResult", "LayerResult", "TimeStepResult", "evaluate", "powers_of_two"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "evaluate": "snnzoo.evaluation.evaluator",
        **dict.fromkeys(
            ("Evaluation", "ExitResult", "LayerResult", "TimeStepResult", "powers_of_two"), "snnzoo.evaluation.results"
        ),
    },
)
