"""Files that nobody vouches for: gone through on paper, and their tensors made from their own bytes.

`read` is the door. Nothing in a file is called, imported or executed: neither pickle nor torch.load is used.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from snnzoo.checkpoints.untrusted.legacy_files import read_legacy
from snnzoo.checkpoints.untrusted.pickles import read_plain_pickle
from snnzoo.checkpoints.untrusted.tar_files import read_tar
from snnzoo.checkpoints.untrusted.zip_files import read_zip
from snnzoo.errors import CheckpointError

READERS: dict[str, Callable[[BinaryIO, mmap.mmap], Any]] = {
    "zip": read_zip,
    "legacy": read_legacy,
    "tar": read_tar,
    "pickle": read_plain_pickle,
}


def read(path: Path, kind: str) -> Any:
    """What a pickled file holds, tensors as views of the file where they are aligned in it.

    Args:
        kind: which of `READERS` it is for, by its first bytes.

    Returns:
        As `pickles.read_pickle`.

    Raises:
        CheckpointError: if it cannot be read, is damaged, or holds no tensors that the zoo has use for; without the
            file's name.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written stays in memory
            return READERS[kind](file, mapped)
    except OSError as error:
        raise CheckpointError(f"cannot read: {error.strerror or error}") from error
