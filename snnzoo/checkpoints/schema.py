"""Tables of fields, by which plain values out of a file are checked. Nothing here imports torch."""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from snnzoo.data.preprocess import INTERPOLATIONS, MAX_SIZE, ORDERS
from snnzoo.errors import SnnzooError, printable, suggestion

__all__ = ["PREPROCESS", "Field", "check", "is_count", "is_number", "is_text", "matches", "shown"]


class Field(NamedTuple):
    """What a field may hold."""

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = False


def check(
    item: Mapping[Any, Any],
    schema: Mapping[str, Field],
    where: str,
    error: type[SnnzooError],
    parent: str = "",
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise an `error` that names `where` and the first field that is unknown, missing or wrong.

    Args:
        parent: what stands before each field's name, such as "preprocess.".
        renamed: new names of fields by old ones.
    """
    for key in item:
        if key not in schema:
            hint = suggestion(str(key), schema, f"known: {', '.join(schema)}")
            if key in renamed:
                hint = f"it is called {renamed[key]!r} now"
            raise error(f"{where}: unknown field {shown(f'{parent}{key}')}: {hint}")
    for key, (expected, accepts, required) in schema.items():
        if required and key not in item:
            raise error(f"{where}: field '{parent}{key}' is missing")
        if key in item and not accepts(item[key]):
            raise error(f"{where}: field '{parent}{key}' must be {expected}, got {shown(item[key])}")


def shown(value: Any) -> str:
    """Return a value as it stands in a message, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 100
    try:
        return printable(short.repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"


def is_number(value: Any) -> bool:
    """Whether it is a finite number, which a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: Any, most: float = math.inf) -> bool:
    """Whether it is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def is_text(value: Any) -> bool:
    """Whether it is text that can be shown, and more than spaces."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def matches(pattern: str) -> Callable[[Any], bool]:
    """A check for text that a regular expression describes wholly."""
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _are_numbers_of_channels(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(map(is_number, value))


def _is_pixels(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(is_count(side, MAX_SIZE) for side in sides)


_PIXELS = Field(f"a number of pixels from 1 to {MAX_SIZE}, or two", _is_pixels, required=True)
_CHANNELS = Field("a list of one number or three", _are_numbers_of_channels, required=True)
PREPROCESS = {
    "resize": _PIXELS,
    "crop": _PIXELS,
    "mean": _CHANNELS,
    "std": _CHANNELS,
    "interpolation": Field(f"one of {', '.join(INTERPOLATIONS)}", INTERPOLATIONS.__contains__),
    "order": Field(f"one of {', '.join(ORDERS)}", ORDERS.__contains__),
}
