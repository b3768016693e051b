"""`snnzoo info`: all about one model, or one weights set."""

from __future__ import annotations

from typing import Annotated

import typer

from snnzoo.checkpoints import manifest
from snnzoo.checkpoints.download import cache_path, is_cached
from snnzoo.checkpoints.manifest import WeightsEntry
from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.cli.list import describe_model, describe_weights, print_table, weights_table
from snnzoo.data.preprocess import Preprocess, preset
from snnzoo.errors import printable
from snnzoo.models.registry import list_weights, model_spec, split_tag


def info(
    name: Annotated[
        str, typer.Argument(metavar="MODEL[.WEIGHTS]", help="A name of `snnzoo list`, such as resnet18.digits.")
    ],
    manifest_file: common.ManifestOption = None,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Show a model and its weights, or all about one weights set.

    \b
    Examples:
      snnzoo info resnet50
      snnzoo info resnet50.IMAGENET1K_V2 --json -
    """
    model, weights = split_tag(name)
    check_outputs({"--json": json}, filter(None, [manifest_file]), force=force)
    entries = list_weights(manifest_file)
    if weights is None:
        if not common.write_json(json, describe_model(model, entries), force):
            _print_model(model, entries)
    else:
        entry = manifest.find(model, weights, entries)
        if not common.write_json(json, describe_weights(entry), force):
            _print_weights(entry)


def _print_model(name: str, entries: tuple[WeightsEntry, ...]) -> None:
    spec = model_spec(name)
    facts = {
        "model": f"{name}, {spec.description}",
        "classes": f"{spec.num_classes} unless the weights or --num-classes say otherwise",
        "preprocess": _preprocess_line(preset(spec.preprocess)),
    }
    _print_facts(facts)
    own = [entry for entry in entries if entry.model == name]
    common.console().print()
    print_table(weights_table(own, [name]))


def _print_weights(entry: WeightsEntry) -> None:
    metrics = [f"{key} {entry.metrics[key]:.2f} %" for key in ("top1", "top5") if key in entry.metrics]
    facts = {
        "weights": entry.tag + (" (default)" if entry.default else ""),
        "classes": str(entry.num_classes),
        "metrics": f"{', '.join(metrics)} on {entry.metrics['dataset']}" if metrics else "none published",
        "size": f"{entry.size} MiB" if entry.size else "not published",
        "license": entry.license,
        "source": entry.source,
        "url": entry.url or f"none: made by the builder {entry.builder}",
        "sha256": entry.sha256 or "none: the file is not checked",
        "layout": entry.layout,
        "preprocess": _preprocess_line(entry.preprocess),
        "manifest": entry.origin,
        "cached": str(cache_path(entry)) if is_cached(entry) else f"no; its place is {cache_path(entry)}",
    }
    _print_facts(facts)


def _print_facts(facts: dict[str, str]) -> None:
    for key, value in facts.items():
        common.console().print(f"{key:<10}  {printable(value)}", markup=False)


def _preprocess_line(preprocess: Preprocess) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return (
        f"resize {preprocess.resize} ({preprocess.interpolation}), crop {preprocess.crop}, mean ({mean}), std ({std})"
    )
