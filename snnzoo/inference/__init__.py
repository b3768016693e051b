"""Running a network as fast as the hardware allows: folded, channels-last, one operator for all that fires."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.inference.engine import InferenceNetwork, prepare_for_inference

__all__ = ["InferenceNetwork", "prepare_for_inference"]

__getattr__, __dir__ = lazy_exports(__name__, dict.fromkeys(__all__, "snnzoo.inference.engine"))
