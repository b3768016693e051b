"""Average pools as formats have them: windows that all hold as many values."""

from __future__ import annotations

from collections.abc import Sequence

from snnzoo.graph.graph import Node

Window = tuple[list[int], list[int], list[int]]  # kernel, stride, padding


def even_window(node: Node, before: Sequence[int], behind: Sequence[int]) -> Window | None:
    """Return the window of an average pool, or mean over pixels; None if not all windows divide by the same.

    Args:
        node: an avg_pool2d, or what pools adaptively.
        before, behind: the shapes of its input and output, `[C, H, W]`.
    """
    if node.operation == "avg_pool2d":
        settings = node.settings
        kernel, padding = settings["kernel_size"], settings["padding"]
        if (
            settings["ceil_mode"]
            or settings["divisor_override"]
            or (any(padding) and not settings["count_include_pad"])
        ):
            return None
        return kernel, settings["stride"] or kernel, padding
    (_, height, width), (_, rows, columns) = before, behind
    if height % rows or width % columns:
        return None
    kernel = [height // rows, width // columns]
    return kernel, kernel, [0, 0]
