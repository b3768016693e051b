"""`snnzoo eval`: converted networks and their ANNs on the same images, and trained spiking networks alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common, results
from snnzoo.cli.measuring import measure
from snnzoo.data.folders import check_class_folders, numbers_out_of_order
from snnzoo.data.preprocess import MAX_PIXELS
from snnzoo.distributed import Rank, joined
from snnzoo.errors import UsageError
from snnzoo.recognition.snn import check_arguments

if TYPE_CHECKING:
    from snnzoo.conversion import Conversion
    from snnzoo.evaluation import Evaluation
    from snnzoo.evaluation.partial import PartialCounts
    from snnzoo.recognition.snn import TrainedNetwork


def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Files that snnzoo convert wrote; several are compared. With --model, one."
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="DIR|digits", help="Labelled images, or event frames (.npz): one folder a class.")
    ],
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only N images, drawn at random.")] = None,
    time_steps: Annotated[
        str | None, typer.Option("--time-steps", "-T", metavar="1,2,4", help="Steps to read out after.")
    ] = None,
    exit: common.ExitOption = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="FILE is a checkpoint of this model, trained as a spiking one.")
    ] = None,
    neuron: Annotated[str, typer.Option(metavar="if|lif|plif", help="With --model: its neurons.")] = "if",
    connect: Annotated[
        str | None, typer.Option(metavar="ADD|AND|IAND", help="With --model: how SEW blocks join; ADD by default.")
    ] = None,
    layout: common.LayoutOption = None,
    report: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a report: figures, tables, provenance.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="README.md", help="Write a model card of FILE, for a hub: snnzoo card.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Write a picture: .png, .svg or .pdf.")] = None,
    force_fit: Annotated[
        bool, typer.Option("--force-fit", help="Evaluate also on images that do not fit the network at all.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same evaluation where it was interrupted.")
    ] = False,
    max_pixels: common.MaxPixelsOption = MAX_PIXELS,
    batch_size: common.BatchSizeOption = 64,
    workers: common.WorkersOption = common.DEFAULT_WORKERS,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
    seed: common.SeedOption = 0,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Evaluate converted networks beside their ANNs, or a trained spiking network.

    Several processes share the work under torchrun.

    \b
    Examples:
      snnzoo eval resnet18-snn.safetensors --data digits
      snnzoo eval resnet18-snn.safetensors --data imagenet/val --time-steps 1,2,4,8 --json result.json
      snnzoo eval resnet18-snn.safetensors --data imagenet/val --exit 0.5
      snnzoo eval a.safetensors b.safetensors --data cifar10/test --report compare.html
      snnzoo eval resnet18-snn.safetensors --data imagenet/val --card README.md
      snnzoo eval sew18.pth --model sew_resnet18 --neuron plif -T 4 --data imagenet/val
      torchrun --nproc-per-node 2 -m snnzoo.cli eval resnet18-snn.safetensors --data imagenet/val
    """
    steps = None if time_steps is None else common.parse_time_steps(time_steps)
    for file in files:
        common.check_converted(file)
    folders = None if data == "digits" else check_class_folders(Path(data))
    common.check_device_and_dtype(device, dtype)
    trained = _trained_options(files, model, neuron, connect, layout, steps, report or plot or card)
    if card is not None and len(files) > 1:
        raise UsageError("--card is of one network: give one FILE")
    if exit is not None and trained is not None:
        raise UsageError("--exit: rules of early exit are in converted files, a checkpoint has none: leave it out")
    rank = Rank.from_environment()
    if rank.is_first:
        _check_outputs(files, json, report, plot, card, force)
    quiet = quiet or not rank.is_first
    if folders is not None and numbers_out_of_order(folders):
        common.say(
            f"{data}: class folders are labelled in the order of their names as text, {', '.join(folders[:3])} ..., as "
            "torchvision's ImageFolder does it: pad the numbers with zeros if the network was trained otherwise",
            quiet,
        )

    from snnzoo.evaluation.evaluator import Interrupted

    measured: list[tuple[Path, Conversion | TrainedNetwork, Evaluation]] = []
    counts: list[PartialCounts] = []
    with joined(rank):
        target = common.torch_device(device, rank.local_rank)
        for file in files:
            wanted = {"limit": limit, "seed": seed, "batch_size": batch_size, "device": str(target), "dtype": dtype}
            wanted |= {"max_pixels": max_pixels, "exit": exit, "neurobench": json is not None}
            try:
                info, result, partial = measure(
                    file, trained, data, steps, wanted, rank, workers, resume, force_fit, report is not None, quiet
                )
            except Interrupted as interrupted:
                if interrupted.evaluation is not None and not quiet:
                    results.print_so_far(file, interrupted)
                raise
            measured.append((file, info, result))
            counts.append(partial)
        problem = None
        if rank.is_first:
            settings = {"data": data, "device": str(target), "dtype": dtype}
            if exit is not None:
                settings["exit"] = f"{exit:g}"
            figures = functools.partial(results.figures_of, results.converted(measured), settings, folders)
            outputs: list[Callable[[], object]] = [
                lambda: common.write_json(json, results.as_json(measured, settings), force)
            ]
            if report is not None:
                outputs.append(
                    lambda: results.write_report(report, results.converted(measured), figures(), force, quiet)
                )
            if card is not None:
                outputs.append(lambda: results.write_card(card, measured, settings, force, quiet))
            if plot is not None:
                outputs.append(lambda: results.write_plot(plot, figures(), force, quiet))
            if json != "-" and not quiet:
                outputs.append(lambda: results.print_table(measured, settings))
            problem = common.attempt_all(outputs)
        if rank.first_says(problem is None):
            for partial in counts:
                partial.delete()
    if problem is not None:
        common.say("what was counted is kept: the same command with --resume evaluates nothing anew", quiet)
        raise problem


def _check_outputs(
    files: list[Path], json: str | None, report: Path | None, plot: Path | None, card: Path | None, force: bool
) -> None:
    """Refuse outputs that could not be written, before any work is done."""
    for option, path in (("--report", report), ("--plot", plot)):
        if path is not None:
            common.check_installed(option, ("matplotlib",), "report")
    check_outputs({"--json": json, "--report": report, "--plot": plot, "--card": card}, files, force=force)
    if plot is not None:
        common.check_choice("--plot: the suffix", plot.suffix.lower(), (".png", ".svg", ".pdf"))


def _trained_options(
    files: list[Path],
    model: str | None,
    neuron: str,
    connect: str | None,
    layout: str | None,
    steps: list[int] | None,
    pictured: Path | None,
) -> dict[str, Any] | None:
    """The arguments of `load_snn`; None for converted files, which need none.

    Raises:
        UsageError: for what does not go together.
    """
    if model is None:
        if (neuron, connect, layout) != ("if", None, None):
            raise UsageError("--neuron, --connect and --layout are for a checkpoint: say what it is of with --model")
        return None
    if len(files) > 1:
        raise UsageError("--model: give one FILE; several files are compared only if they were converted")
    if steps is None:
        raise UsageError("--model: a checkpoint does not say how many time steps it was trained for: give -T")
    if pictured is not None:
        raise UsageError(
            f"{pictured}: pictures, reports and cards compare a network with its ANN, which this one has not"
        )
    check_arguments(model, neuron, connect, layout)
    return {"model": model, "neuron": neuron, "connect": connect, "layout": layout}
