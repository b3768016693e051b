"""What each format of a network weighs, takes and gives, beside the network itself."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError
from snnzoo.export import formats
from snnzoo.export.check import Run, compare, expected_logits
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference import prepare_for_inference
from snnzoo.progress import Progress


@dataclass(frozen=True)
class FormatResult:
    """One format: bytes, milliseconds an image, and the share of images of the network's own class.

    `problem` says why a format has no figures. Files run on the CPU, as `snnzoo export` verifies them.
    """

    format: str
    size: int | None = None
    ms_per_image: float | None = None
    agreement: float | None = None
    difference: float | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def measure_formats(
    net: SpikingNetwork,
    file: Path,
    images: Tensor,
    time_steps: int,
    repeats: int = 1,
    progress: Progress | None = None,
) -> list[FormatResult]:
    """Return a result for the file itself, in the network's fast form, and for each format, on the CPU.

    Args:
        net: converted; what is in `file`.
        images: `[N, C, H, W]`.
        repeats: runs, after one that warms up, of which the fastest counts.
    """
    shape = tuple(images.shape[1:])
    expected = expected_logits(net, images, time_steps)
    fast = prepare_for_inference(net)

    def run_fast(images: Tensor) -> Tensor:
        return fast(images.to(fast.dtype).expand(time_steps, *images.shape))

    results = [_measured("safetensors", file, lambda path: run_fast, images, expected, repeats)]
    target = str(net.conversion.recipe.get("for", "generic")) if isinstance(net.conversion, Conversion) else "generic"
    with tempfile.TemporaryDirectory() as folder:
        for place, row in enumerate(formats.FORMATS.values()):
            if progress:
                progress(place, len(formats.FORMATS), f"formats: {row.name}")
            missing = [name for name in (*row.needs, *row.runs_with) if importlib.util.find_spec(name) is None]
            if missing:
                results.append(FormatResult(row.name, problem=f"needs {' and '.join(missing)}"))
                continue
            path = Path(folder) / f"net{row.suffix}"
            try:
                formats.write(row.name, net, path, time_steps, shape, images=None, replace=True, target=target)
                opened = formats.opener(row.name, net, time_steps, shape, target)
                results.append(_measured(row.name, path, opened, images, expected, repeats))
            except SnnzooError as error:
                results.append(FormatResult(row.name, problem=str(error)))
    return results


def _measured(
    name: str, path: Path, opened: Callable[[Path], Run], images: Tensor, expected: Tensor, repeats: int
) -> FormatResult:
    run = opened(path)
    checks = [compare(run, images, expected) for _ in range(1 + repeats)]
    fastest = min(check.ms_per_image for check in checks[1:])
    return FormatResult(name, path.stat().st_size, fastest, checks[0].agreement, checks[0].difference)
