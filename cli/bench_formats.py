"""`snnzoo bench --formats`: the formats of one file side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnzoo.cli import common
from snnzoo.cli.export import input_shape
from snnzoo.errors import printable

if TYPE_CHECKING:
    from rich.table import Table


def bench_formats(
    file: Path,
    data: str | None,
    batch_size: int,
    time_steps: int | None,
    repeats: int,
    json: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Measure each format that a converted file is exported to, print a table, write JSON."""
    import torch

    from snnzoo import conversion
    from snnzoo.export.formats import images_to_check
    from snnzoo.export.measure import measure_formats

    net = conversion.load(file)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    steps = time_steps or info.time_steps
    images, source = images_to_check(net, input_shape(net, info, None), data, batch_size)
    with common.progress_bars(quiet) as progress:
        results = measure_formats(net, file, images, steps, repeats, progress)
    report: dict[str, Any] = {
        "file": str(file),
        "model": info.model,
        "time_steps": steps,
        "images": len(images),
        "data": source,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "formats": [result.to_dict() for result in results],
    }
    if not common.write_json(json, report, force) and not quiet:
        common.console().print(_table(report))


def _table(report: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = f"{report['model']}, T = {report['time_steps']}, {report['images']} images of {report['data']}, cpu, "
    title += f"{report['threads']} threads"
    caption = "Agreement: images of the network's own class. safetensors: the file itself, in its fast form. nir and "
    caption += "integer run step by step, to verify them: their speed is not that of what they are made for."
    problems = [f"{row['format']}: {row['problem']}" for row in report["formats"] if row["problem"]]
    shown = Text("\n".join(map(printable, [caption, *problems])))
    table = Table(title=Text(printable(title)), caption=shown, title_justify="left", caption_justify="left")
    table.add_column("format", no_wrap=True)
    for heading in ("MB", "ms an image", "agreement %", "logits differ by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["formats"]:
        if row["problem"]:
            table.add_row(row["format"], "-", "-", "-", "-")
            continue
        figures = f"{row['size'] / 1e6:.2f}", f"{row['ms_per_image']:.2f}", f"{100 * row['agreement']:.1f}"
        table.add_row(row["format"], *figures, f"{row['difference']:.2g}")
    return table
