"""Which model of the zoo a checkpoint is of: its key layout, its architecture, its classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.recognition.identification import architecture, identify
    from snnzoo.recognition.inspection import inspect_checkpoint
    from snnzoo.recognition.reading import read_layout

__all__ = ["architecture", "identify", "inspect_checkpoint", "read_layout"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "architecture": "snnzoo.recognition.identification",
        "identify": "snnzoo.recognition.identification",
        "inspect_checkpoint": "snnzoo.recognition.inspection",
        "read_layout": "snnzoo.recognition.reading",
    },
)
