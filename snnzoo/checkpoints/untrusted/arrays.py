"""NumPy arrays in a pickle, made from the bytes that lie in it: as tensors, and without NumPy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnzoo.checkpoints.untrusted.limits import MAX_DIMENSIONS, Claims
from snnzoo.checkpoints.untrusted.objects import Opaque
from snnzoo.errors import CheckpointError

ARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"
_DTYPES = {  # by NumPy's letter and size
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


def new_array(*_: Any) -> Opaque:
    """An array before its state is known."""
    return Opaque(ARRAY)


def new_dtype(code: Any, *_: Any) -> Opaque:
    """A type of numbers, little endian until its state says otherwise."""
    return Opaque(DTYPE, (code,))


def array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Opaque:
    """An array as pickle protocol 5 has it."""
    array = Opaque(ARRAY)
    array.attributes = {"state": (1, shape, dtype, order == "F", data)}
    return array


def tensor_of(array: Opaque, claims: Claims) -> Tensor | None:
    """Return the tensor of what is an array of numbers, None for anything else.

    Raises:
        CheckpointError: if its bytes are not as many as it says.
    """
    state = array.attributes.get("state") if array.kind == ARRAY else None
    match state:
        case (_, tuple() as shape, Opaque(kind="numpy.dtype") as kind, fortran, bytes() as data):
            dtype = _dtype(kind)
        case _:
            return None
    if dtype is None or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > MAX_DIMENSIONS:
        return None
    claims.add(shape, dtype.itemsize)
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != len(data):
        raise CheckpointError(f"an array of shape {list(shape)} is damaged: get the file again")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran is True else flat.reshape(shape)


def _dtype(kind: Opaque) -> torch.dtype | None:
    code, *_ = kind.arguments
    state = kind.attributes.get("state")
    order = state[1] if type(state) is tuple and len(state) > 1 else "<"
    if type(code) is not str or order not in ("<", "|", "="):
        return None
    return _DTYPES.get(code.lstrip("<|="))
