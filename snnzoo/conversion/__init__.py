"""ANN-to-SNN conversion, and the file that a converted network is kept in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.conversion.ann import capture_ann
    from snnzoo.conversion.choice import choose
    from snnzoo.conversion.converted_file import Conversion, exit_rule, load, load_with_ann, save
    from snnzoo.conversion.converter import convert, convert_ann
    from snnzoo.conversion.exits import calibrate_exits

__all__ = [
    "Conversion",
    "calibrate_exits",
    "capture_ann",
    "choose",
    "convert",
    "convert_ann",
    "exit_rule",
    "load",
    "load_with_ann",
    "save",
]

_FILE, _CONVERTER = "snnzoo.conversion.converted_file", "snnzoo.conversion.converter"
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Conversion", "exit_rule", "load", "load_with_ann", "save"), _FILE),
        "calibrate_exits": "snnzoo.conversion.exits",
        "capture_ann": "snnzoo.conversion.ann",
        "choose": "snnzoo.conversion.choice",
        **dict.fromkeys(("convert", "convert_ann"), _CONVERTER),
    },
)
