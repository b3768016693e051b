"""The implementations of the operator: what each takes, and which of them runs a call."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnzoo.codings import IF, Coding
from snnzoo.ops import compiled, cpu, reference
from snnzoo.ops.spec import Arguments, Gradients, NeuronOutput
from snnzoo.surrogate import MultiArgsSurrogateFunctionBase

__all__ = ["BACKENDS", "Backend", "choose", "forced", "named", "use_backend"]

InputGradients = tuple[Tensor, Tensor, Tensor]  # of the input (and the residual), of the initial v, and of 1/tau


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Args:
        name: for `use_backend`.
        unavailable: returns why it cannot run on this machine; None if it can.
        refuses: returns why it does not take a call `(x_seq, coding, arguments, gradient)`, which it does not where it
            is unavailable; None if it does. `gradient` tells whether a backward pass follows.
        forward: `(x_seq, coding, arguments)`, outside autograd.
        backward: `(gradients, x_seq, coding, arguments)`, for codings of the IF family.
        finds_rows: whether `forward` takes `rows`; else it is given the state of `x_seq`'s images alone.
    """

    name: str
    unavailable: Callable[[], str | None]
    refuses: Callable[[Tensor, Coding, Arguments, bool], str | None]
    forward: Callable[[Tensor, Coding, Arguments], NeuronOutput]
    backward: Callable[[Gradients, Tensor, Coding, Arguments], InputGradients]
    finds_rows: bool = False


def _fast(refuses: Callable[[Tensor, Coding, Arguments, bool], str | None]) -> Any:
    """Return `refuses`, and what no implementation takes that is not the equations themselves."""

    def refuses_too(x_seq: Tensor, coding: Coding, arguments: Arguments, gradient: bool) -> str | None:
        if arguments.output == "both" and arguments.scaled != arguments.sequence_scaled:
            return "a sequence of whole units beside a sum of what they are worth"
        if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in arguments.parameters):
            return "gradients of the threshold or the bias"
        if isinstance(coding, IF) and coding.charge is not None:
            return "a charge of the user's own"
        if isinstance(coding, IF) and not _is_heaviside(coding.surrogate):
            return f"{coding.surrogate}, which is no step function with a gradient_function"
        return refuses(x_seq, coding, arguments, gradient)

    return refuses_too


def _is_heaviside(surrogate: object) -> bool:
    """Return whether it sends spikes as its base class does, and has the gradient that it says."""
    base: Any = MultiArgsSurrogateFunctionBase
    kind: Any = type(surrogate)
    if not (isinstance(surrogate, base) and surrogate.spiking and kind.forward is base.forward):
        return False
    return getattr(kind.spiking_function, "__func__", None) is base.spiking_function.__func__


@functools.cache
def _triton_is_unavailable() -> str | None:
    """Probe once; on a machine with a GPU, warn of what is in the way."""
    reason = _probe_triton()
    if reason is not None and torch.cuda.is_available():
        warnings.warn(f"{reason}; on a GPU neurons run step by step in PyTorch, several times slower", stacklevel=2)
    return reason


def _probe_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        from snnzoo.ops import triton_launch
    except Exception as error:  # whatever is wrong with an installation, the reference still works
        return f"triton does not import: {error}"
    if triton_launch.INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device (TRITON_INTERPRET=1, set before triton is imported, runs its kernels on a CPU)"
    try:
        triton_launch.probe()
    except Exception as error:  # it needs a C compiler, a driver that is new enough, a folder to write to ...
        return f"triton's kernels cannot be launched: {error}"
    return None


def _triton_refuses(x_seq: Tensor, coding: Coding, arguments: Arguments, gradient: bool) -> str | None:
    if x_seq.device.type not in ("cuda", "cpu"):
        return f"tensors on {x_seq.device}"
    return _triton_is_unavailable() or _triton().refuses(x_seq, coding, arguments, gradient)


def _triton() -> Any:
    from snnzoo.ops import triton_launch  # imports triton

    return triton_launch


BACKENDS = (
    Backend("compiled", compiled.unavailable, _fast(compiled.refuses), compiled.forward, cpu.backward, finds_rows=True),
    Backend("cpu", lambda: None, _fast(cpu.refuses), cpu.forward, cpu.backward),
    Backend(
        "triton",
        _triton_is_unavailable,
        _fast(_triton_refuses),
        lambda *call: _triton().forward(*call),
        lambda *call: _triton().backward(*call),
    ),
    Backend("reference", lambda: None, lambda *call: None, reference.forward, reference.backward),
)
NAMES = tuple(backend.name for backend in BACKENDS)

_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every neuron inside the context on one implementation.

    Args:
        name: "reference" (plain PyTorch), "cpu" (the same equations in place, chunk by chunk),
            "compiled" (one pass over memory, in C++ that is built when first needed) or "triton". A call
            that it does not take is a RuntimeError.

    Raises:
        ValueError: if there is no such implementation.
        RuntimeError: if it is unavailable here; the message says why.

    Example:
        >>> with use_backend("reference"):
        ...     net(x_seq)
    """
    global _forced
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    reason = named(name).unavailable()
    if reason is not None:
        raise RuntimeError(f"the {name} backend is unavailable: {reason}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forced() -> str | None:
    """Return what `use_backend` says."""
    return _forced


def choose(x_seq: Tensor, coding: Coding, arguments: Arguments, gradient: bool) -> Backend:
    """Return the implementation that `use_backend` says, else the first that takes the call.

    Raises:
        RuntimeError: if the one that `use_backend` says does not take it.
    """
    if _forced is not None:
        backend = named(_forced)
        require(_forced, backend.refuses(x_seq, coding, arguments, gradient))
        return backend
    for backend in BACKENDS:
        if backend.refuses(x_seq, coding, arguments, gradient) is None:
            return backend
    raise AssertionError("the reference takes every call")


def require(name: str, reason: str | None) -> None:
    """Raise a RuntimeError if there is a reason why the implementation `name` does not take a call."""
    if reason is not None:
        raise RuntimeError(f"the {name} backend does not take this call: {reason}; leave use_backend({name!r}) out")


def named(name: str) -> Backend:
    """Return the implementation of that name."""
    return next(backend for backend in BACKENDS if backend.name == name)
