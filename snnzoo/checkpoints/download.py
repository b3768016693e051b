"""Getting the file of a manifest entry: from the cache, by download, or by a built-in builder.

The cache is torch.hub's, with its file names, so what torchvision has fetched is found here, and the
other way round. A download goes to a partial file beside it, which a later try resumes, and gets its
name once size and hash are right. A file found in the cache is checked too, each time that it is
fetched: hashing takes a fraction of the time of reading the weights. Nothing here imports torch unless
a builder runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import math
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnzoo.checkpoints.manifest import WeightsEntry
from snnzoo.errors import SnnzooError
from snnzoo.progress import Progress

TRIES = 4  # in a row that bring the file no further
MAX_TRIES = 200
SLOWEST = 1024  # bytes per second, over SLOW_SECONDS
SLOW_SECONDS = 60.0
BACKOFF = 0.5  # seconds before the second try, doubled before each one after it
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18  # bytes
MIB = 1 << 20
MAX_SIZE = 1 << 36  # bytes of a file whose size is not known


_MISTAKEN = {b"<": "a web page", b"\xef\xbb\xbf<": "a web page", b"\x1f\x8b": "compressed by gzip"}


class DownloadError(SnnzooError):
    """A file could not be fetched; the message says where it can be put by hand."""


class _Failure(Exception):
    """A try that failed; `again` says whether another one may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in reason))  # a server may have written it
        self.again = again


class _Mismatch(Exception):
    """A file is not the one that was asked for."""


def cache_dir() -> Path:
    """Return torch.hub's checkpoint folder, found without importing torch."""
    hub = sys.modules.get("torch.hub")
    if hub is not None:
        return Path(hub.get_dir()) / "checkpoints"
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    torch_home = os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))
    return Path(torch_home).expanduser() / "hub" / "checkpoints"


def cache_path(entry: WeightsEntry) -> Path:
    """Return where the file of `entry` is, or would be put."""
    return cache_dir() / entry.filename


def is_cached(entry: WeightsEntry) -> bool:
    """Whether the cache has a file for `entry`; what is in it is checked by `fetch`."""
    return cache_path(entry).is_file()


def is_offline() -> bool:
    """Whether SNNZOO_OFFLINE is set, so that nothing may be downloaded."""
    return os.environ.get("SNNZOO_OFFLINE", "0") not in ("", "0")


def fetch(entry: WeightsEntry, progress: Progress | None = None) -> Path:
    """Return the file of a manifest entry: cached, downloaded or made now. Its size and hash are right.

    Processes that want the same file at once do the work once: the others wait for the first.

    Args:
        progress: called with (done, total, description); total is 0 where it is not known.

    Raises:
        DownloadError: if it can neither be found nor fetched, or if the cached file is another one
            than the entry describes.
    """
    path = cache_path(entry)
    if not path.is_file():
        with _lock(path, progress):
            if not path.is_file():  # another process may have been faster
                if entry.url:
                    download(entry.url, path, sha256=entry.sha256, size=entry.size, progress=progress)
                else:
                    _run_builder(entry, path, progress)
                return path
    try:
        _check(path, entry.sha256, entry.size)
    except _Mismatch as mismatch:
        raise DownloadError(f"{path} is not {entry.tag}: {mismatch}; delete it, then try again") from None
    except OSError as error:
        raise DownloadError(f"cannot read {path}: {error.strerror}") from None
    return path


def download(
    url: str, path: Path, *, sha256: str | None = None, size: float | None = None, progress: Progress | None = None
) -> None:
    """Download `url` to `path`: retried, resumed, and checked before it gets its name.

    An interrupted download leaves `path` with `.part` appended. That is resumed if there is a hash to
    check the whole by, else begun anew. Proxies are those of the environment (`https_proxy`, `no_proxy`).

    Args:
        sha256: the file's hash or its first digits, hexadecimal, lower case.
        size: of the file in MiB, right to three decimals. No more than that is received.
        progress: called with (bytes so far, bytes in all or 0, description).

    Raises:
        DownloadError: if it cannot be fetched, is not the file expected, or SNNZOO_OFFLINE is set.
    """
    by_hand = f"put it at {path} by hand, or use resnet18 --weights digits, which needs no network"
    if is_offline():
        raise DownloadError(f"{url} is not in the cache, and SNNZOO_OFFLINE is set: {by_hand}")
    partial = path.with_name(path.name + ".part")
    try:
        _download(url, partial, sha256, size, progress)
        os.replace(partial, path)
    except (_Failure, _Mismatch) as error:
        raise DownloadError(f"cannot download {url}: {error}; {by_hand}") from None
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error.strerror}") from None


