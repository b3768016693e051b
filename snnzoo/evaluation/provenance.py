"""The settings of an evaluation and where its network comes from, as headings and lines for people."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from typing import Any

import torch

from snnzoo.conversion.converted_file import Conversion

Facts = dict[str, dict[str, str]]


def facts_of(conversion: Conversion, evaluation: Mapping[str, str]) -> Facts:
    """Return what a report lists below its figures.

    Args:
        evaluation: settings of the evaluation: data, device ...
    """
    recipe = dict(conversion.recipe)
    calibration = recipe.pop("calibration", {})
    recipe.pop("choice", None)
    preprocess = (
        conversion.preprocess.to_dict() if conversion.preprocess else {"input": "frames of events, as they are"}
    )
    system = {"PyTorch": str(torch.__version__), "machine": f"{platform.machine()}, {platform.system()}"}
    if evaluation.get("device", "").startswith("cuda"):
        system["GPU"] = torch.cuda.get_device_name(evaluation["device"])
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "Evaluation": {**evaluation, **system, "date": today},
        "Conversion": {
            "model": conversion.model,
            "coding": f"{conversion.coding} ({conversion.coding.spikes})",
            **({"gamma": conversion.gammas_told} if conversion.gammas_told else {}),
            "time steps": f"made for T={conversion.time_steps}",
            **_lines(recipe, "recipe "),
            **_lines(calibration, "calibration "),
        },
        "Weights and preprocessing": {**_lines(conversion.source), **_lines(preprocess)},
    }


def _lines(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Without what is not set."""
    names = {key: prefix + key.replace("_", " ") for key in values}
    return {
        names[key].replace("recipe name", "recipe"): _text(value) for key, value in values.items() if value is not None
    }


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
