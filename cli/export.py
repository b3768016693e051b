"""`snnzoo export`: a converted network as a file for other tools, which is run before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.errors import UsageError
from snnzoo.export.formats import FORMATS
from snnzoo.export.targets import TARGETS, target_named

if TYPE_CHECKING:
    from snnzoo.conversion import Conversion
    from snnzoo.graph.network import SpikingNetwork


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that snnzoo convert wrote.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="nir (rate-coded networks, for neuromorphic tools and chips), onnx or pt2 (torch.export), or integer "
            "(8-bit weights, events and golden traces, for hardware).",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TARGETS),
            help="nir: who reads the file, each in its own way.  [default: whom FILE was converted for, else generic]",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="File to write.  [default: FILE's name.FORMAT]")
    ] = None,
    time_steps: Annotated[
        int | None,
        typer.Option(
            "--time-steps",
            "-T",
            metavar="N",
            help="Not of nir: steps to unroll or trace.  [default: the file's]",
        ),
    ] = None,
    without_stem: Annotated[
        bool,
        typer.Option(
            "--without-stem",
            help="nir: leave out what is before the first neuron, for stems with a max pool; the host computes it.",
        ),
    ] = False,
    input_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pixels of the input.  [default: the file's]")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Read the file back and run it beside the network: another answer leaves no file.",
        ),
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR|digits", help="Images to verify on.  [default: those of calibration, else noise]"),
    ] = None,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write a converted network for other tools, and run what was written.

    \b
    Examples:
      snnzoo export resnet20-snn.safetensors --format onnx -T 4 -o resnet20.onnx
      snnzoo export resnet20-snn.safetensors --format nir --data cifar10/test -o resnet20.nir
      snnzoo export vgg-sinabs.safetensors --format nir --target sinabs
      snnzoo export resnet20-snn.safetensors --format integer -o resnet20.npz
    """
    common.check_choice("--format", format, tuple(FORMATS))
    common.check_converted(file)
    if time_steps is not None and format == "nir":
        raise UsageError("--time-steps: a NIR graph takes one step at a time")
    common.check_time_steps(time_steps)
    if format != "nir" and (without_stem or target is not None):
        option = "--without-stem" if without_stem else "--target"
        raise UsageError(f"{option} is for --format nir: {format} exports all of the network, for any reader")
    if target is not None:
        target_named(target)
    if data is not None and not verify:
        raise UsageError("--data is for what --no-verify leaves out: give one of them")
    row = FORMATS[format]
    common.check_installed(f"--format {format}", (*row.needs, *(row.runs_with if verify else ())), "export")
    output = output or Path(f"{file.stem}{row.suffix}")
    check_outputs({"-o": output, "--json": json}, [file], force=force)
    common.say(f"exporting {file} ...", quiet)

    import snnzoo
    from snnzoo.conversion import Conversion
    from snnzoo.export import formats

    net = snnzoo.load(file)
    info = net.conversion
    assert isinstance(info, Conversion)
    shape = input_shape(net, info, input_size)
    steps, reader = time_steps or info.time_steps, target or str(info.recipe.get("for", "generic"))
    images, source = formats.images_to_check(net, shape, data) if verify else (None, None)
    found = formats.write(
        format, net, output, steps, shape, images=images, replace=force, target=reader, stem=not without_stem
    )
    size = output.stat().st_size
    settings = {"file": str(output), "format": format, "size": size, "time_steps": steps, "input_shape": list(shape)}
    if format == "nir":
        settings |= {"target": reader, "read": target_named(reader).read}
    common.write_json(json, {**settings, "verified": found and {**found.to_dict(), "data": source}}, force)
    common.say(f"wrote {output} ({size / 1e6:.1f} MB): {_what(format, reader, shape, steps)}", quiet)
    if found is None:
        common.say("not verified", quiet)
    else:
        common.say(
            f"verified on {found}, of {source}{': --data DIR takes real ones' if source == 'noise' else ''}", quiet
        )


def input_shape(net: SpikingNetwork, info: Conversion, input_size: int | None) -> tuple[int, ...]:
    """Return `[C, H, W]` of the images that a network is for, or of `input_size` pixels a side."""
    own = info.preprocess.size if info.preprocess else None
    size = own if input_size is None else (input_size, input_size)
    return tuple(net.input_shape) if size is None else (net.input_shape[0], *size)


def _what(format: str, target: str, shape: tuple[int, ...], steps: int) -> str:
    if format == "nir":
        row = target_named(target)
        ends = "spikes of the first neurons, and gives those of the last" if row.spikes_alone else "input and of logits"
        return f"one step of {ends}; the mean of all steps decodes; read it with {row.read}"
    if format == "integer":
        return f"{steps} steps in whole numbers, and what every layer sends for two images"
    return f"images [N, {', '.join(map(str, shape))}] -> logits [{steps}, N, classes]"
