"""The zip files of `torch.save` and of TorchScript.

torch.save stores its members without compressing them, and writes nothing after the directory; TorchScript compresses
its code, which is not read. Whatever else a zip file may be is refused, and nothing inflates.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

from snnzoo.checkpoints.untrusted.limits import MAX_TEXT
from snnzoo.checkpoints.untrusted.pickles import read_pickle
from snnzoo.checkpoints.untrusted.tensors import Storage, Tensors, bytes_at
from snnzoo.errors import CheckpointError

# Fields as in PKWARE's APPNOTE.TXT, 4.3: the end of the directory, its zip64 form, and a member's local header.
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY_SIZE = 46  # of a directory's entry, without its name

_ENCRYPTED = 1
_DAMAGED = "its zip directory is damaged: get the file again"


@dataclass(frozen=True)
class _Member:
    """Where a member's bytes begin, how many there are, and whether they are as they were before they went in."""

    start: int
    size: int
    is_plain: bool


def read_zip(file: BinaryIO, mapped: mmap.mmap) -> Any:
    """What an open file of that kind holds, as `pickles.read_pickle`; its tensors are views of `mapped`, the file.

    Raises:
        CheckpointError: if it is damaged, or no file of torch.save, or as `pickles.read_pickle`.
    """
    members = _members(file, len(mapped))
    order = _bytes_of(mapped, members, "byteorder") if "byteorder" in members else b"little"
    if order != b"little":
        raise CheckpointError(
            f"its byte order is {order[:20]!a}, expected little-endian: save it again on such a machine"
        )
    data = _plain(members, "data.pkl")
    file.seek(data.start)
    tensors = Tensors(len(mapped))
    content = read_pickle(file, data.size, tensors)

    def bytes_of(storage: Storage) -> Tensor:
        member = _plain(members, f"data/{storage.key}")
        if member.size != storage.size:
            raise CheckpointError(
                f"its storage {storage.key[:80]!a} has {member.size:,} bytes, not the {storage.size:,} that its pickle "
                "says: get the file again"
            )
        return bytes_at(mapped, member.start, member.size)

    tensors.fill(bytes_of)
    return content


def _bytes_of(mapped: mmap.mmap, members: dict[str, _Member], name: str) -> bytes:
    member = _plain(members, name)
    return mapped[member.start : member.start + member.size]


def _plain(members: dict[str, _Member], name: str) -> _Member:
    """A member that is there, and that torch.save has written as it was."""
    if name not in members:
        raise CheckpointError(f"its member {name[:80]!a} is missing: get the file again")
    if not members[name].is_plain:
        raise CheckpointError(
            f"its member {name[:80]!a} is compressed or encrypted, which torch.save never does: refused, because it "
            "could fill the memory"
        )
    return members[name]


def _members(file: BinaryIO, file_size: int) -> dict[str, _Member]:
    """The members by their names inside the folder that torch.save puts them all in."""
    directory = _check_directory(file, file_size)
    try:
        infos = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError):
        raise CheckpointError(_DAMAGED) from None
    names = [info.filename.partition("/")[2] for info in infos]
    if "data.pkl" not in names:
        raise CheckpointError("is a zip file, but not one of torch.save: if it holds a checkpoint, unpack it first")
    if len({info.filename.lower() for info in infos}) < len(infos) or len({*map(_folder, infos)}) > 1:
        raise CheckpointError("its zip directory has members twice: get the file again")  # torch ignores case
    members = {name: _member(file, info, directory) for name, info in zip(names, infos, strict=True)}
    places = sorted((member.start, member.size) for member in members.values())
    if any(start + size > after for (start, size), (after, _) in itertools.pairwise(places)):
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


def _member(file: BinaryIO, info: zipfile.ZipInfo, limit: int) -> _Member:
    """Where a member lies; `limit` is where members end."""
    signature, *_, n_name, n_extra = _read(file, info.header_offset, _LOCAL)
    start = info.header_offset + _LOCAL.size + n_name + n_extra
    if signature != b"PK\3\4" or start + info.compress_size > limit:
        raise CheckpointError(f"its member {info.filename[:80]!a} is damaged or truncated: get the file again")
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    return _Member(start, info.compress_size, stored and not info.flag_bits & _ENCRYPTED)


def _read(file: BinaryIO, position: int, fields: struct.Struct) -> tuple[Any, ...]:
    try:
        file.seek(position)
        return fields.unpack(file.read(fields.size))
    except (OSError, ValueError, struct.error):  # beyond the beginning or the end
        raise CheckpointError("is truncated or damaged: get the file again") from None
