"""Reading checkpoints safely, and writing safetensors files wholly or not at all.

A file is what its first bytes say, whatever its suffix. Checkpoints are not trusted: no code in them is run, and
what they claim to hold is checked against their size before anything is allocated.
"""

from __future__ import annotations

import functools
import hashlib
import json
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snnzoo.checkpoints import shards, untrusted
from snnzoo.checkpoints.output import atomic_output
from snnzoo.checkpoints.untrusted.limits import LEGACY_MAGIC, MAX_TEXT, Claims, check_name
from snnzoo.errors import CheckpointError

FORMATS = {
    "safetensors": "safetensors",
    "index": "sharded, by its index",
    "zip": "PyTorch (zip)",
    "legacy": "PyTorch (pickle, before 1.6)",
    "tar": "PyTorch (tar, before 0.1.10)",
    "pickle": "pickle",
}
_SUFFIXES = (".safetensors", ".index.json", ".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl")
_MISTAKEN = {  # what users download or keep under a checkpoint's name
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for: run git lfs pull",
    b"<": "a web page: download the file itself",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"\x89HDF": "an HDF5 file, as of Keras: the zoo reads PyTorch's and safetensors",
    b"\x93NUMPY": "a NumPy array: the zoo reads PyTorch's and safetensors",
}


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds: its tensors on the CPU, in the dicts and beside the plain values that it has.

    Reads .safetensors, .pt, .pth, .th, .bin, .ckpt and .pkl files, in all formats that torch.save has had and as plain
    pickles, of tensors or NumPy arrays, and the shards of a model.safetensors.index.json or
    pytorch_model.bin.index.json. Pickled files are gone through without unpickling (see `untrusted`): whole modules
    come as their state dicts, other objects as mappings of what they kept.
    Tensors are mapped from the file where its format allows.

    Raises:
        CheckpointError: if the file cannot be read, is damaged, or holds anything else.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path: Path) -> tuple[Any, dict[str, str]]:
    """As `read_checkpoint`, and the metadata of a safetensors file ({} for others)."""
    kind = file_format(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "index":
        return shards.read_sharded(path, _read_shard), {}
    try:
        return untrusted.read(path, kind), {}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def file_format(path: Path) -> str:
    """Return which of `FORMATS` a file is in, by its first bytes.

    Raises:
        CheckpointError: if it is in none, or no file.
    """
    require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from None
    if not head:
        raise CheckpointError(f"{path}: is empty")
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size:
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    if head[:1] == b"\x80":
        return "legacy" if LEGACY_MAGIC.to_bytes(10, "little") in head[:32] else "pickle"
    if head.lstrip()[:1] == b"{":
        return "index"
    what = next((what for start, what in _MISTAKEN.items() if head.startswith(start)), None)
    if what is None and path.suffix == ".safetensors":
        what = "no safetensors file, or damaged: its header does not fit its size"
    raise CheckpointError(f"{path}: is {what or 'no checkpoint, or damaged: expected a PyTorch or safetensors file'}")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_shard(path: Path) -> Mapping[str, Tensor]:
    if file_format(path) == "index":
        raise CheckpointError(f"{path}: is an index, expected a file of tensors")
    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds more than named tensors, expected a part of a state dict")
    return content


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, mapped from the file, and the metadata of a safetensors file.

    Raises:
        CheckpointError: if it is not a valid one.
    """
    require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if int.from_bytes(stream.read(8), "little") > MAX_TEXT:
                raise CheckpointError(f"not a safetensors file: its header is beyond {MAX_TEXT:,} bytes")
        if not _is_utf8(path):
            raise CheckpointError("its name is not UTF-8, which the safetensors library needs: rename it")
        claims = Claims(size)
        tensors = {}
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                check_name(key)
                tensors[key] = value = file.get_tensor(key)
                if not _can_be_computed_with(value.dtype):
                    raise CheckpointError(f"{key} is of type {value.dtype}, which PyTorch cannot compute with")
                claims.add(value.shape, value.element_size())
            return tensors, dict(file.metadata() or {})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # beyond SafetensorError, what the types it does not know raise
        raise CheckpointError(f"{path}: not a safetensors file, or damaged: {_one_line(error)}") from error


@functools.cache
def _can_be_computed_with(dtype: torch.dtype) -> bool:
    try:
        torch.empty(1, dtype=dtype).clone().to(torch.complex64 if dtype.is_complex else torch.float32)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, replace: bool = True
) -> None:
    """Write a safetensors file beside `path`, then rename it to `path`. The same content is the same bytes.

    Args:
        replace: whether a file of that name may be replaced.

    Raises:
        SnnzooError: if it cannot be written.
    """
    contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_output(path, replace=replace) as temporary:
        try:
            save_file(contiguous, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(_one_line(error)) from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata, which the library writes in any order, in that of its keys, in place."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the library wrote its header more tersely than JSON can be"
        file.seek(8)
        file.write(text.ljust(length))


def require_file(path: Path) -> None:
    """Raise a CheckpointError unless `path` is a regular file that is there and can be read, or a link to one."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            inside = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(_SUFFIXES))
            hint = f": give a file in it, such as {inside[0]}" if inside else ""
            raise CheckpointError(f"{path}: is a folder, expected a checkpoint file{hint}")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path}: is a pipe, socket or device, expected a checkpoint file")
        path.open("rb").close()
    except FileNotFoundError:
        what = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise CheckpointError(f"{path}: {what}") from None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot read: {reason}") from None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + " ..."
