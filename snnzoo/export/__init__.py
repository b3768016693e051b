"""Taking a network to other tools: NIR graphs, ONNX, torch.export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnzoo.lazy import lazy_exports

if TYPE_CHECKING:
    from snnzoo.export.nir import to_nir, write_nir
    from snnzoo.export.unrolled import export_program, write_onnx, write_pt2

__all__ = ["export_program", "to_nir", "write_nir", "write_onnx", "write_pt2"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("to_nir", "write_nir"), "snnzoo.export.nir"),
        **dict.fromkeys(("export_program", "write_onnx", "write_pt2"), "snnzoo.export.unrolled"),
    },
)
