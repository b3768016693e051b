"""`snnzoo bench`: how fast a network runs, beside its ANN and beside itself unprepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.cli.bench_formats import bench_formats
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.models.registry import MODELS, model_spec
from snnzoo.recognition.snn import check_arguments, load_snn

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

    from snnzoo.early_exit import ExitRule
    from snnzoo.graph.network import SpikingNetwork
    from snnzoo.models.base import SpikingNet

CONTENDERS = {
    "fast": "fast form",
    "fast_final": "fast form, final",
    "fast_exit": "fast form, early exit",
    "unprepared": "as it is",
    "ann": "T x ANN",
    "ann_folded": "T x folded ANN",
    "ann_folded_graph": "T x its CUDA graph",
}


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A model, or a file of snnzoo convert.")],
    checkpoint_of: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="FILE is a checkpoint of this one, trained as it is.")
    ] = None,
    neuron: Annotated[str, typer.Option(metavar="if|lif|plif", help="With --model: its neurons.")] = "if",
    time_steps: Annotated[
        int | None, typer.Option("--time-steps", "-T", metavar="T", help="Time steps; 4, or the file's.")
    ] = None,
    batch_size: common.BatchSizeOption = 8,
    input_size: Annotated[
        int | None, typer.Option(metavar="N", min=8, help="Pixels of a side; those the model is meant for.")
    ] = None,
    exit: common.ExitOption = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR|digits", help="With --exit or --formats: images to run, instead of random ones."),
    ] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="Of FILE: size, speed and agreement of each format of snnzoo export.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Turns to take the median of.")] = 5,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Measure speed and memory of a network in its fast form.

    Beside it run the network as it is and T passes of its ANN (torchvision's own module, where there is one), in
    turns and in the same process, on random images. When an image may leave depends on what it shows, so --exit takes
    real ones.

    \b
    Examples:
      snnzoo bench resnet18 -T 4 --batch-size 2
      snnzoo bench resnet18-snn.safetensors --device cuda --dtype float16 --json speed.json
      snnzoo bench resnet18-snn.safetensors --exit 0.5 --data imagenet/val --batch-size 64
      snnzoo bench resnet18-snn.safetensors --formats --data imagenet/val --batch-size 32
      snnzoo bench sew18.pth --model sew_resnet18 --neuron plif -T 4
    """
    common.check_time_steps(time_steps)
    if checkpoint_of is not None:
        check_arguments(checkpoint_of, neuron, None, None)
    elif neuron != "if":
        raise UsageError("--neuron is for a checkpoint: say what it is of with --model")
    if model not in MODELS and not Path(model).is_file():
        if Path(model).suffix:
            common.check_converted(Path(model))
        model_spec(model)
    if formats:
        _check_formats(model, checkpoint_of, exit, input_size, device, dtype)
        check_outputs({"--json": json}, [Path(model)], force=force)
        bench_formats(Path(model), data, batch_size, time_steps, repeats, json, force, quiet)
        return
    _check_exit(exit, data, model in MODELS or checkpoint_of is not None, time_steps, input_size)
    common.check_device_and_dtype(device, dtype)
    check_outputs({"--json": json}, [Path(model)], force=force)

    import torch

    from snnzoo.inference.memory import is_out_of_memory

    target = common.torch_device(device)
    if checkpoint_of is None:
        net, ann, size, steps = _networks(model)
    else:
        net, ann, size, steps = _trained(model, checkpoint_of, neuron)
    size, steps = input_size or size, time_steps or steps
    rule = None
    if exit is None or data is None:
        images = torch.randn(batch_size, _channels(net), size, size)
    else:
        rule, images = _rule_and_images(net, exit, model, data, batch_size)
    settings = {
        "model": net.model_name,
        "file": None if model in MODELS else model,
        "time_steps": steps,
        "batch_size": batch_size,
        "input_size": size,
        "device": str(target),
        "device_name": torch.cuda.get_device_name(target) if target.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "repeats": repeats,
        "exit": exit,
    }
    try:
        with common.progress_bars(quiet) as progress:
            measured = _measure(net, ann, images, steps, target, getattr(torch, dtype), repeats, rule, progress)
            report = settings | measured
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SnnzooError(f"{batch_size} images do not fit the GPU's memory: use a smaller --batch-size") from None
    if common.write_json(json, report, force) or quiet:
        return
    title = (
        f"{settings['model']}, T = {steps}, {batch_size} images of {size}x{size}, "
        f"{settings['device_name'] or target}, {dtype}"
    )
    if rule is not None:
        title += f"; early exit after {report['mean_steps']:.2f} steps on average"
    console = common.console()
    console.print(_speed_table(report, title))
    console.print(_layer_table(report))


