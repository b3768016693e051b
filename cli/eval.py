"""`snnzoo eval`: converted networks and their ANNs on the same images."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.data.folders import check_class_folders, file_version
from snnzoo.data.preprocess import MAX_PIXELS
from snnzoo.errors import UsageError, printable
from snnzoo.evaluation.distributed import Shard, joined

if TYPE_CHECKING:
    from rich.table import Table

    from snnzoo.conversion import Conversion
    from snnzoo.evaluation import Evaluation
    from snnzoo.evaluation.partial import PartialCounts
    from snnzoo.report.figures import Measured

ERROR_IMAGES = 16  # on which the conversion error of each layer is measured, for reports


def evaluate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files that snnzoo convert wrote; several are compared.")
    ],
    data: Annotated[
        str, typer.Option(metavar="DIR|digits", help="Labelled images, or event frames (.npz): one folder a class.")
    ],
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only N images, drawn at random.")] = None,
    time_steps: Annotated[
        str | None, typer.Option("--time-steps", "-T", metavar="1,2,4", help="Steps to read out after.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a report: figures, tables, provenance.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Write a picture: .png, .svg or .pdf.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same evaluation where it was interrupted.")
    ] = False,
    max_pixels: common.MaxPixelsOption = MAX_PIXELS,
    batch_size: common.BatchSizeOption = 64,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
    seed: common.SeedOption = 0,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Evaluate converted networks beside their ANNs.

    Several processes share the work under torchrun.

    \b
    Examples:
      snnzoo eval resnet18-snn.safetensors --data digits
      snnzoo eval resnet18-snn.safetensors --data imagenet/val --time-steps 1,2,4,8 --json result.json
      snnzoo eval a.safetensors b.safetensors --data cifar10/test --report compare.html
      torchrun --nproc-per-node 2 -m snnzoo.cli eval resnet18-snn.safetensors --data imagenet/val
    """
    steps = None if time_steps is None else common.parse_time_steps(time_steps)
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file}: no such file; make one with snnzoo convert")
    folders = None if data == "digits" else check_class_folders(Path(data))
    common.check_device_and_dtype(device, dtype)
    shard = Shard.from_environment()
    if shard.is_first:
        _check_outputs(files, json, report, plot, force)
    quiet = quiet or not shard.is_first

    from snnzoo.evaluation.evaluator import Interrupted

    measured: list[tuple[Path, Conversion, Evaluation]] = []
    counts: list[PartialCounts] = []
    with joined(shard):
        target = common.torch_device(device, shard.local_rank)
        for file in files:
            wanted = {"limit": limit, "seed": seed, "batch_size": batch_size, "device": str(target), "dtype": dtype}
            wanted["max_pixels"] = max_pixels
            try:
                info, result, partial = _measure(file, data, steps, wanted, shard, resume, report is not None, quiet)
            except Interrupted as interrupted:
                if interrupted.evaluation is not None and not quiet:
                    _say_so_far(file, interrupted)
                raise
            measured.append((file, info, result))
            counts.append(partial)
        problem = None
        if shard.is_first:
            settings = {"data": data, "device": str(target), "dtype": dtype}
            figures = functools.partial(_figures, measured, settings, folders)
            outputs: list[Callable[[], object]] = [lambda: common.write_json(json, _as_json(measured, settings), force)]
            if report is not None:
                outputs.append(lambda: _write_report(report, measured, figures(), force, quiet))
            if plot is not None:
                outputs.append(lambda: _write_plot(plot, figures(), force, quiet))
            if json != "-" and not quiet:
                outputs.append(lambda: _print_table(measured, settings))
            problem = common.attempt_all(outputs)
        if shard.first_says(problem is None):
            for partial in counts:
                partial.delete()
    if problem is not None:
        common.say("what was counted is kept: the same command with --resume evaluates nothing anew", quiet)
        raise problem


