"""Which implementation of the operator runs: by device, or as `use_backend` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("reference",)

_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every neuron inside the context on the implementation `name`, whatever the device.

    Raises:
        ValueError: if there is no such implementation.

    Example:
        >>> with use_backend("reference"):
        ...     net(x_seq)
    """
    global _forced
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
