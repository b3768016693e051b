"""Quick checks of image folders, before anything slow is imported. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from snnzoo.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
EXPECTED = "expected one folder a class with images in it, as FOLDER/cat/1.jpg"


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(parent, name)


def list_images(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted.

    Raises:
        UsageError: if there are none.
    """
    _require_folder(folder)
    images = list(_images_below(folder))
    if not images:
        raise UsageError(f"{folder} has no images in it ({', '.join(IMAGE_SUFFIXES[:3])} ...)")
    return images


def check_image_folder(folder: Path) -> list[str]:
    """The class names of a folder in ImageFolder layout.

    Raises:
        UsageError: saying what is wrong, if it is not one.
    """
    _require_folder(folder)
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise UsageError(f"{folder} has no folders in it: {EXPECTED}")
    empty = [name for name in classes if next(_images_below(folder / name), None) is None]
    if empty:
        raise UsageError(f"{folder / empty[0]} has no images in it: {EXPECTED}")
    return classes


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: {EXPECTED}")