def _as_json(measured: list[tuple[Path, Conversion, Evaluation]], settings: dict[str, str]) -> dict[str, Any]:
    reports = [
        {
            "file": str(file),
            "model": info.model,
            "recipe": info.recipe["name"],
            "coding": info.coding.to_dict(),
            "images": result.images,
            "device": settings["device"],
            "dtype": settings["dtype"],
            **result.to_dict(),
        }
        for file, info, result in measured
    ]
    return reports[0] if len(reports) == 1 else {"evaluations": reports}


def _print_table(measured: list[tuple[Path, Conversion, Evaluation]], settings: dict[str, str]) -> None:
    left_out = measured[0][2].left_out
    images = f"{measured[0][2].images} images of {settings['data']}, {settings['device']}, {settings['dtype']}"
    images += f"; {len(left_out)} that cannot be read left out" if left_out else ""
    if len(measured) > 1:
        common.console().print(comparison_table(measured, f"{len(measured)} networks: {images}"))
        return
    _, info, result = measured[0]
    common.console().print(
        results_table(result, f"{info.model}, {info.coding}: {images}", graded=is_graded(info.coding))
    )


def _check_outputs(files: list[Path], json: str | None, report: Path | None, plot: Path | None, force: bool) -> None:
    """Refuse outputs that could not be written, before any work is done."""
    for option, path in (("--report", report), ("--plot", plot)):
        if path is not None:
            common.check_installed(option, ("matplotlib",), "report")
    check_outputs({"--json": json, "--report": report, "--plot": plot}, files, force=force)
    if plot is not None:
        common.check_choice("--plot: the suffix", plot.suffix.lower(), (".png", ".svg", ".pdf"))


def _measure(
    file: Path,
    data: str,
    steps: list[int] | None,
    wanted: dict[str, Any],
    shard: Shard,
    resume: bool,
    with_errors: bool,
    quiet: bool,
) -> tuple[Conversion, Evaluation, PartialCounts]:
    """Evaluate one file, keeping its counts. `wanted` is what they depend on beside file, data and steps."""
    import torch

    from snnzoo import conversion, evaluation
    from snnzoo.checkpoints.files import sha256_of
    from snnzoo.data.datasets import labelled_data, limited
    from snnzoo.evaluation.partial import PartialCounts

    net, ann = conversion.load_with_ann(file)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    images = labelled_data(data, info.preprocess, info.classes, net.model_kwargs["num_classes"], wanted["max_pixels"])
    steps = steps or powers_of_two(info.time_steps)
    versions = [file_version(path) for path in getattr(images, "files", [])]
    partial = PartialCounts(
        {
            **wanted,
            "file": sha256_of(file),
            "data": [str(Path(data).resolve()), *versions],
            "steps": steps,
            "errors": with_errors,
            "rank": shard.rank,
            "processes": shard.count,
        },
        notify=lambda message: common.say(message, quiet),
    )
    if resume and shard.is_first and partial.load() is None:
        common.say(f"{file}: nothing to resume: starting from the first image", quiet)
    with common.progress_bars(quiet) as progress:
        result = evaluation.evaluate(
            net,
            ann,
            limited(images, wanted["limit"], wanted["seed"]),
            steps,
            batch_size=wanted["batch_size"],
            device=wanted["device"],
            dtype=getattr(torch, wanted["dtype"]),
            error_images=ERROR_IMAGES if with_errors else 0,
            shard=shard,
            partial=partial,
            resume=resume,
            progress=progress,
            notify=lambda message: common.say(message, quiet),
        )
    return info, result, partial


def _say_so_far(file: Path, interrupted: Any) -> None:
    done = interrupted.evaluation
    title = f"{file}: so far, {done.images} of {interrupted.total} images; the same command with --resume goes on"
    common.console().print(results_table(done, title, graded=False))


