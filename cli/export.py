"""`snnzoo export`: a converted network as a file for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.errors import UsageError

FORMATS = ("nir", "onnx", "pt2")
NEEDS = {"nir": ("nir",), "onnx": ("onnx", "onnxscript"), "pt2": ()}


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that snnzoo convert wrote.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="nir (rate-coded networks, for neuromorphic tools and chips), onnx or pt2 (torch.export).",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="File to write.  [default: FILE's name.FORMAT]")
    ] = None,
    time_steps: Annotated[
        int | None,
        typer.Option("--time-steps", "-T", metavar="N", help="onnx, pt2: steps to unroll.  [default: the file's]"),
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
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write a converted network for other tools.

    \b
    Examples:
      snnzoo export resnet20-snn.safetensors --format onnx -T 4 -o resnet20.onnx
      snnzoo export resnet20-snn.safetensors --format nir -o resnet20.nir
    """
    common.check_choice("--format", format, FORMATS)
    common.check_converted(file)
    if time_steps is not None and format == "nir":
        raise UsageError("--time-steps: a NIR graph takes one step at a time")
    common.check_time_steps(time_steps)
    if without_stem and format != "nir":
        raise UsageError(f"--without-stem is for --format nir: {format} exports all of the network")
    common.check_installed(f"--format {format}", NEEDS[format], "export")
    output = output or Path(f"{file.stem}.{format}")
    check_outputs({"-o": output}, [file], force=force)
    common.say(f"exporting {file} ...", quiet)

    import snnzoo
    from snnzoo.conversion import Conversion

    net = snnzoo.load(file)
    info = net.conversion
    assert isinstance(info, Conversion)
    own = info.preprocess.size if info.preprocess else None
    size = own if input_size is None else (input_size, input_size)
    shape = tuple(net.input_shape) if size is None else (net.input_shape[0], *size)
    if format == "nir":
        from snnzoo.export.nir import write_nir

        write_nir(net, output, shape, stem=not without_stem, replace=force)
        what = "one step of input and of logits; the mean of all steps' logits decodes"
    else:
        from snnzoo.export.unrolled import write_onnx, write_pt2

        steps = time_steps or info.time_steps
        write = write_onnx if format == "onnx" else write_pt2
        write(net, output, steps, shape, replace=force)
        what = f"images [N, {', '.join(map(str, shape))}] -> logits [{steps}, N, classes]"
    common.say(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB): {what}", quiet)
