"""How much a checkpoint may claim, so that a hostile one cannot fill the memory. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from snnzoo.errors import CheckpointError

MAX_TENSORS = 50_000
MAX_DIMENSIONS = 16
MAX_NAME = 1024  # characters of a key
MAX_TEXT = 32 << 20  # bytes of a safetensors header, of an index, of a zip directory
MAX_PICKLE = 256 << 20  # bytes, where a file does not say how many: weights lie behind it, but arrays of NumPy in it
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of torch.save before 1.6, as in torch.serialization
LEGACY_PROTOCOL = 1001

_SLACK = 64 << 20


class Claims:
    """The tensors that a file of `file_size` bytes says it has.

    Raises:
        CheckpointError: from `add`, once they are more than such a file can mean.
    """

    def __init__(self, file_size: int) -> None:
        self._allowed = 2 * file_size + _SLACK  # tied weights are there twice; more is no use
        self._file_size = file_size
        self._tensors = 0
        self._bytes = 0

    def add(self, shape: Sequence[int], item_size: int) -> None:
        """Count one tensor. A dimension of 0 counts as 1: a network of that shape may have to be built."""
        if len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(f"a tensor has {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}")
        size = item_size
        for dimension in shape:
            size *= max(dimension, 1)
        self._bytes += size
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise CheckpointError(f"holds more than {MAX_TENSORS:,} tensors: save the network's state_dict alone")
        if self._bytes > self._allowed:
            raise CheckpointError(
                f"its tensors claim more than the file's {self._file_size:,} bytes can hold, so it is damaged; if they "
                "are expanded views, save them again with .contiguous().clone()"
            )


def is_name(text: str) -> bool:
    """Whether a key could be one of a network: not too long, and no characters that a terminal would obey."""
    return len(text) <= MAX_NAME and text.isprintable()


def check_name(name: str) -> None:
    """Refuse a key that `is_name` says is none.

    Raises:
        CheckpointError: if it is.
    """
    if len(name) > MAX_NAME:
        raise CheckpointError(f"has a key of {len(name):,} characters ({name[:40]!a}...), expected at most {MAX_NAME}")
    if not is_name(name):
        raise CheckpointError(f"has a key with characters that cannot be shown, {name[:80]!a}: rename it")
