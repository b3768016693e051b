"""Writing files wholly or not at all. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from snnzoo.errors import SnnzooError, UsageError


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Iterable[Path] = (), *, force: bool) -> None:
    """Refuse outputs that could not be written, or would destroy something, before any work is done.

    Args:
        outputs: names of files, by the option that gives each; None and "-" (standard output) are none.
        inputs: files that are read.
        force: whether files that exist may be replaced.

    Raises:
        UsageError: if an output exists and `force` is not set, is no regular file, or is an input or another output.
        SnnzooError: if its folder does not exist or cannot be written to.
    """
    places = dict.fromkeys(map(_place, inputs), "what this command reads")
    for option, name in outputs.items():
        if name in (None, "-"):
            continue
        path = Path(str(name))
        other = places.setdefault(_place(path), f"also {option}")
        if other != f"also {option}":
            raise UsageError(f"{option} {path} is {other}: give another name")
        _check_output(path, force)


def _real(path: Path) -> Path:
    """Where a file is, behind links: an output that is a link replaces what that leads to."""
    return Path(os.path.realpath(path))


def _place(path: Path) -> tuple[int, int] | Path:
    """What is the same for all names of a file: links of both kinds, and spellings where case does not count."""
    try:
        facts = path.stat()
    except OSError:  # not there, or `_check_output` will say
        return _real(path)
    return facts.st_dev, facts.st_ino


def _check_output(path: Path, force: bool) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name too long, a loop of links
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    else:
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a folder: give the name of a file")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path} is a pipe, socket or device: give the name of a file")
        if not force:
            raise UsageError(f"{path} exists: give --force to replace it, or another name with -o")
    folder = _real(path).parent
    if not folder.is_dir():
        raise SnnzooError(f"{path}: the folder {folder if path.is_symlink() else path.parent} does not exist")
    try:
        with _workplace(_real(path)):
            pass
    except OSError as error:
        raise SnnzooError(f"{path}: cannot write to the folder {path.parent}: {error.strerror}") from None


@contextlib.contextmanager
def atomic_output(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a path to write to, with the suffix of `path`; on success that file becomes `path`, else it is removed.

    What is there once `path` has its name is on the disk. A file that is replaced keeps its permissions, a link stays
    one. What runs that were killed have left is removed.

    Args:
        replace: whether a file of that name may be replaced.

    Raises:
        SnnzooError: if the file cannot be written, or is there already and may not be replaced.
    """
    target = _real(path)
    try:
        with _workplace(target) as folder:
            temporary = folder / f"file{target.suffix}"
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666))
            mode = _mode(target) or _mode(temporary)
            yield temporary
            os.chmod(temporary, mode)
            _to_disk(temporary)
            if replace:
                os.replace(temporary, target)
            else:
                _rename_to_new(temporary, target)
            with contextlib.suppress(OSError):  # a file system whose folders cannot be synced
                _to_disk(target.parent)
    except FileExistsError:
        raise SnnzooError(f"{path}: another program has written it by now: give --force, or another name") from None
    except OSError as error:
        raise SnnzooError(f"{path}: cannot write: {error.strerror or error}") from error


def _mode(path: Path) -> int:
    """The permissions of a file, 0 if it is not there."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return 0


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename, unless `target` is there by now, which is a FileExistsError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError from None
        os.replace(temporary, target)


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write a file in, gone at the end. It is locked while its process lives."""
    prefix = f".snnzoo-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"
    for left in path.parent.glob(f"{prefix}*.part"):
        with _lock(left) as is_stale:
            if is_stale:  # its process was killed
                shutil.rmtree(left, ignore_errors=True)
    folder = path.with_name(f"{prefix}{secrets.token_hex(4)}.part")
    folder.mkdir()
    try:
        with _lock(folder):
            folder.mkdir(exist_ok=True)  # another process may have removed it before it was locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder for this process, which the system undoes if it is killed. Gives whether that worked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # gone, or a system that opens no folders
        yield False
        return
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # locked by another process, or a system or file system without such locks
        return False
    return True
