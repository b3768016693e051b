"""Which implementation of the operator runs: by device, or as `use_backend` says."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from snnzoo.ops import cpu, reference
from snnzoo.ops.spec import Arguments, Coding, Gradients, NeuronOutput

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
        from snnzoo.ops import triton_launch
    except Exception as error:  # whatever is wrong with an installation, the reference still works
        return f"triton does not import: {error}"
    if triton_launch.INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no CUDA device (TRITON_INTERPRET=1, set before triton is imported, runs its kernels on a CPU)"


def forced() -> str | None:
    """What `use_backend` says."""
    return _forced


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Outside autograd, by the implementation for the device and dtype of `x_seq`, or the one that is asked for."""
    if _runs_triton(x_seq):
        from snnzoo.ops import triton_launch

        return triton_launch.forward(x_seq, coding, arguments)
    if x_seq.device.type == "cpu":
        return cpu.forward(x_seq, coding, arguments)
    return reference.forward(x_seq, coding, arguments)


def backward(grads: Gradients, x_seq: Tensor, coding: Coding, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input (and the residual), of the initial v, and of 1/tau, for `IF` and `LIF`."""
    if _runs_triton(x_seq):
        from snnzoo.ops import triton_launch

        return triton_launch.backward(grads, x_seq, coding, arguments)
    return cpu.backward(grads, x_seq, coding, arguments)  # plain tensor operations, for any device


def _runs_triton(x_seq: Tensor) -> bool:
    if x_seq.dtype == torch.float64:  # kernels have float32 state
        return False
    return _forced == "triton" or (_forced is None and x_seq.device.type == "cuda" and missing("triton") is None)
