"""`snnzoo list`: models and their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints.download import cache_path, is_cached
from snnzoo.checkpoints.manifest import WeightsEntry
from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.data.preprocess import preset
from snnzoo.errors import UsageError, suggestion
from snnzoo.models.registry import MODELS, list_models, list_weights, model_spec

if TYPE_CHECKING:
    from rich.table import Table


def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'resnet*'.")] = "*",
    manifest_file: common.ManifestOption = None,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    debug: common.DebugOption = False,
) -> None:
    """List models and their weights. `snnzoo info` says more about each.

    Example: snnzoo list 'resnext*'
    """
    check_outputs({"--json": json}, filter(None, [manifest_file]), force=force)
    names = list_models(pattern)
    if not names:
        raise UsageError(f"no model matches {pattern!r}: {suggestion(pattern, MODELS, 'snnzoo list shows all')}")
    entries = list_weights(manifest_file)
    if common.write_json(json, {"models": [describe_model(name, entries) for name in names]}, force):
        return
    print_table(weights_table([entry for entry in entries if entry.model in names], names))


def describe_model(name: str, entries: Iterable[WeightsEntry]) -> dict[str, Any]:
    """Return a model and its weights, for --json."""
    spec = model_spec(name)
    return {
        "name": name,
        "description": spec.description,
        "num_classes": spec.num_classes,
        "preprocess": preset(spec.preprocess).to_dict(),
        "weights": [describe_weights(entry) for entry in entries if entry.model == name],
    }


def describe_weights(entry: WeightsEntry) -> dict[str, Any]:
    """Return a weights set, for --json: the fields of the manifest, and where its file is or would be."""
    return {
        "tag": entry.tag,
        "model": entry.model,
        "name": entry.name,
        "default": entry.default,
        "num_classes": entry.num_classes,
        "metrics": entry.metrics,
        "size_mib": entry.size,
        "license": entry.license,
        "source": entry.source,
        "url": entry.url,
        "builder": entry.builder,
        "sha256": entry.sha256,
        "layout": entry.layout,
        "preprocess": entry.preprocess.to_dict(),
        "manifest": entry.origin,
        "cached": is_cached(entry),
        "path": str(cache_path(entry)),
    }


def weights_table(entries: Iterable[WeightsEntry], names: Iterable[str]) -> Table:
    """Return a table, one row a weights set, models in the order of `names`; a model without weights has a row too."""
    from rich.markup import escape
    from rich.table import Table

    entries = list(entries)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("model", "weights", "classes", "top-1 %", "data set", "MiB", "license", "cached"):
        numbers = heading in ("classes", "top-1 %", "MiB")
        table.add_column(heading, no_wrap=True, justify="right" if numbers else "left")
    for name in names:
        own = [entry for entry in entries if entry.model == name]
        if not own:
            table.add_row(name, "-", str(model_spec(name).num_classes))
        for i, entry in enumerate(own):
            table.add_row(
                name if i == 0 else "",
                entry.name + (" *" if entry.default and len(own) > 1 else ""),
                str(entry.num_classes),
                f"{entry.metrics['top1']:.2f}" if "top1" in entry.metrics else "",
                escape(entry.metrics.get("dataset", entry.builder or "")),
                f"{entry.size:.1f}" if entry.size else "",
                escape(entry.license),
                "yes" if is_cached(entry) else "",
            )
    table.caption = "* taken when no --weights are named"
    table.caption_justify = "left"
    return table


def print_table(table: Table) -> None:
    """Print a table unabridged: on a narrow terminal its lines wrap, in a pipe they are as long as they are."""
    console = common.console()
    wanted = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(wanted, console.width)
    console.print(table)
