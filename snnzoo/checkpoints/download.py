"""Getting the file of a manifest entry: from the cache, by download, or by a built-in recipe.

The cache is torch.hub's, with its file names, so what torchvision has fetched is found here, and the
other way round. A download goes to a partial file beside it, which a later try resumes, and gets its
name once size and hash are right. Nothing here imports torch unless a recipe runs.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from snnzoo.checkpoints.manifest import WeightsEntry
from snnzoo.errors import SnnzooError

Progress = Callable[[int, int, str], None]

TRIES = 4
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18


class DownloadError(SnnzooError):
    """A file could not be fetched; the message says where it can be put by hand."""


class _Mismatch(Exception):
    """What was downloaded is not the file that was asked for."""


def cache_dir() -> Path:
    """torch.hub's checkpoint folder, found without importing torch."""
    hub = sys.modules.get("torch.hub")
    if hub is not None:
        return Path(hub.get_dir()) / "checkpoints"
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    torch_home = os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))
    return Path(torch_home).expanduser() / "hub" / "checkpoints"


def cached(entry: WeightsEntry) -> Path | None:
    """The cached file of `entry`, if it is there."""
    path = cache_dir() / entry.filename
    return path if path.is_file() else None


def fetch(entry: WeightsEntry, progress: Progress | None = None) -> Path:
    """The file of a manifest entry, cached or made now.

    Args:
        progress: called with (done, total, description).

    Raises:
        DownloadError: if it can neither be found nor fetched.
    """
    path = cache_dir() / entry.filename
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot create the cache folder {path.parent}: {error.strerror}") from None
    with FileLock(f"{path}.lock"):
        if not path.is_file():  # another process may have been faster
            if entry.url:
                download(entry.url, path, sha256=entry.sha256, progress=progress)
            else:
                _run_recipe(entry, path, progress)
    return path


def _run_recipe(entry: WeightsEntry, path: Path, progress: Progress | None) -> None:
    from snnzoo import digits
    from snnzoo.checkpoints.files import write_safetensors

    state_dict = digits.train_resnet18(progress=progress)
    write_safetensors(path, state_dict, {"source": entry.source})


def download(url: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Download `url` to `path`: retried, resumed, and checked before it gets its name.

    Args:
        sha256: the file's hash or its first digits.

    Raises:
        DownloadError: if it cannot be fetched, or is not the file expected.
    """
    by_hand = f"fetch it by hand to {path}, or use --weights digits, which needs no network"
    if os.environ.get("SNNZOO_OFFLINE", "0") not in ("", "0"):
        raise DownloadError(f"{url} is not in the cache, and SNNZOO_OFFLINE is set: {by_hand}")
    partial = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(0.5 * 2**attempt)
        try:
            _transfer(url, partial, progress)
            _check(partial, sha256)
            os.replace(partial, path)
            return
        except _Mismatch as error:
            partial.unlink(missing_ok=True)
            reason = str(error)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the partial file is no part of what the server has
                partial.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise DownloadError(f"cannot download {url}: {reason}; {by_hand}")


def _transfer(url: str, partial: Path, progress: Progress | None) -> None:
    """Fetch what is still missing of `partial`."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "snnzoo"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:
            have = 0  # no Range support: the whole file comes again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        _copy(response, partial, have, total, progress)
    if total and partial.stat().st_size != total:
        raise OSError(f"the connection ended after {partial.stat().st_size} of {total} bytes")


def _copy(response: Any, partial: Path, have: int, total: int, progress: Progress | None) -> None:
    name = partial.name.removesuffix(".part")
    with partial.open("ab" if have else "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(have, total, f"downloading {name}")


def _check(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(sha256):
        raise _Mismatch(f"its sha256 begins with {actual[: len(sha256)]}, expected {sha256}")
