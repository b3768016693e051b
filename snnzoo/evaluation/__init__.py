"""Measuring a converted network against its ANN, on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.evaluation.evaluator import Evaluation, TimeStepResult, evaluate

__all__ = ["Evaluation", "TimeStepResult", "evaluate"]

__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "snnzoo.evaluation.evaluator"))
