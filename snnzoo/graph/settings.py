"""Checks of a node's settings: a graph may come from a file that nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST = 1 << 40  # of a size in a graph
LONGEST = 64  # numbers in a list


@dataclass(frozen=True)
class Setting:
    """What a setting may be.

    Args:
        expected: in words, for messages.
        accepts: whether a value from JSON is right.
        default: the value where it is left out, `REQUIRED` if it may not be.
    """

    expected: str
    accepts: Callable[[Any], bool]
    default: Any


REQUIRED = object()


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def integer(least: int, most: int = MOST, default: Any = REQUIRED) -> Setting:
    """Return a check for an integer in `[least, most]`."""
    return Setting(f"an integer from {least}", lambda v: _is_integer(v) and least <= v <= most, default)


def integers(least: int, most: int = MOST) -> Setting:
    """Return a check for a list of integers in `[least, most]`."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= LONGEST and all(integer(least, most).accepts(v) for v in value)

    return Setting(f"a list of integers from {least}", accepts, REQUIRED)


def pair(least: int, default: Any = REQUIRED) -> Setting:
    """Return a check for two integers of at least `least`: rows and columns."""
    return Setting(f"two integers from {least}", lambda v: integers(least, 1 << 16).accepts(v) and len(v) == 2, default)


def number(least: float = -1e30, most: float = 1e30, default: Any = REQUIRED) -> Setting:
    """Return a check for a finite number in `[least, most]`."""
    return Setting(f"a number from {least:g} to {most:g}", lambda v: _is_number(v) and least <= v <= most, default)


def numbers(least: float, most: float) -> Setting:
    """Return a check for a pair of numbers in `[least, most]`."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(number(least, most).accepts(v) for v in value)

    return Setting(f"two numbers from {least:g} to {most:g}", accepts, REQUIRED)


def boolean(default: bool) -> Setting:
    """Return a check for true or false."""
    return Setting("true or false", lambda v: isinstance(v, bool), default)


def one_of(*names: str) -> Setting:
    """Return a check for one of some names."""
    return Setting(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names, REQUIRED)


def empty() -> Setting:
    """Return a check for an empty list: "as the kernel"."""
    return Setting("nothing", lambda v: v == [], REQUIRED)


def either(first: Setting, second: Setting) -> Setting:
    """Return a check that takes what one of two takes; the default is the first one's."""
    return Setting(
        f"{first.expected} or {second.expected}", lambda v: first.accepts(v) or second.accepts(v), first.default
    )


def optional(setting: Setting) -> Setting:
    """Return a check that takes null, too, and has it as its default."""
    return Setting(f"{setting.expected} or null", lambda v: v is None or setting.accepts(v), None)


def fields() -> Setting:
    """Return a check for an object with a name: that of an activation, read by `codings.activations`."""
    return Setting("an object with a name", lambda v: isinstance(v, dict) and isinstance(v.get("name"), str), REQUIRED)
