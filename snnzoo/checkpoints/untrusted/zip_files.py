"""The zip files of `torch.save`, checked before torch reads them.

torch.save stores its members without compressing them, and writes nothing after the directory. Whatever else a zip
file may be is refused, so that nothing inflates, and what is checked here is what torch then reads.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from typing import Any, BinaryIO

from snnzoo.checkpoints.untrusted.limits import MAX_TEXT, Claims
from snnzoo.checkpoints.untrusted.pickles import outline
from snnzoo.errors import CheckpointError

# Fields as in PKWARE's APPNOTE.TXT, 4.3: the end of the directory, its zip64 form, and a member's local header.
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY_SIZE = 46  # of a directory's entry, without its name

_ENCRYPTED = 1
_DAMAGED = "its zip directory is damaged: get the file again"


def check_zip(file: BinaryIO, file_size: int) -> None:
    """Check an open zip file of torch.save: its directory, its pickle, and that its storages have their bytes.

    Raises:
        CheckpointError: if it is damaged, compressed, or no file of torch.save, or as `pickles.outline`.
    """
    members = _members(file, file_size)
    start, size = members["data.pkl"]
    file.seek(start)
    found = outline(file, Claims(file_size))
    if file.tell() > start + size:
        raise CheckpointError("its pickle is damaged or truncated: get the file again")
    for key, (items, item_size) in found.storages.items():
        has = members.get(f"data/{key}", (0, 0))[1]
        if has != items * item_size:
            raise CheckpointError(
                f"its storage {key!a} has {has:,} bytes, not the {items * item_size:,} that its pickle says: "
                "get the file again"
            )


def _members(file: BinaryIO, file_size: int) -> dict[str, tuple[int, int]]:
    """Where each member begins and how long it is, by its name inside the folder that torch.save puts them all in."""
    directory = _check_directory(file, file_size)
    try:
        infos = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError):
        raise CheckpointError(_DAMAGED) from None
    names = [info.filename.partition("/")[2] for info in infos]
    if "constants.pkl" in names:
        raise CheckpointError("is a TorchScript archive, which holds code: save its state_dict() with torch.save")
    if "data.pkl" not in names:
        raise CheckpointError("is a zip file, but not one of torch.save: if it holds a checkpoint, unpack it first")
    if len({info.filename.lower() for info in infos}) < len(infos) or len({*map(_folder, infos)}) > 1:
        raise CheckpointError("its zip directory has members twice: get the file again")  # torch ignores case
    members = {name: _place(file, info, directory) for name, info in zip(names, infos, strict=True)}
    if any(start + size > after for (start, size), (after, _) in itertools.pairwise(sorted(members.values()))):
        raise CheckpointError("its members overlap: get the file again")
    return members


def _folder(info: zipfile.ZipInfo) -> str:
    return info.filename.partition("/")[0]


def _check_directory(file: BinaryIO, file_size: int) -> int:
    """Where the directory begins, which must end where the file does, and be of a size that can be read."""
    end = file_size - _END.size
    signature, disk, first_disk, _, count, size, start, comment = _read(file, end, _END)
    if signature != b"PK\5\6" or comment or disk or first_disk:
        raise CheckpointError("does not end as a zip file does, so it is truncated or damaged: get it again")
    locator = end - _LOCATOR64.size
    if locator >= _END64.size and _read(file, locator, _LOCATOR64)[0] == b"PK\6\7":
        end = locator - _END64.size
        signature, _, _, _, _, _, _, count, size, start = _read(file, end, _END64)
        if signature != b"PK\6\6":
            raise CheckpointError(_DAMAGED)
    if start + size != end or size > MAX_TEXT or count * _ENTRY_SIZE > size:
        raise CheckpointError(_DAMAGED)
    return start


def _place(file: BinaryIO, info: zipfile.ZipInfo, limit: int) -> tuple[int, int]:
    """Where a member's bytes begin and how many they are; `limit` is where members end."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & _ENCRYPTED:
        raise CheckpointError(
            f"its member {info.filename[:80]!a} is compressed or encrypted, which torch.save never does: refused, "
            "because it could fill the memory"
        )
    signature, *_, n_name, n_extra = _read(file, info.header_offset, _LOCAL)
    start = info.header_offset + _LOCAL.size + n_name + n_extra
    if signature != b"PK\3\4" or start + info.file_size > limit:
        raise CheckpointError(f"its member {info.filename[:80]!a} is damaged or truncated: get the file again")
    return start, info.file_size


def _read(file: BinaryIO, position: int, fields: struct.Struct) -> tuple[Any, ...]:
    try:
        file.seek(position)
        return fields.unpack(file.read(fields.size))
    except (OSError, ValueError, struct.error):  # beyond the beginning or the end
        raise CheckpointError("is truncated or damaged: get the file again") from None
