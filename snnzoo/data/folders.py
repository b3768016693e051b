"""Quick checks of folders of data, before anything slow is imported. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from snnzoo.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FRAMES_SUFFIX = ".npz"
EXPECTED = (
    "expected one folder a class with images in it, as FOLDER/cat/1.jpg, or with frames of events, FOLDER/wave/1.npz"
)


def _samples_below(folder: Path) -> Iterator[Path]:
    """Images and frames in `folder` and below, in the order of their names; a link back up is not followed."""
    ahead: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]  # with the folders that it is in
    while ahead:
        parent, above = ahead.pop()
        with _reading(parent):
            facts = parent.stat()
            entries = sorted(os.scandir(parent), key=lambda entry: entry.name)
            folders = {entry.name for entry in entries if _is_folder(entry)}
        place = (facts.st_dev, facts.st_ino)
        if place in above:
            continue
        ahead += [(Path(entry), above | {place}) for entry in reversed(entries) if entry.name in folders]
        for entry in entries:
            if entry.name not in folders and entry.name.lower().endswith((*IMAGE_SUFFIXES, FRAMES_SUFFIX)):
                if os.path.exists(entry) and not entry.is_file():
                    raise UsageError(f"{entry.path}: is a pipe, socket or device, expected a file: remove it")
                yield Path(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Name a folder that cannot be read, rather than leave out what is in it."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder}: cannot read this folder: {error.strerror}") from None


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
    """Return all image files below `folder`, or all files of frames, sorted.

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


def samples_of(paths: Iterable[Path]) -> list[Path]:
    """Return files of images or frames as they are given, and for each folder those in it, sorted.

    Raises:
        UsageError: for a path that is not there, a file of another kind, a folder without samples, or both kinds.
    """
    samples: list[Path] = []
    for path in paths:
        if path.is_dir():
            samples += list_samples(path)
        elif not path.is_file():
            raise UsageError(f"{path}: no such file or folder")
        elif path.suffix.lower() not in (*IMAGE_SUFFIXES, FRAMES_SUFFIX):
            raise UsageError(f"{path}: expected an image ({', '.join(IMAGE_SUFFIXES)}) or frames ({FRAMES_SUFFIX})")
        else:
            samples.append(path)
    kinds = {is_frames(sample): sample for sample in samples}
    if len(kinds) > 1:
        raise UsageError(f"{kinds[False]} is an image and {kinds[True]} holds frames: give one kind at a time")
    return samples


def check_class_folders(folder: Path) -> list[str]:
    """Return the class names of a folder in ImageFolder layout.

    Raises:
        UsageError: saying what is wrong, if it is not one.
    """
    _require_folder(folder)
    with _reading(folder):
        classes = sorted(entry.name for entry in os.scandir(folder) if _is_folder(entry))
    if not classes:
        raise UsageError(f"{folder} has no folders in it: {EXPECTED}")
    empty = [name for name in classes if next(_samples_below(folder / name), None) is None]
    if empty:
        raise UsageError(f"{folder / empty[0]} has no images in it: {EXPECTED}")
    return classes


def numbers_out_of_order(classes: list[str]) -> bool:
    """Whether class folders are numbers, which their order as text, that of the labels, puts out of order."""
    return all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int)


def _require_folder(folder: Path) -> None:
    with _reading(folder):  # a name too long
        exists = folder.exists()
    if not exists:
        raise UsageError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: {EXPECTED}")


def class_names(folder: str | None, num_classes: int) -> list[str] | None:
    """Return the names of the class folders, in the order of their labels; None if they are not the classes.

    Args:
        folder: of images or frames; None, or "digits", has no folders.
        num_classes: of the network.
    """
    if folder in (None, "digits"):
        return None
    try:
        folders = check_class_folders(Path(str(folder)))
    except UsageError:  # images with no classes are enough to calibrate on
        return None
    return folders if len(folders) == num_classes else None
