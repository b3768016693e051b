"""Quick checks of folders of data, before anything slow is imported. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from snnzoo.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FRAMES_SUFFIX = ".npz"
EXPECTED = (
    "expected one folder a class with images in it, as FOLDER/cat/1.jpg, or with frames of events, FOLDER/wave/1.npz"
)


def _samples_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith((*IMAGE_SUFFIXES, FRAMES_SUFFIX)):
                yield Path(parent, name)


def is_frames(file: Path) -> bool:
    """Whether a file holds frames of events, not an image."""
    return file.suffix.lower() == FRAMES_SUFFIX


def file_version(file: Path) -> list[str | int]:
    """Name, size and time of the last change of a file: others where it was replaced."""
    try:
        facts = file.stat()
    except OSError:  # gone: reading it will say so
        return [str(file)]
    return [str(file), facts.st_size, facts.st_mtime_ns]


def list_samples(folder: Path) -> list[Path]:
    """All image files below `folder`, or all files of frames, sorted.

    Raises:
        UsageError: if there are none, or both kinds.
    """
    _require_folder(folder)
    samples = list(_samples_below(folder))
    if not samples:
        raise UsageError(
            f"{folder} has no images in it ({', '.join(IMAGE_SUFFIXES[:3])} ...), nor frames ({FRAMES_SUFFIX})"
        )
    kinds = {is_frames(sample): sample for sample in samples}
    if len(kinds) > 1:
        raise UsageError(
            f"{folder} has both images and frames in it, {kinds[False]} and {kinds[True]}: keep them apart"
        )
    return samples


def check_class_folders(folder: Path) -> list[str]:
    """The class names of a folder in ImageFolder layout.

    Raises:
        UsageError: saying what is wrong, if it is not one.
    """
    _require_folder(folder)
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise UsageError(f"{folder} has no folders in it: {EXPECTED}")
    empty = [name for name in classes if next(_samples_below(folder / name), None) is None]
    if empty:
        raise UsageError(f"{folder / empty[0]} has no images in it: {EXPECTED}")
    return classes


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: {EXPECTED}")
