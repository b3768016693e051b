"""The tables that convert, eval and demo print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from snnzoo.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from snnzoo.conversion import Conversion
    from snnzoo.evaluation import Evaluation
    from snnzoo.evaluation.results import ExitResult, TimeStepResult


def label_of(file: Path, files: list[Path]) -> str:
    """Return the file's name, with its folder where another file has the same."""
    return file.stem if sum(other.name == file.name for other in files) == 1 else str(file)


def is_graded(coding: Any) -> bool:
    """Whether spikes carry more than their sign."""
    return getattr(coding, "levels", 1) > 1


HEADINGS = ("T", "ANN top-1 %", "SNN top-1 %", "gap", "agreement %", "events", "energy µJ", "images/s")
GAPS = "Gap: ANN minus SNN, in points. Agreement: same top-1 class as the ANN. Events: per neuron and step. "
ENERGY = "Energy: of an image, 45 nm estimate of the arithmetic"
GRADED = " Spikes are graded: they carry several levels, and cost an accumulation for each bit."


def results_table(result: Evaluation, title: str, *, graded: bool) -> Table:
    """Return a table, one row a number of time steps, each beside the ANN, if there is one."""
    if not result.ann:
        table = _table(title, f"Events: per neuron and step. {ENERGY}.", ("T", "top-1 %", "top-5 %", *HEADINGS[5:]))
        for row in result.results:
            table.add_row(str(row.time_steps), f"{100 * row.top1:.2f}", f"{100 * row.top5:.2f}", *_costs(row))
        return table
    caption = f"{GAPS}{ENERGY}; ANN {result.ann['energy_uj']:.1f} µJ.{GRADED if graded else ''}"
    if result.exit:
        caption += f"\n{exit_line(result.exit)}"
    table = _table(title, caption, HEADINGS)
    ann = f"{100 * result.ann['top1']:.2f}"
    for time_steps, *rest in _rows(result):
        table.add_row(time_steps, ann, *rest)
    return table


def energy_table(result: Evaluation) -> Table:
    """Return a table, one row a model of energy, after the last T."""
    last = result.results[-1].time_steps
    caption = (
        "Ratio: energy of the spiking network over that of the ANN. Above break-even: layers whose events cost more "
        "than what they save. No model contains what keeps a chip awake"
    )
    headings = ("model", "ANN µJ", "SNN µJ", "ratio", "layers above break-even", "contains")
    table = _table(f"Energy of an image at T={last}, 45 nm", caption, headings)
    for row in result.energy:
        above = f"{row.above_break_even} of {len(row.layers)}"
        table.add_row(row.model, f"{row.ann_uj:.3g}", f"{row.snn_uj:.3g}", f"{row.ratio:.2f}", above, row.contains)
    return table


def comparison_table(measured: list[tuple[Path, Conversion, Evaluation]], title: str) -> Table:
    """Return a table, the rows of several networks, one below the other, each below its ANN's."""
    from rich.text import Text

    labels = [label_of(file, [path for path, *_ in measured]) for file, *_ in measured]
    codings = "".join(
        f"\n{label}: {info.coding}, {info.coding.spikes}" for label, (_, info, _) in zip(labels, measured, strict=True)
    )
    graded = any(is_graded(info.coding) for _, info, _ in measured)
    caption = f"{GAPS}{ENERGY}.{GRADED if graded else ''}{codings}"
    caption += "".join(f"\n{label}: {_ratios(result)}" for label, (*_, result) in zip(labels, measured, strict=True))
    table = _table(title, caption, ("network", "T", "top-1 %", *HEADINGS[3:]))
    for label, (_, _, result) in zip(labels, measured, strict=True):
        ann = result.ann
        table.add_row(
            Text(printable(label)), "ANN", f"{100 * ann['top1']:.2f}", "", "", "", f"{ann['energy_uj']:.1f}", ""
        )
        for row in _rows(result):
            table.add_row("", *row)
        table.add_section()
    return table


def _ratios(result: Evaluation) -> str:
    ratios = ", ".join(f"{row.model} {row.ratio:.2f}" for row in result.energy)
    return f"energy over the ANN's at T={result.results[-1].time_steps}: {ratios}"


def _table(title: str, caption: str, headings: tuple[str, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title_text, caption_text = Text(printable(title)), Text("\n".join(map(printable, caption.splitlines())))
    table = Table(title=title_text, caption=caption_text, title_justify="left", caption_justify="left")
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading in ("network", "model", "contains") else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def _rows(result: Evaluation) -> list[list[str]]:
    rows: list[tuple[str, TimeStepResult | ExitResult]] = [(str(row.time_steps), row) for row in result.results]
    if result.exit:
        rows.append((f"ø {result.exit.mean_steps:.2f}", result.exit))
    return [
        [
            name,
            f"{100 * row.top1:.2f}",
            f"{100 * (result.ann['top1'] - row.top1):+.2f}",
            f"{100 * (row.agreement or 0.0):.2f}",
            *_costs(row),
        ]
        for name, row in rows
    ]


def exit_line(row: ExitResult) -> str:
    """Return the histogram of early exit in words."""
    images = sum(row.steps)
    shares = ", ".join(f"{100 * count / images:.1f} % at {t}" for t, count in enumerate(row.steps, start=1) if count)
    return f"ø: early exit. Images left when they were sure: {shares}"


def _costs(row: TimeStepResult | ExitResult) -> list[str]:
    return [f"{row.events_per_neuron_step:.3f}", f"{row.energy_uj:.1f}", f"{row.images_per_second:.1f}"]


def choice_table(choice: dict[str, Any]) -> Table:
    """Return a table, one row a candidate for time steps and levels."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("T", "levels", "agreement %", "events per neuron", "energy, x ANN"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("")
    for candidate in choice["candidates"]:
        mark = "<- chosen" if candidate == choice["chosen"] else ""
        numbers = tuple(f"{candidate[name]:.2f}" for name in ("agreement", "events", "energy"))
        table.add_row(str(candidate["time_steps"]), str(candidate["levels"]), *numbers, mark)
    tolerance, held_back = choice["tolerance"], choice["held_back"]
    found = "the fewest steps, then levels," if choice["within"] else "none is, so this is the closest,"
    table.caption = f"{found} within {tolerance:g} points of the ANN on {held_back} held-back images"
    table.caption_justify = "left"
    return table


def fit_line(fit: dict[str, Any]) -> str:
    """Return a line on how well a network's BN fits its images."""
    layers, worst = fit["layers"], fit["worst"]
    return (
        f"BN statistics and {fit['images']} images differ by {fit['mean']:.2g} nats on average over {len(layers)} "
        f"layers, {layers[worst]:.2g} in {printable(worst)}"
    )


def layer_table(layers: list[dict[str, Any]]) -> Table:
    """Return a table, one row a layer of neurons, as calibration left it."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("neurons", "channels", "threshold", "clipped %", "error", "events"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "neurons" else "right")
    for layer in layers:
        table.add_row(
            layer["site"],
            str(layer["channels"]),
            f"{layer['threshold']:.4g}",
            f"{100 * layer['clipped']:.3f}",
            f"{layer['error']:.2e}",
            f"{layer['events']:.3f}",
        )
    table.caption = "error: squared, over the mean square of the ANN's activation; events: per neuron and step"
    table.caption_justify = "left"
    return table
