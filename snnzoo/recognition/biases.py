"""Biases of convolutions that have a BN behind them: the same network without them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_PAIRS = ((re.compile(r"(.*\.)?conv(\d+)\.bias$"), "bn{}"), (re.compile(r"(.*\.downsample\.)(0)\.bias$"), "1"))


def without_biases(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a ResNet's state dict with the bias of each convolution taken off the mean of the BN behind it.

    Args:
        state_dict: in torchvision's keys.

    Returns:
        the state dict, and the keys of the biases that it lacks; those without a BN are as they were.
    """
    result, moved = dict(state_dict), []
    for key, bias in state_dict.items():
        for pattern, name in _PAIRS:
            match = pattern.match(key)
            if match is None:
                continue
            mean = f"{match[1] or ''}{name.format(match[2])}.running_mean"
            if mean in result and result[mean].shape == bias.shape:
                result[mean] = result[mean] - bias
                del result[key]
                moved.append(key)
    return result, moved
