"""What tells that a GPU's memory is too small, whoever asked for it."""

from __future__ import annotations

import re

import torch

# PyTorch's allocator, the CUDA runtime and Triton say the first; cuDNN and cuBLAS name a status
_SAYS = re.compile(r"out of memory|CU(DNN|BLAS)_STATUS_(\w+_)?ALLOC(ATION)?_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _SAYS.search(str(error)) is not None
    )
