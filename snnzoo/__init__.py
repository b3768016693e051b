"""snnzoo: a model zoo and checkpoint converter for spiking networks.

Names are imported when they are first used, so that `import snnzoo` does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snnzoo._version import __version__
from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo import (
        checkpoints,
        conversion,
        encoding,
        errors,
        evaluation,
        export,
        functional,
        inference,
        layer,
        model,
        models,
        monitor,
        neuron,
        ops,
        rnn,
        surrogate,
    )
    from snnzoo.conversion import convert, load, save
    from snnzoo.evaluation import evaluate
    from snnzoo.inference import prepare_for_inference
    from snnzoo.models import create_model, list_models
    from snnzoo.recognition.ann import load_ann
    from snnzoo.recognition.snn import load_snn

__all__ = [
    "__version__",
    "checkpoints",
    "conversion",
    "convert",
    "create_model",
    "encoding",
    "errors",
    "evaluate",
    "evaluation",
    "export",
    "functional",
    "inference",
    "layer",
    "list_models",
    "load",
    "load_ann",
    "load_snn",
    "model",
    "models",
    "monitor",
    "neuron",
    "ops",
    "prepare_for_inference",
    "rnn",
    "save",
    "surrogate",
]

_CHECKOUT = Path(__file__).resolve().parents[1]
if (_CHECKOUT / "cli" / "__main__.py").is_file() and (_CHECKOUT / "pyproject.toml").is_file():
    __path__.append(str(_CHECKOUT))  # imported from the sources, where `snnzoo.cli` lies beside the package

_ROOMS = (
    "checkpoints",
    "conversion",
    "encoding",
    "errors",
    "evaluation",
    "export",
    "functional",
    "inference",
    "layer",
    "model",
    "models",
    "monitor",
    "neuron",
    "ops",
    "rnn",
    "surrogate",
)
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **{room: f"snnzoo.{room}" for room in _ROOMS},
        "create_model": "snnzoo.models",
        "list_models": "snnzoo.models",
        "convert": "snnzoo.conversion",
        "load": "snnzoo.conversion",
        "load_ann": "snnzoo.recognition.ann",
        "load_snn": "snnzoo.recognition.snn",
        "save": "snnzoo.conversion",
        "evaluate": "snnzoo.evaluation",
        "prepare_for_inference": "snnzoo.inference",
    },
)
