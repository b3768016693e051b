"""The files that `torch.save` wrote before 1.6: pickles, and then the bytes of the storages."""

from __future__ import annotations

import mmap
import struct
from typing import Any, BinaryIO

from snnzoo.checkpoints.untrusted.limits import LEGACY_MAGIC, LEGACY_PROTOCOL, MAX_PICKLE
from snnzoo.checkpoints.untrusted.pickles import read_pickle
from snnzoo.checkpoints.untrusted.tensors import Storage, Tensors, bytes_at
from snnzoo.errors import CheckpointError


def read_legacy(file: BinaryIO, mapped: mmap.mmap) -> Any:
    """What an open file of that kind holds, as `pickles.read_pickle`.

    Raises:
        CheckpointError: if it is damaged or truncated, or as `pickles.read_pickle`.
    """
    tensors = Tensors(len(mapped))
    magic, protocol, system, content, keys = (read_pickle(file, MAX_PICKLE, tensors) for _ in range(5))
    if (
        magic != LEGACY_MAGIC
        or protocol != LEGACY_PROTOCOL
        or type(system) is not dict
        or not system.get("little_endian", True)
    ):
        raise CheckpointError("is no file of torch.save, or of a machine with another byte order")
    places = _places(keys, tensors.storages, mapped, file.tell())
    tensors.fill(lambda storage: bytes_at(mapped, places[storage.key], storage.size))
    return content


def _places(keys: Any, storages: dict[str, Storage], mapped: mmap.mmap, position: int) -> dict[str, int]:
    """Where each storage's bytes begin: each behind its number of items, in the order of `keys`."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise CheckpointError("its list of storages is damaged: get the file again")
    places = {}
    for key in keys:
        places[key] = position + 8
        end = position + 8 + storages[key].size
        if end > len(mapped) or struct.unpack_from("<q", mapped, position)[0] != storages[key].items:
            raise CheckpointError(f"its storage {key[:80]!a} is damaged or truncated: get the file again")
        position = end
    return places
