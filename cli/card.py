"""`snnzoo card`: a model card of a converted network, for a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common


def card(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that snnzoo convert wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File to write.")] = Path("README.md"),
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="What snnzoo eval --json wrote of FILE; several times for several data sets."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Heading.  [default: model and coding]")] = None,
    license: Annotated[
        str | None, typer.Option(metavar="SPDX", help="Of the weights.  [default: the manifest's, else unknown]")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="That the results are of.  [default: the folder's name]")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Of the ANN.  [default: that of hf: and timm: models]")
    ] = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write a model card: what a converted file says of itself, and what was measured.

    Figures come from results of snnzoo eval alone; without any, the card says that nothing was measured. snnzoo eval
    --card does both.

    \b
    Examples:
      snnzoo card resnet18-snn.safetensors --results result.json -o README.md
      snnzoo card vgg-snn.safetensors --results cifar.json --dataset cifar10 --license mit
    """
    common.check_converted(file)
    check_outputs({"-o": output}, [file, *(results or [])], force=force)

    from snnzoo.checkpoints.files import read_safetensors
    from snnzoo.conversion import Conversion
    from snnzoo.report.card import About, read_results, results_of, write_card

    _, metadata = read_safetensors(file)
    info = Conversion.from_metadata(metadata, str(file))
    measured = [result for path in results or [] for result in results_of(info, read_results(path), file)]
    write_card(output, info, file, measured, About(title, license, dataset, base_model), replace=force)
    known = (
        f"{len(measured)} evaluation{'' if len(measured) == 1 else 's'}" if measured else "no results: give --results"
    )
    common.say(f"wrote {output}, with {known}", quiet)
