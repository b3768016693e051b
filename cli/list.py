"""`snnzoo list`: models and their weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from snnzoo.cli import common

from snnzoo.checkpoints.fetch import cached
from snnzoo.checkpoints.manifest import load_manifest
from snnzoo.errors import UsageError, suggestion
from snnzoo.models.registry import MODELS, list_models


def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'resnet*'.")] = "*",
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    debug: common.DebugOption = False,
) -> None:
    """List models and their weights.

    Example: snnzoo list 'resnext*'
    """
    common.check_json(json, force)
    names = list_models(pattern)
    if not names:
        raise UsageError(f"no model matches {pattern!r}: {suggestion(pattern, MODELS, 'snnzoo list shows all')}")
    if common.write_json(json, {"models": [_describe(name) for name in names]}):
        return
    from rich.table import Table

    table = Table()
    for heading in ("model", "weights", "classes", "top-1 %", "data set", "cached"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("classes", "top-1 %") else "left")
    for name in names:
        entries = [entry for entry in load_manifest() if entry.model == name]
        if not entries:
            table.add_row(name, "-", str(MODELS[name].num_classes), "", "", "")
        for i, entry in enumerate(entries):
            default = " *" if entry.default and len(entries) > 1 else ""
            table.add_row(
                name if i == 0 else "",
                entry.name + default,
                str(entry.num_classes),
                f"{entry.metrics['top1']:.2f}" if "top1" in entry.metrics else "",
                entry.metrics.get("dataset", entry.name),
                "yes" if cached(entry) else "",
            )
    table.caption = "* taken when no --weights are named"
    common.console().print(table)


def _describe(name: str) -> dict[str, Any]:
    weights = [
        {
            "name": entry.name,
            "default": entry.default,
            "num_classes": entry.num_classes,
            "metrics": entry.metrics,
            "size": entry.size,
            "license": entry.license,
            "url": entry.url,
            "cached": bool(cached(entry)),
        }
        for entry in load_manifest()
        if entry.model == name
    ]
    return {"name": name, "description": MODELS[name].description, "weights": weights}
