"""Whether a network's BN statistics and its images agree, and which variant of the network agrees best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.fit.check import check_fit
    from snnzoo.fit.search import best_fit
    from snnzoo.fit.statistics import Fit, measure_fit
    from snnzoo.fit.variants import Subject

__all__ = ["Fit", "Subject", "best_fit", "check_fit", "measure_fit"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Fit": "snnzoo.fit.statistics",
        "Subject": "snnzoo.fit.variants",
        "best_fit": "snnzoo.fit.search",
        "check_fit": "snnzoo.fit.check",
        "measure_fit": "snnzoo.fit.statistics",
    },
)
