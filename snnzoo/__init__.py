"""snnzoo: a model zoo and checkpoint converter for spiking ResNets.

Names are imported when they are first used, so that `import snnzoo` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "create_model": "snnzoo.models.registry",
    "list_models": "snnzoo.models.registry",
    "convert": "snnzoo.conversion",
    "load": "snnzoo.conversion",
    "evaluate": "snnzoo.evaluation",
}
_ROOMS = ("checkpoints", "conversion", "evaluation", "functional", "layer", "models", "neuron", "ops", "surrogate")

__all__ = ["__version__", *_EXPORTS, *_ROOMS]

if TYPE_CHECKING:
    from snnzoo.conversion import convert, load
    from snnzoo.evaluation import evaluate
    from snnzoo.models.registry import create_model, list_models


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"snnzoo.{name}")
    raise AttributeError(f"module 'snnzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