def _check_formats(
    model: str, checkpoint_of: str | None, exit: float | None, input_size: int | None, device: str, dtype: str
) -> None:
    """Raise a UsageError for what does not go together."""
    if model in MODELS or checkpoint_of is not None:
        raise UsageError("--formats is for files of snnzoo convert: give one")
    if exit is not None or input_size is not None:
        raise UsageError("--formats runs all steps of the file's own images: leave --exit and --input-size out")
    if device not in ("auto", "cpu") or dtype != "float32":
        raise UsageError("--formats runs files as they are, on the CPU: leave --device and --dtype out")


def _check_exit(
    exit: float | None, data: str | None, without_rules: bool, time_steps: int | None, input_size: int | None
) -> None:
    """Raise a UsageError for what does not go together."""
    if (exit is None) != (data is None):
        raise UsageError(
            "--exit needs --data DIR, images to leave early on, and --data is for --exit and --formats: give both"
        )
    if exit is not None and without_rules:
        raise UsageError("--exit: rules of early exit are in files of snnzoo convert: give one")
    if exit is not None and (time_steps or input_size):
        raise UsageError("--exit: its rules are for the file's own steps and images: leave -T and --input-size out")


def _rule_and_images(
    net: SpikingNet | SpikingNetwork, exit: float, file: str, data: str, count: int
) -> tuple[ExitRule, torch.Tensor]:
    """The file's rule, and `count` images of a folder, `[N, C, H, W]`."""
    from snnzoo import conversion
    from snnzoo.data.datasets import calibration_images

    info = getattr(net, "conversion", None)
    assert isinstance(info, conversion.Conversion)
    if info.preprocess is None:
        raise UsageError("--exit: bench runs images, but the network was converted for frames of events (.npz)")
    return conversion.exit_rule(info, exit, file), calibration_images(data, info.preprocess, count)


def _networks(model: str) -> tuple[SpikingNet | SpikingNetwork, nn.Module, int, int]:
    """The network, its ANN, and the input size and time steps that it is meant for."""
    from torch.nn import ReLU

    from snnzoo import conversion
    from snnzoo.data.preprocess import PRESETS
    from snnzoo.inference.measure import torchvision_ann
    from snnzoo.models.factory import build

    if model in MODELS:
        zoo = build(model).eval()
        relu = build(model.removeprefix("sew_"), neuron=ReLU, step_mode="s").eval()
        return zoo, torchvision_ann(relu), PRESETS[MODELS[model].preprocess].size[-1], 4
    net, ann = conversion.load_with_ann(model)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    size = info.preprocess.size[-1] if info.preprocess else ann.input_shape[-1]
    return net, torchvision_ann(ann), size, info.time_steps


def _channels(net: SpikingNet | SpikingNetwork) -> int:
    from snnzoo.graph.network import SpikingNetwork

    return net.input_shape[0] if isinstance(net, SpikingNetwork) else int(net.model_kwargs.get("in_channels", 3))


def _trained(file: str, model: str, neuron: str) -> tuple[SpikingNet, nn.Module, int, int]:
    """A checkpoint's network, an ANN of its shapes, the input size of its model, and four time steps."""
    from torch.nn import ReLU

    from snnzoo.data.preprocess import PRESETS
    from snnzoo.inference.measure import torchvision_ann
    from snnzoo.models.factory import build

    net = load_snn(file, model, neuron)
    shapes = {key: value for key, value in net.model_kwargs.items() if key not in ("connect", "pool_first")}
    ann = build(model.removeprefix("sew_"), neuron=ReLU, step_mode="s", **shapes).eval()
    return net, torchvision_ann(ann), PRESETS[MODELS[model].preprocess].size[-1], 4


