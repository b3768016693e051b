"""Frames of events, a `.npz` file for each recording: an array `frames [T, C, H, W]`, as tonic's `ToFrame` makes them.

A file of one's own: `numpy.savez_compressed("wave/1.npz", frames=frames)`. The numbers are taken as they are.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snnzoo.errors import SnnzooError, UnreadableSample, first_few

KEY = "frames"
MAX_VALUES = 1 << 28  # of a recording: 1 GiB in float32
_DEFLATE = 1040  # bytes that one compressed byte can stand for, and a little more
_HOW = f"write it with numpy.savez({KEY}=...)"


def read_frames(path: Path) -> Tensor:
    """Return the frames in a file, float32 `[T, C, H, W]`. Pickled objects in it are not read.

    Raises:
        UnreadableSample: naming the file, if it is damaged, or holds no such array of finite numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = _member(archive)
            with archive.open(member) as file:
                _check_header(file, member)
            with archive.open(member) as file:
                frames = np.lib.format.read_array(file, allow_pickle=False)
        tensor = torch.from_numpy(frames.astype(np.float32))
        if not bool(tensor.isfinite().all()):
            raise _Refused(f"{KEY} holds NaN or infinite values")
        return tensor
    except _Refused as error:
        raise UnreadableSample(f"{path}: {error}") from None
    except zipfile.BadZipFile:
        raise UnreadableSample(f"{path}: not an .npz file, or a damaged one: {_HOW}") from None
    except Exception as error:  # of zipfile's and numpy's readers: they have many
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableSample(f"{path}: cannot read these frames: {reason}; remove the file or replace it") from None


class _Refused(Exception):
    """What a file holds is not what it should; without the file's name."""


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The only array of that name."""
    found = [member for member in archive.infolist() if member.filename == f"{KEY}.npy"]
    if not found:
        held = first_few([repr(name.removesuffix(".npy")) for name in archive.namelist()]) or "nothing"
        raise _Refused(f"has no array {KEY!r}, but {held}: {_HOW}")
    if len(found) > 1:
        raise _Refused(f"has {len(found)} arrays called {KEY!r}, expected one")
    if found[0].flag_bits & 1:
        raise _Refused("is encrypted")
    if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Refused(f"its array is compressed in an unusual way: {_HOW}")
    return found[0]


def _check_header(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    """What an array claims to be, before anything is allocated for it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise _Refused(f"its array is of an unknown version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise _Refused("holds pickled objects, which could run code: keep numbers in it")
    if dtype.kind not in "biuf":
        raise _Refused(f"{KEY} must be numbers, got the type {dtype}")
    if len(shape) != 4 or min(shape) < 1:
        raise _Refused(f"{KEY} must have the shape [T, C, H, W], got {list(shape)}")
    values = math.prod(shape)
    if values * dtype.itemsize != member.file_size - file.tell() or member.file_size > _DEFLATE * member.compress_size:
        raise _Refused(f"{KEY} claims the shape {list(shape)}, which does not fit the file's size")
    if values > MAX_VALUES:
        raise _Refused(f"{KEY} has {values:,} values, more than the limit of {MAX_VALUES:,}: split the recording")


class FrameFiles(Dataset[tuple[Tensor, int]]):
    """Files of frames with labels, as (float32 `[T, C, H, W]`, label), all of the shape of the first that can be read.

    Raises:
        UnreadableSample: on reading, naming the file, if it cannot be read.
        SnnzooError: on reading, naming the file, if its frames have another shape.
    """

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self.files, self.labels = files, labels
        self.shape: torch.Size | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        frames = read_frames(self.files[index])
        if self.shape is None:
            self.shape, self.first = frames.shape, self.files[index]
        if frames.shape != self.shape:
            raise SnnzooError(
                f"{self.files[index]}: {KEY} has the shape {list(frames.shape)}, but {self.first} has "
                f"{list(self.shape)}: all recordings need the same number of frames and pixels"
            )
        return frames, self.labels[index]
