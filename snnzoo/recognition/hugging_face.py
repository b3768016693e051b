"""The config.json that transformers writes beside a network's weights: what their names and shapes do not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snnzoo.checkpoints.untrusted.limits import MAX_TEXT
from snnzoo.errors import CheckpointError


def check_config(weights: Path) -> bool:
    """Return whether a config.json of a ResNet lies beside a file, after a look at whether the zoo computes the same.

    Raises:
        CheckpointError: if it does not: another activation, or strides elsewhere.
    """
    config = _config(weights.with_name("config.json"))
    if config.get("model_type") != "resnet":
        return False
    activation = config.get("hidden_act", "relu")
    wrong = [
        (activation != "relu", f"hidden_act is {activation!a}, and the zoo's networks have relu"),
        (config.get("downsample_in_first_stage") is True, "downsample_in_first_stage is true, a stride in layer1"),
        (
            config.get("downsample_in_bottleneck") is True and config.get("layer_type", "bottleneck") == "bottleneck",
            "downsample_in_bottleneck is true, the stride in a block's first convolution (ResNet v1)",
        ),
    ]
    for is_so, what in wrong:
        if is_so:
            raise CheckpointError(f"{weights}: no network of the zoo: in the config.json beside it {what[:200]}")
    return True


def _config(path: Path) -> dict[str, Any]:
    """The content of a config.json; {} if it is none."""
    try:
        if path.stat().st_size > MAX_TEXT:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