def _measure(
    net: SpikingNet | SpikingNetwork,
    ann: nn.Module,
    images: torch.Tensor,
    time_steps: int,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    rule: ExitRule | None,
    progress: Any,
) -> dict[str, Any]:
    """Speed and peak memory of all contenders, and the time of each layer."""
    import torch

    from snnzoo import prepare_for_inference
    from snnzoo.inference import measure

    fast = prepare_for_inference(net, dtype=dtype, device=device)
    images = images.to(device, fast.dtype)
    results = []
    with torch.inference_mode():
        runs = measure.contenders(net.to(images), ann.to(images), fast, images, time_steps, rule)
        seconds = measure.interleaved(runs, repeats, device, lambda done, total: progress(done, total, "measuring"))
        x_seq = images.expand(time_steps, *images.shape)
        memory = measure.peak_memories(runs, fast, x_seq)
        for name in runs:
            row = {
                "name": name,
                "seconds": seconds[name],
                "images_per_second": len(images) / seconds[name],
                "ms_per_step": 1000 * seconds[name] / time_steps,
                "ratio_to_ann": seconds[name] / seconds["ann"],
                "ratio_to_ann_folded": seconds[name] / seconds["ann_folded"],
                "peak_memory": memory[name],
            }
            results.append(row)
        layers = measure.layer_seconds(fast, x_seq)
        mean_steps = fast.until_sure(images, rule)[1].double().mean().item() if rule else None
    return {
        "results": results,
        "mean_steps": mean_steps,
        "layers": [{"name": name, "kind": kind, "seconds": time} for name, (kind, time) in layers.items()],
    }


def _speed_table(report: dict[str, Any], title: str) -> Table:
    """One row a contender."""
    from rich.table import Table

    caption = (
        "Final: read out once, not after each step. Folded: without BN, channels-last. A ratio below 1 is faster than "
        "T passes of the ANN. Memory: at most, beside weights and input."
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("")
    for heading in ("images/s", "ms/step", "/ ANN", "/ folded", "peak MB"):
        table.add_column(heading, justify="right")
    for row in report["results"]:
        memory = row["peak_memory"]
        table.add_row(
            CONTENDERS[row["name"]],
            f"{row['images_per_second']:.1f}",
            f"{row['ms_per_step']:.2f}",
            f"{row['ratio_to_ann']:.2f}",
            f"{row['ratio_to_ann_folded']:.2f}",
            "-" if memory is None else f"{memory / 1e6:.1f}",
        )
    return table


def _layer_table(report: dict[str, Any]) -> Table:
    """Time by kind and by the part of the network: a stage, the stem, the classifier."""
    from rich.table import Table

    cells: dict[str, dict[str, float]] = {}
    for layer in report["layers"]:
        part = layer["name"].rpartition(".")[0] or layer["name"]
        cells.setdefault(part, {}).setdefault(layer["kind"], 0.0)
        cells[part][layer["kind"]] += layer["seconds"]
    kinds = sorted({kind for row in cells.values() for kind in row})
    total = sum(seconds for row in cells.values() for seconds in row.values())
    table = Table(title="Where the time of the fast form goes, in ms", title_justify="left")
    table.add_column("")
    for heading in (*kinds, "all", "share %"):
        table.add_column(heading, justify="right")
    sums = {kind: sum(row.get(kind, 0.0) for row in cells.values()) for kind in kinds}
    for i, (part, row) in enumerate([*cells.items(), ("all", sums)]):
        if i == len(cells):
            table.add_section()
        whole = sum(row.values())
        shown = [f"{1000 * row[kind]:.2f}" if row.get(kind) else "" for kind in kinds]
        table.add_row(part, *shown, f"{1000 * whole:.2f}", f"{100 * whole / total:.1f}")
    return table
