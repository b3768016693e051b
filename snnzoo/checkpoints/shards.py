"""Checkpoints in several files, with a JSON index of which tensor is in which, as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from snnzoo.checkpoints.untrusted.limits import MAX_TENSORS, MAX_TEXT, check_name
from snnzoo.errors import CheckpointError, first_few

MAX_SHARDS = 1000


def read_sharded(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that an index names, out of the files beside it.

    Args:
        index: a model.safetensors.index.json or pytorch_model.bin.index.json.
        read: reads one of the files.

    Raises:
        CheckpointError: if the index is damaged, names a file outside its folder or one that is not there, or a
            tensor that is not in its file; and as `read`.
    """
    weight_map = _weight_map(index)
    shards = {name: read(index.parent / name) for name in dict.fromkeys(weight_map.values())}
    absent = [f"{key} in {name}" for key, name in weight_map.items() if key not in shards[name]]
    if absent:
        raise CheckpointError(f"{index}: names tensors that are not there: {first_few(absent)}")
    return {key: shards[name][key] for key, name in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    if index.stat().st_size > MAX_TEXT:
        raise CheckpointError(f"{index}: is larger than an index may be ({MAX_TEXT:,} bytes)")
    try:
        content: Any = json.loads(index.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{index}: is no valid JSON, expected the index of a sharded checkpoint") from None
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map, so it is no index of a sharded checkpoint")
    if len(weight_map) > MAX_TENSORS or len({*map(str, weight_map.values())}) > MAX_SHARDS:
        raise CheckpointError(f"{index}: names more than {MAX_TENSORS:,} tensors or {MAX_SHARDS:,} files")
    for key, name in weight_map.items():
        _check_key(key, index)
        if not _is_plain_name(name):
            raise CheckpointError(f"{index}: {key} is said to be in {name!a}, expected the name of a file beside it")
    return weight_map


def _check_key(key: str, index: Path) -> None:
    try:
        check_name(key)
    except CheckpointError as error:
        raise CheckpointError(f"{index}: {error}") from None


def _is_plain_name(name: Any) -> bool:
    """Whether it names a file in the same folder, on any system."""
    return isinstance(name, str) and name.isprintable() and not {*name} & {*"/\\:"} and name not in ("", ".", "..")
