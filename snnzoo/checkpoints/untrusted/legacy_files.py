"""The files that `torch.save` wrote before 1.6: pickles, and then the bytes of the storages."""

from __future__ import annotations

import struct
from typing import BinaryIO

from snnzoo.checkpoints.untrusted.limits import Claims
from snnzoo.checkpoints.untrusted.pickles import outline
from snnzoo.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C  # as in torch.serialization
_PROTOCOL = 1001


def check_legacy(file: BinaryIO, file_size: int) -> None:
    """Check an open file: its pickles, and that its storages have their bytes.

    Raises:
        CheckpointError: if it is damaged or truncated, or as `pickles.outline`.
    """
    claims = Claims(file_size)
    file.seek(0)
    magic, protocol, system = (outline(file, claims).value for _ in range(3))
    if magic != MAGIC or protocol != _PROTOCOL or type(system) is not dict or not system.get("little_endian", True):
        raise CheckpointError("is no file of torch.save, or of a machine with another byte order")
    storages = outline(file, claims).storages
    keys = outline(file, claims).value
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise CheckpointError("its list of storages is damaged: get the file again")
    position = file.tell()
    for key in keys:
        items, item_size = storages[key]
        file.seek(position)
        position += 8 + items * item_size
        if position > file_size or struct.unpack("<q", file.read(8))[0] != items:
            raise CheckpointError(f"its storage {key!a} is damaged or truncated: get the file again")
