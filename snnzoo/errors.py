"""Errors that a user can act on. Each message is one line that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SnnzooError(Exception):
    """Something outside the program is wrong: a file, its content, the network. Exit code 1."""

    exit_code = 1


class UsageError(SnnzooError, ValueError):
    """The request itself is wrong: an unknown name, an option out of range. Exit code 2."""

    exit_code = 2


class CheckpointError(SnnzooError):
    """A weights file cannot be read, or does not fit the model."""


class UnreadableSample(SnnzooError):
    """One image or recording of a data set cannot be read."""


def suggestion(name: str, known: Iterable[str], see: str) -> str:
    """`Did you mean ...?` for near names, else where to look."""
    by_lower = {other.lower(): other for other in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    listed = " or ".join(filter(None, [", ".join(near[:-1]), *near[-1:]]))
    return f"did you mean {listed}?" if near else see


def printable(text: str) -> str:
    """Text out of a file, or a file's name, in one line, without what a terminal would obey or nothing can show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_few(items: Iterable[str], shown: int = 3) -> str:
    """`a, b, c and 9 more`."""
    items = list(items)
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
