"""What `snnzoo eval` prints and writes of what it measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnzoo.cli import common
from snnzoo.cli.tables import comparison_table, energy_table, is_graded, label_of, results_table
from snnzoo.recognition.snn import TrainedNetwork

if TYPE_CHECKING:
    from snnzoo.conversion import Conversion
    from snnzoo.evaluation import Evaluation
    from snnzoo.report.figures import Measured

    Results = Sequence[tuple[Path, Conversion | TrainedNetwork, Evaluation]]
    Converted = list[tuple[Path, Conversion, Evaluation]]


def as_json(measured: Results, settings: dict[str, str]) -> dict[str, Any]:
    """Return the results of one network, or those of several as a list `evaluations`."""
    reports = [
        {
            "file": str(file),
            "model": info.model,
            **_made_of(info),
            "data": settings["data"],
            "images": result.images,
            "device": settings["device"],
            "dtype": settings["dtype"],
            **result.to_dict(),
            **({"exit": {"tolerance": float(settings["exit"]), **asdict(result.exit)}} if result.exit else {}),
        }
        for file, info, result in measured
    ]
    return reports[0] if len(reports) == 1 else {"evaluations": reports}


def _made_of(info: Conversion | TrainedNetwork) -> dict[str, Any]:
    if isinstance(info, TrainedNetwork):
        return {"neuron": info.neuron}
    return {"recipe": info.recipe["name"], "coding": info.coding.to_dict()}


def print_table(measured: Results, settings: dict[str, str]) -> None:
    """Print one network's results, or those of several in one table."""
    left_out = measured[0][2].left_out
    images = f"{measured[0][2].images} images of {settings['data']}, {settings['device']}, {settings['dtype']}"
    images += f", exit {settings['exit']}" if "exit" in settings else ""
    images += f"; {len(left_out)} that cannot be read left out" if left_out else ""
    if len(measured) > 1:
        common.console().print(comparison_table(converted(measured), f"{len(measured)} networks: {images}"))
        return
    _, info, result = measured[0]
    if isinstance(info, TrainedNetwork):
        title = f"{info.model}, trained, {info.neuron} neurons: {images}"
        common.console().print(results_table(result, title, graded=False))
        return
    common.console().print(
        results_table(result, f"{info.model}, {info.coding}: {images}", graded=is_graded(info.coding))
    )
    common.console().print(energy_table(result))


def print_so_far(file: Path, interrupted: Any) -> None:
    """Print what was counted before an interruption."""
    done = interrupted.evaluation
    title = f"{file}: so far, {done.images} of {interrupted.total} images; the same command with --resume goes on"
    common.console().print(results_table(done, title, graded=False))


def converted(measured: Results) -> Converted:
    """Return the results that are of converted networks."""
    return [(file, info, result) for file, info, result in measured if not isinstance(info, TrainedNetwork)]


def figures_of(measured: Converted, settings: dict[str, str], folders: list[str] | None) -> list[Measured]:
    """Return what reports and plots are made of."""
    from snnzoo.evaluation.provenance import facts_of
    from snnzoo.report.figures import Measured

    return [
        Measured(
            label_of(file, [path for path, *_ in measured]),
            result,
            str(info.coding),
            info.coding.spikes,
            info.classes or (folders if folders and len(folders) == result.classes else None),
            facts_of(info, {"file": str(file), **settings, "images": f"{result.images:,}"}),
        )
        for file, info, result in measured
    ]


def write_report(path: Path, measured: Converted, shown: list[Measured], force: bool, quiet: bool) -> None:
    """Write the report and say so."""
    from snnzoo.report import html

    title = f"{measured[0][1].model}, {measured[0][1].coding}" if len(measured) == 1 else "Networks compared"
    html.write_report(shown, path, title, shlex.join(["snnzoo", *sys.argv[1:]]), replace=force)
    common.say(f"wrote {path}", quiet)


def write_card(path: Path, measured: Results, settings: dict[str, str], force: bool, quiet: bool) -> None:
    """Write the model card of the one converted network and say so."""
    from snnzoo.report import card

    (file, info, _), *_ = converted(measured)
    card.write_card(path, info, file, [as_json(measured, settings)], replace=force)
    common.say(f"wrote {path}", quiet)


def write_plot(path: Path, shown: list[Measured], force: bool, quiet: bool) -> None:
    """Write the picture and say so."""
    from snnzoo.report import figures

    figures.write_plot(shown, path, replace=force)
    common.say(f"wrote {path}", quiet)
