"""Which implementation of the operator runs: by device, or as `use_backend` says."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from snnzoo.ops import cpu, reference

NAMES = ("reference", "cpu", "triton")

_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every neuron inside the context on one implementation, whatever the device.

    Args:
        name: "reference" (plain PyTorch), "cpu" (the same equations in place, chunk by chunk) or "triton".

    Raises:
        ValueError: if there is no such implementation.
        RuntimeError: if it is not to be had here; the message says why.

    Example:
        >>> with use_backend("reference"):
        ...     net(x_seq)
    """
    global _forced
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    reason = missing(name)
    if reason is not None:
        raise RuntimeError(f"the {name} backend is not to be had: {reason}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def missing(name: str) -> str | None:
    """Why the implementation `name` is not to be had; None if it is."""
    return _triton_is_missing() if name == "triton" else None


@functools.cache
def _triton_is_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        from snnzoo.ops import triton_kernels
    except Exception as error:  # whatever is wrong with an installation, the reference still works
        return f"triton does not import: {error}"
    if triton_kernels.INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no CUDA device (TRITON_INTERPRET=1, set before triton is imported, runs its kernels on a CPU)"


def choose(device: torch.device) -> str:
    """The name of the implementation that runs on `device`."""
    if _forced is not None:
        return _forced
    if device.type == "cpu":
        return "cpu"
    return "triton" if device.type == "cuda" and missing("triton") is None else "reference"


def implementation(name: str) -> ModuleType:
    """The module that has it: `forward`, and but for the reference `backward`."""
    if name == "triton":
        from snnzoo.ops import triton_kernels

        return triton_kernels
    return cpu if name == "cpu" else reference
