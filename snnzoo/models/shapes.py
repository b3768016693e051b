"""The zoo's ANNs on the meta device: their layers and shapes without data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from snnzoo.models.factory import build
from snnzoo.models.registry import MODELS


def ann_shapes(name: str, **kwargs: Any) -> nn.Module:
    """Build the ANN of model `name` on the meta device; arguments as `create_model`."""
    with torch.device("meta"):
        return build(name, nn.ReLU, step_mode="s", **kwargs)


def anns_with(convolutions: int, in_channels: int, names: Iterable[str] = MODELS) -> Iterator[nn.Module]:
    """Yield the ANNs of the models `names` that have this many convolutions, each shortcut option by itself."""
    for name in names:
        if not MODELS[name].convertible:  # the keys and shapes of another model
            continue
        for options, count in _convolutions(MODELS[name].kwargs):
            if count == convolutions:
                yield ann_shapes(name, in_channels=in_channels, **options)


def _convolutions(kwargs: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The options of a model, each with the number of its convolutions."""
    if "blocks" in kwargs:
        plain = 1 + 6 * kwargs["blocks"]
        return [({"option": "A"}, plain), ({"option": "B"}, plain + 2)]
    if "convolutions" in kwargs:  # a VGG has numbers for names already
        return []
    if kwargs["block"] == "basic":
        return [({}, 1 + 2 * sum(kwargs["layers"]) + 3)]
    return [({}, 1 + 3 * sum(kwargs["layers"]) + 4)]
