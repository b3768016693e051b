"""The tensors of a file, made from its own bytes: no storage that is not in it, no view beyond its storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnzoo.checkpoints.untrusted.limits import Claims
from snnzoo.errors import CheckpointError

_NAMES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz",
    "float8_e8m0fnu",
)  # fmt: skip
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}

STORAGE_DTYPES: dict[str, torch.dtype] = {  # by the storage's class, on whatever device it was
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Storage:
    """A run of `items` numbers of the file, `start` numbers into what lies there under `key`."""

    key: str
    dtype: torch.dtype
    items: int
    start: int = 0

    @property
    def size(self) -> int:
        """In bytes."""
        return self.items * self.dtype.itemsize


class Tensors:
    """Tensors of which the pickle comes first and the bytes later: without data until `fill`.

    Args:
        file_size: in bytes; limits what the tensors may claim.

    Attributes:
        claims: what they claim so far.
        storages: those in which tensors lie, by key, but for those that are in the pickle.
    """

    def __init__(self, file_size: int) -> None:
        self.claims = Claims(file_size)
        self.storages: dict[str, Storage] = {}
        self._inline: dict[str, Tensor] = {}  # those whose bytes lie in the pickle itself, by a key of their own
        self._outlines: list[tuple[Tensor, Storage, int, Sequence[int], Sequence[int]]] = []

    def storage(self, key: str, dtype: torch.dtype, items: int) -> Storage:
        """The storage of that key and size, which must be the same each time."""
        storage = Storage(key, dtype, items)
        if self.storages.setdefault(key, storage) != storage:
            raise CheckpointError(f"its storage {key[:80]!a} has two sizes: get the file again")
        return storage

    def inline(self, data: bytes, dtype: torch.dtype, items: int) -> Storage:
        """The storage of bytes that lie in the pickle."""
        storage = Storage(f"in the pickle, {len(self._inline)}", dtype, items)
        self.claims.add([items], dtype.itemsize)
        self._inline[storage.key] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
        return storage

    def view(self, storage: Storage, start: int, items: int) -> Storage:
        """A part of a storage."""
        if start + items > storage.items:
            raise CheckpointError(f"a view of its storage {storage.key[:80]!a} is larger than that: get the file again")
        return Storage(storage.key, storage.dtype, items, storage.start + start)

    def tensor(self, storage: Storage, offset: int, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
        """The tensor that lies so in its storage; empty until `fill`. All numbers are checked to be natural ones."""
        steps = [(size - 1) * step for size, step in zip(shape, stride, strict=True)]
        if 0 not in shape and offset + sum(steps) >= storage.items:
            raise CheckpointError(f"a tensor of shape {list(shape)} is larger than its storage: get the file again")
        self.claims.add(shape, storage.dtype.itemsize)
        tensor = torch.empty(0, dtype=storage.dtype)
        self._outlines.append((tensor, storage, storage.start + offset, shape, stride))
        return tensor

    def fill(self, bytes_of: Callable[[Storage], Tensor]) -> None:
        """Give all tensors their data.

        Args:
            bytes_of: the bytes of a storage, as uint8 and aligned for any type; it raises where the file has none of
                that size.
        """
        found = self._inline | {key: bytes_of(storage) for key, storage in self.storages.items()}
        data = {key: content.untyped_storage() for key, content in found.items()}
        for tensor, storage, offset, shape, stride in self._outlines:
            tensor.set_(data[storage.key], offset, tuple(shape), tuple(stride))


def bytes_at(content: Any, start: int, size: int) -> Tensor:
    """`size` bytes of a buffer that can be written, as uint8: a view of it where they are aligned for any type."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    data = torch.frombuffer(content, dtype=torch.uint8, offset=start, count=size)
    return data.clone() if start % 16 else data
