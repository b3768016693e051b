"""The files that `torch.save` wrote before 0.1.10: a tar archive of storages, tensors and the pickle that names them.

The format is what `torch.serialization._legacy_load` reads.
"""

from __future__ import annotations

import mmap
import struct
import tarfile
from collections.abc import Callable
from typing import Any, BinaryIO

from torch import Tensor

from snnzoo.checkpoints.untrusted.limits import MAX_PICKLE
from snnzoo.checkpoints.untrusted.objects import Global
from snnzoo.checkpoints.untrusted.pickles import naturals, read_pickle
from snnzoo.checkpoints.untrusted.tensors import STORAGE_DTYPES, Storage, Tensors, bytes_at
from snnzoo.errors import CheckpointError

_MEMBERS = ("storages", "tensors", "pickle")


def read_tar(file: BinaryIO, mapped: mmap.mmap) -> Any:
    """What an open file of that kind holds, as `pickles.read_pickle`.

    Raises:
        CheckpointError: if it is damaged, or as `pickles.read_pickle`.
    """
    tensors = Tensors(len(mapped))
    try:
        starts = _starts(file)
        file.seek(starts["storages"])
        storages, places = _storages(file, tensors)
        file.seek(starts["tensors"])
        named = _tensors(file, tensors, storages)
        file.seek(starts["pickle"])
        content = read_pickle(file, MAX_PICKLE, tensors, _finder(named, storages))
        tensors.fill(lambda storage: bytes_at(mapped, places[storage.key], storage.size))
    except (tarfile.TarError, KeyError, ValueError, TypeError, struct.error) as error:
        raise CheckpointError("its tar archive is damaged or truncated: get the file again") from error
    return content


def _starts(file: BinaryIO) -> dict[str, int]:
    """Where each member's bytes begin; members are not compressed, and what is no plain file is none."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        found: dict[str, int] = {}
        while len(found) < len(_MEMBERS) and (info := archive.next()) is not None:
            if info.isreg() and info.name in _MEMBERS:
                found.setdefault(info.name, info.offset_data)
        return {name: found[name] for name in _MEMBERS}


def _storages(file: BinaryIO, tensors: Tensors) -> tuple[dict[str, Storage], dict[str, int]]:
    """The storages and the views of them, by key, and where their bytes begin: each behind its number of items."""
    storages: dict[str, Storage] = {}
    places: dict[str, int] = {}
    (count,) = naturals((read_pickle(file, MAX_PICKLE, tensors),))
    for _ in range(count):
        key, _, kind = read_pickle(file, MAX_PICKLE, tensors)
        (items,) = naturals(struct.unpack("<q", file.read(8)))
        storage = tensors.storage(str(key), STORAGE_DTYPES[kind.name.rpartition(".")[2]], items)
        storages[storage.key] = storage
        places[storage.key] = file.tell()
        file.seek(storage.size, 1)
    for key, root, start, items in read_pickle(file, MAX_PICKLE, tensors):
        storages[str(key)] = tensors.view(storages[str(root)], *naturals((start, items)))
    return storages, places


def _tensors(file: BinaryIO, tensors: Tensors, storages: dict[str, Storage]) -> dict[str, Tensor]:
    """The tensors by key: dimensions (an int that takes 8 bytes), sizes, strides and offset, behind each name."""
    named = {}
    (count,) = naturals((read_pickle(file, MAX_PICKLE, tensors),))
    for _ in range(count):
        key, storage, _ = read_pickle(file, MAX_PICKLE, tensors)
        (dimensions,) = struct.unpack("<i4x", file.read(8))
        numbers = naturals(struct.unpack(f"<{2 * dimensions + 1}q", file.read(8 * (2 * dimensions + 1))))
        shape, stride = numbers[:dimensions], numbers[dimensions:-1]
        named[str(key)] = tensors.tensor(storages[str(storage)], numbers[-1], shape, stride)
    return named


def _finder(named: dict[str, Tensor], storages: dict[str, Storage]) -> Callable[[Any], Any]:
    """What a persistent name is of: a tensor or storage, by a number; a class with its source, by a tuple."""

    def find(name: Any) -> Any:
        if type(name) is tuple and type(name[0]) is Global:
            return name[0]
        return named[str(name)] if str(name) in named else storages[str(name)]

    return find
