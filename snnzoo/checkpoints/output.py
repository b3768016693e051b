"""Writing a file wholly or not at all. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from snnzoo.errors import SnnzooError, UsageError


def check_output(path: Path, force: bool) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises:
        UsageError: if `path` exists and `force` is not set, or is a folder.
        SnnzooError: if its folder does not exist or cannot be written to.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the name of a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists: give --force to replace it, or another name with -o")
    if not path.parent.is_dir():
        raise SnnzooError(f"{path}: the folder {path.parent} does not exist")
    try:
        with _temporary_beside(path) as (descriptor, _):
            os.close(descriptor)
    except OSError as error:
        raise SnnzooError(f"{path}: cannot write to the folder {path.parent}: {error.strerror}") from None


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[tuple[int, Path]]:
    """An open temporary file beside `path`, gone at the end unless it was renamed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        yield descriptor, Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it is renamed to `path`, else it is removed.

    Raises:
        SnnzooError: if the file cannot be written.
    """
    try:
        with _temporary_beside(path) as (descriptor, temporary):
            os.close(descriptor)
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    except OSError as error:
        raise SnnzooError(f"{path}: cannot write: {error.strerror or error}") from error
