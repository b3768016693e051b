"""`snnzoo eval`: a converted network and its ANN on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.cli import common
from snnzoo.errors import UsageError
from snnzoo.evaluation.folders import check_class_folders

if TYPE_CHECKING:
    from rich.table import Table

    from snnzoo.evaluation import Evaluation


def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that snnzoo convert wrote.")],
    data: Annotated[
        str, typer.Option(metavar="DIR|digits", help="Labelled images, or event frames (.npz): one folder a class.")
    ],
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only N images, drawn at random.")] = None,
    time_steps: Annotated[
        str | None, typer.Option("--time-steps", "-T", metavar="1,2,4", help="Steps to read out after.")
    ] = None,
    batch_size: common.BatchSizeOption = 64,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
    seed: common.SeedOption = 0,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Evaluate a converted network beside its ANN.

    \b
    Examples:
      snnzoo eval resnet18-snn.safetensors --data digits
      snnzoo eval resnet18-snn.safetensors --data imagenet/val --time-steps 1,2,4,8 --json result.json
    """
    steps = None if time_steps is None else common.parse_time_steps(time_steps)
    if not file.is_file():
        raise UsageError(f"{file}: no such file; make one with snnzoo convert")
    if data != "digits":
        check_class_folders(Path(data))
    common.check_device_and_dtype(device, dtype)
    common.check_json(json, force)

    import torch

    from snnzoo import conversion, evaluation
    from snnzoo.evaluation.data import labelled_data, limited

    net, ann = conversion.load_with_ann(file)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    images = labelled_data(data, info.preprocess, info.classes, net.model_kwargs["num_classes"])
    target = common.torch_device(device)
    with common.progress_bars(quiet) as progress:
        result = evaluation.evaluate(
            net,
            ann,
            limited(images, limit, seed),
            steps or powers_of_two(info.time_steps),
            batch_size=batch_size,
            device=target,
            dtype=getattr(torch, dtype),
            progress=progress,
        )
    report = {
        "file": str(file),
        "model": info.model,
        "recipe": info.recipe["name"],
        "coding": info.coding.to_dict(),
        "images": result.images,
        "device": str(target),
        "dtype": dtype,
        **result.to_dict(),
    }
    if common.write_json(json, report) or quiet:
        return
    title = f"{info.model}, {info.coding}: {result.images} images of {data}, {target}, {dtype}"
    common.console().print(results_table(result, title, graded=is_graded(info.coding)))


def powers_of_two(last: int) -> list[int]:
    """1, 2, 4 ... up to and with `last`."""
    return sorted({2**k for k in range(last.bit_length())} | {last})


def is_graded(coding: Any) -> bool:
    """Whether spikes carry more than their sign."""
    return getattr(coding, "levels", 1) > 1


def results_table(result: Evaluation, title: str, *, graded: bool) -> Table:
    """One row a number of time steps, each beside the ANN."""
    from rich.table import Table

    caption = "Gap: ANN minus SNN, in points. Agreement: same top-1 class as the ANN. Events: per neuron and step."
    if graded:
        caption += " Spikes are graded: they carry several levels."
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("T", "ANN top-1 %", "SNN top-1 %", "gap", "agreement %", "events", "images/s"):
        table.add_column(heading, justify="right")
    for row in result.results:
        table.add_row(
            str(row.time_steps),
            f"{100 * result.ann['top1']:.2f}",
            f"{100 * row.top1:.2f}",
            f"{100 * (result.ann['top1'] - row.top1):+.2f}",
            f"{100 * row.agreement:.2f}",
            f"{row.events_per_neuron_step:.3f}",
            f"{row.images_per_second:.1f}",
        )
    return table
