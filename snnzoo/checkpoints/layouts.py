"""Key layouts: from the names a checkpoint uses to torchvision's, which are ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snnzoo.errors import CheckpointError, first_few

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint, out of wrapping dicts and common prefixes.

    Raises:
        CheckpointError: if there is none in it.
    """
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{source}: holds a {type(content).__name__}, not a state dict of named tensors")
    not_tensors = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise CheckpointError(f"{source}: not a state dict: {first_few(not_tensors)} are not tensors")
    state_dict = dict(content)
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def to_torchvision(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict of a loaded checkpoint with torchvision's keys.

    Raises:
        CheckpointError: if it holds no state dict.
    """
    state_dict = unwrap(content, source)
    rename = {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
    return {rename.get(key, key): value for key, value in state_dict.items()}


def check_fits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Compare the keys and shapes that a model expects with a checkpoint's.

    `num_batches_tracked` may be missing: BN counts batches for training only.

    Raises:
        CheckpointError: with the first few keys of each kind that do not fit, and their number.
    """
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    misshapen = [
        f"{key} {list(given[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    classifier = [text for text in misshapen if text.startswith("fc.")]
    if classifier and len(classifier) == len(misshapen) and not missing and not unexpected:
        classes, wanted = len(given["fc.bias"]), len(expected["fc.bias"])
        raise CheckpointError(f"{source}: has {classes} classes, not {wanted}: give --num-classes {classes}")
    problems = [
        f"{len(keys)} {kind} ({first_few(keys)})"
        for keys, kind in ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source}: keys do not fit the model: {'; '.join(problems)}")