def _figures(
    measured: list[tuple[Path, Conversion, Evaluation]], settings: dict[str, str], folders: list[str] | None
) -> list[Measured]:
    """What reports and plots are made of."""
    from snnzoo.evaluation.provenance import facts_of
    from snnzoo.report.figures import Measured

    return [
        Measured(
            _label(file, [path for path, *_ in measured]),
            result,
            str(info.coding),
            info.coding.spikes,
            info.classes or (folders if folders and len(folders) == result.classes else None),
            facts_of(info, {"file": str(file), **settings, "images": f"{result.images:,}"}),
        )
        for file, info, result in measured
    ]


def _write_report(
    path: Path, measured: list[tuple[Path, Conversion, Evaluation]], shown: list[Measured], force: bool, quiet: bool
) -> None:
    from snnzoo.report.html import write_report

    title = f"{measured[0][1].model}, {measured[0][1].coding}" if len(measured) == 1 else "Networks compared"
    write_report(shown, path, title, shlex.join(["snnzoo", *sys.argv[1:]]), replace=force)
    common.say(f"wrote {path}", quiet)


def _write_plot(path: Path, shown: list[Measured], force: bool, quiet: bool) -> None:
    from snnzoo.report.figures import write_plot

    write_plot(shown, path, replace=force)
    common.say(f"wrote {path}", quiet)


def _label(file: Path, files: list[Path]) -> str:
    """The file's name, with its folder where another file has the same."""
    return file.stem if sum(other.name == file.name for other in files) == 1 else str(file)


def powers_of_two(last: int) -> list[int]:
    """1, 2, 4 ... up to and with `last`."""
    return sorted({2**k for k in range(last.bit_length())} | {last})


def is_graded(coding: Any) -> bool:
    """Whether spikes carry more than their sign."""
    return getattr(coding, "levels", 1) > 1


HEADINGS = ("T", "ANN top-1 %", "SNN top-1 %", "gap", "agreement %", "events", "energy µJ", "images/s")
GAPS = "Gap: ANN minus SNN, in points. Agreement: same top-1 class as the ANN. Events: per neuron and step. "
ENERGY = "Energy: of an image, 45 nm estimate of the arithmetic"
GRADED = " Spikes are graded: they carry several levels, and cost an accumulation for each bit."


def results_table(result: Evaluation, title: str, *, graded: bool) -> Table:
    """One row a number of time steps, each beside the ANN."""
    caption = f"{GAPS}{ENERGY}; ANN {result.ann['energy_uj']:.1f} µJ.{GRADED if graded else ''}"
    table = _table(title, caption, HEADINGS)
    ann = f"{100 * result.ann['top1']:.2f}"
    for time_steps, *rest in _rows(result):
        table.add_row(time_steps, ann, *rest)
    return table


def comparison_table(measured: list[tuple[Path, Conversion, Evaluation]], title: str) -> Table:
    """The rows of several networks, one below the other, each below its ANN's."""
    from rich.text import Text

    labels = [_label(file, [path for path, *_ in measured]) for file, *_ in measured]
    codings = "".join(
        f"\n{label}: {info.coding}, {info.coding.spikes}" for label, (_, info, _) in zip(labels, measured, strict=True)
    )
    graded = any(is_graded(info.coding) for _, info, _ in measured)
    caption = f"{GAPS}{ENERGY}.{GRADED if graded else ''}{codings}"
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


def _table(title: str, caption: str, headings: tuple[str, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title_text, caption_text = Text(printable(title)), Text("\n".join(map(printable, caption.splitlines())))
    table = Table(title=title_text, caption=caption_text, title_justify="left", caption_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right", overflow="fold")
    return table


def _rows(result: Evaluation) -> list[list[str]]:
    return [
        [
            str(row.time_steps),
            f"{100 * row.top1:.2f}",
            f"{100 * (result.ann['top1'] - row.top1):+.2f}",
            f"{100 * row.agreement:.2f}",
            f"{row.events_per_neuron_step:.3f}",
            f"{row.energy_uj:.1f}",
            f"{row.images_per_second:.1f}",
        ]
        for row in result.results
    ]