def _download(url: str, partial: Path, sha256: str | None, size: float | None, progress: Progress | None) -> None:
    """Make `partial` the whole file: try on as long as tries get further, then a few times more."""
    furthest = failures = 0
    for _ in range(MAX_TRIES):
        if sha256 is None:
            partial.unlink(missing_ok=True)
        have = _length(partial)
        try:
            _transfer(url, partial, have, size, progress)
            _check(partial, sha256, size)
            return
        except _Failure as failure:
            received = _length(partial)
            failures = 1 if received > furthest else failures + 1
            furthest = max(furthest, received)
            if not failure.again or failures >= TRIES:
                raise
        except _Mismatch:
            partial.unlink(missing_ok=True)
            failures += 1
            if not have:
                raise
            # else it was begun when the server had another file: once more, from its first byte
        time.sleep(BACKOFF * 2 ** (failures - 1))
    raise _Failure(f"the connection ended {MAX_TRIES} times", again=False)


def _transfer(url: str, partial: Path, have: int, size: float | None, progress: Progress | None) -> None:
    """Append to `partial`, which has `have` bytes, what it lacks; what is too large is refused, or cut off."""
    response = _open(url, have)
    if response is None:  # there is no more: the check will say whether that is the whole
        return
    low, high = _bounds(size)
    with response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":  # nothing was asked for but the file itself
            raise _Failure(f"the server sends it compressed ({encoding})", again=False)
        if response.status != 206:
            have = 0  # no Range support: the whole file comes again
        expected = low
        if response.length is not None:
            expected = have + response.length
            _check_size(expected, size)
        since, had = time.monotonic(), have
        with partial.open("ab" if have else "wb") as file:
            while have <= high and (chunk := _read(response)):
                file.write(chunk)
                have += len(chunk)
                if (seconds := time.monotonic() - since) >= SLOW_SECONDS:
                    if have - had < SLOWEST * seconds:
                        raise _Failure(f"it comes with less than {SLOWEST} bytes per second", again=True)
                    since, had = time.monotonic(), have
                if progress:
                    progress(have, expected, f"downloading {partial.name.removesuffix('.part')}")
    if have < expected:
        raise _Failure(f"the connection ended after {have} of {expected} bytes", again=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no step of a redirect that leads to less: http may lead to https, neither to anything else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith(f"{req.type}:") and not newurl.startswith("https:"):
            raise _Failure(f"it leads to {newurl}, which is not {req.type}", again=False)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int) -> Any:
    """The server's response from byte `start` on; None if the file has no byte there."""
    headers = {"User-Agent": "snnzoo", **({"Range": f"bytes={start}-"} if start else {})}
    with _network():
        try:
            request = urllib.request.Request(url, headers=headers)
            return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and start:
                return None
            raise


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has arrived, waiting for the first byte; nothing at the end."""
    with _network():
        return response.read1(CHUNK)


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Turn what goes wrong on the network into a _Failure, so that OSErrors that remain are the disk's."""
    try:
        yield
    except urllib.error.HTTPError as error:
        again = error.code >= 500 or error.code in (408, 425, 429)
        raise _Failure(f"HTTP {error.code} {error.reason}", again=again) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        # a url that cannot be parsed, a certificate that is not trusted
        hopeless = isinstance(reason, ValueError | http.client.InvalidURL)
        raise _Failure(str(reason) or type(reason).__name__, again=not hopeless) from None


@contextlib.contextmanager
def _lock(path: Path, progress: Progress | None) -> Iterator[None]:
    """Hold the lock of a file in the cache; the system frees it even if this process is killed."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress(0, 0, f"waiting for another process that fetches {path.name}")
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise DownloadError(f"cannot write to the cache folder {path.parent}: {reason}") from None
    try:
        yield
    finally:
        lock.release()


def _run_builder(entry: WeightsEntry, path: Path, progress: Progress | None) -> None:
    from snnzoo.checkpoints.files import write_safetensors
    from snnzoo.data import digits

    state_dict = digits.train_resnet18(progress=progress)
    write_safetensors(path, state_dict, {"source": entry.source})


def _bounds(size: float | None) -> tuple[int, int]:
    """The fewest and the most bytes of a file of `size` MiB, a figure rounded to three decimals."""
    if size is None:
        return 0, MAX_SIZE
    return math.floor((size - 0.0005) * MIB), math.ceil((size + 0.0005) * MIB)


def _check(path: Path, sha256: str | None, size: float | None) -> None:
    """Raise a _Mismatch unless the file has that size and hash."""
    _check_size(_length(path), size)
    if sha256 is not None:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not actual.startswith(sha256):
            raise _Mismatch(f"its sha256 begins with {actual[: len(sha256)]}, expected {sha256}")
        return
    with path.open("rb") as file:
        head = file.read(512).lstrip()
    for start, what in _MISTAKEN.items():
        if head.startswith(start):
            raise _Mismatch(f"it is {what}, not a checkpoint")


def _check_size(length: int, size: float | None) -> None:
    low, high = _bounds(size)
    if not length:
        raise _Mismatch("the file is empty")
    if length > high:
        raise _Mismatch(f"the file is larger than the expected {size if size is not None else MAX_SIZE / MIB:g} MiB")
    if length < low:
        raise _Mismatch(f"the file has {length} bytes, expected {size} MiB")


def _length(path: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0
