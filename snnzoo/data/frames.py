"""Frames of events, a `.npz` file for each recording: an array `frames [T, C, H, W]`, as tonic's `ToFrame` makes them.

A file of one's own: `numpy.savez_compressed("wave/1.npz", frames=frames)`. The numbers are taken as they are.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snnzoo.errors import SnnzooError

KEY = "frames"


def read_frames(path: Path) -> Tensor:
    """The frames in a file, float32 `[T, C, H, W]`. Pickled objects in it are not read.

    Raises:
        SnnzooError: naming the file, if it is damaged, or holds no such array of finite numbers.
    """
    if not zipfile.is_zipfile(path):
        raise SnnzooError(f"{path}: not an .npz file, or a damaged one: write it with numpy.savez({KEY}=...)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if KEY not in archive.files:
                held = ", ".join(map(repr, archive.files)) or "nothing"
                raise SnnzooError(f"{path}: has no array {KEY!r}, but {held}: write it with numpy.savez({KEY}=...)")
            frames = archive[KEY]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if "allow_pickle" in str(error):
            raise SnnzooError(f"{path}: holds pickled objects, which could run code: keep numbers in it") from None
        raise SnnzooError(f"{path}: cannot read these frames: {error}; remove the file or replace it") from None
    if frames.dtype.kind not in "biuf":
        raise SnnzooError(f"{path}: {KEY} must be numbers, got the type {frames.dtype}")
    if frames.ndim != 4 or 0 in frames.shape:
        raise SnnzooError(f"{path}: {KEY} must have the shape [T, C, H, W], got {list(frames.shape)}")
    tensor = torch.from_numpy(frames.astype(np.float32))
    if not bool(tensor.isfinite().all()):
        raise SnnzooError(f"{path}: {KEY} holds NaN or infinite values")
    return tensor


class FrameFiles(Dataset[tuple[Tensor, int]]):
    """Files of frames with labels, as (float32 `[T, C, H, W]`, label), all of the shape of the first.

    Raises:
        SnnzooError: on reading, naming the file, if it cannot be read or its frames have another shape.
    """

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self.files, self.labels = files, labels
        self.shape = read_frames(files[0]).shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        frames = read_frames(self.files[index])
        if frames.shape != self.shape:
            raise SnnzooError(
                f"{self.files[index]}: {KEY} has the shape {list(frames.shape)}, but {self.files[0]} has "
                f"{list(self.shape)}: all recordings need the same number of frames and pixels"
            )
        return frames, self.labels[index]
