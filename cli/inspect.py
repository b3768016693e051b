"""`snnzoo inspect`: what is in a checkpoint file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snnzoo.checkpoints.layout_rules import layout_named
from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.errors import first_few, printable

_SHOWN = 8


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .pt, .pth, .th, .bin, .ckpt, .safetensors or .index.json file.", exists=True
        ),
    ],
    layout: common.LayoutOption = None,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Show what a checkpoint holds: its format, key layout and tensors, and the model it fits.

    \b
    Examples:
      snnzoo inspect resnet20.th
      snnzoo inspect resnet18-snn.safetensors --json -
    """
    if layout is not None:
        layout_named(layout)
    check_outputs({"--json": json}, [file], force=force)

    from snnzoo.recognition import inspect_checkpoint

    report = inspect_checkpoint(file, layout)
    if not common.write_json(json, report, force):
        for name, text in _facts(report):
            common.console().print(f"{name:<10}  {printable(text)}", markup=False)


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What is shown, line by line."""
    layout, model = report["layout"], report["model"]
    dtypes = ", ".join(f"{dtype} {count:,}" for dtype, count in report["dtypes"].items())
    facts = [
        ("file", report["file"]),
        ("format", report["format"]),
        ("size", f"{report['size']:,} bytes"),
        ("sha256", report["sha256"]),
        ("tensors", f"{report['tensors']:,} of {report['elements']:,} elements"),
        ("dtypes", dtypes),
        ("layout", layout.get("error") or layout["summary"].removeprefix("layout ")),
        *(("note", note) for note in layout.get("notes", ())),
    ]
    if model is not None:
        facts.append(("model", _model_line(model)))
    if model is not None and model["head"] is not None:
        facts.append(("head", str(model["head"])))
    for kind in ("missing", "unexpected", "mismatched"):
        if report[kind] is not None:
            facts.append((kind, _some(report[kind])))
    if report["neuron_parameters"]:
        facts.append(("neurons", f"parameters of their own: {_some(report['neuron_parameters'])}"))
    bad = [f"{key} ({count:,})" for key, count in report["not_finite"].items()]
    facts.append(("NaN, Inf", _some(bad)))
    facts.extend(("metadata", f"{key}: {_shortened(str(value))}") for key, value in report["metadata"].items())
    return facts


def _model_line(model: dict[str, Any]) -> str:
    name = model["name"] or "none of the zoo's"
    groups = f", {model['groups']} groups" if model["groups"] > 1 else ""
    option = f", shortcut option {model['shortcut_option']}" if model["shortcut_option"] else ""
    return (
        f"{name}: depth {model['depth']}, {model['block']} blocks {model['stages']}, width {model['width_per_group']}"
        f"{groups}{option}, {_known(model['in_channels'])} input channels, {_known(model['classes'])} classes"
    )


def _known(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _some(items: list[str]) -> str:
    return f"{len(items)}: {first_few(items, _SHOWN)}" if items else "none"


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " ..."
