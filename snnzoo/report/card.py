"""Model cards, as hubs show them: a README of a converted network, with what was measured and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from snnzoo.checkpoints.manifest import all_entries
from snnzoo.checkpoints.output import atomic_output
from snnzoo.checkpoints.schema import is_number
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError, UsageError, printable

TASK = "image-classification"
SPLITS = {"train", "test", "val", "valid", "validation"}  # folders that are parts of a data set
HUBS = {"hf": "{}", "timm": "timm/{}"}  # repositories that networks of these libraries are from
_FIGURES = ("time_steps", "top1", "top5", "events_per_neuron_step", "synaptic_operations", "energy_uj")


@dataclass(frozen=True)
class About:
    """What a file does not tell; None is left to what is known, or left out.

    Args:
        title: heading of the card.
        license: of the weights, as SPDX or the hub has it.
        dataset: name of the data that results are of.
        base_model: repository of the ANN.
    """

    title: str | None = None
    license: str | None = None
    dataset: str | None = None
    base_model: str | None = None


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file of `snnzoo eval --json`, of one network or of several.

    Raises:
        SnnzooError: if the file cannot be read, or is none of that.
    """
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SnnzooError(f"{path}: cannot read results: {error}") from None
    results = read.get("evaluations", [read]) if isinstance(read, dict) else []
    if not results or not all(_is_result(result) for result in results):
        raise SnnzooError(f"{path}: no results of snnzoo eval --json")
    return list(results)


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("results"), list) or not result["results"]:
        return False
    rows, ann = result["results"], result.get("ann") or {}
    if not isinstance(ann, dict) or not all(isinstance(row, dict) for row in rows):
        return False
    if any(row.get("agreement") is not None and not is_number(row["agreement"]) for row in rows):
        return False
    known = [ann[key] for key in (*_FIGURES, "multiply_accumulates") if key in ann]
    return all(map(is_number, known)) and all(is_number(row.get(key)) for row in rows for key in _FIGURES)


def results_of(conversion: Conversion, results: Iterable[Mapping[str, Any]], file: Path) -> list[Mapping[str, Any]]:
    """Return the results that are of a converted file: of its model and coding, by its name if it has one.

    Raises:
        UsageError: if none is.
    """
    coding = conversion.coding.to_dict()
    fitting = [r for r in results if r.get("model") == conversion.model and r.get("coding") == coding]
    named = [r for r in fitting if PurePath(str(r.get("file"))).name == file.name]
    if not fitting:
        raise UsageError(f"the results are not of {file}: it is {conversion.model} with {conversion.coding}")
    return named or fitting


def write_card(
    path: Path,
    conversion: Conversion,
    file: Path,
    results: Sequence[Mapping[str, Any]] = (),
    about: About | None = None,
    *,
    replace: bool = True,
) -> None:
    """Write `render` to a file.

    Raises:
        SnnzooError: if it cannot be written.
    """
    with atomic_output(path, replace=replace) as temporary:
        temporary.write_text(render(conversion, file, results, about or About()), encoding="utf-8")


def render(conversion: Conversion, file: Path, results: Sequence[Mapping[str, Any]], about: About) -> str:
    """Return the card: front matter in YAML, then Markdown.

    Args:
        file: that the card is of.
        results: measured ones, as `snnzoo eval --json` has them; none leaves figures out, and says so.
    """
    front = yaml.safe_dump(_front_matter(conversion, file, results, about), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {_title(conversion, about)}",
        _described(conversion),
        _usage(conversion, file),
        *(_tables(result, about) for result in results),
        *(
            []
            if results
            else [f"## Results\n\nNot measured yet: `snnzoo eval {file.name} --data DIR --card README.md`."]
        ),
        _made(conversion),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _title(conversion: Conversion, about: About) -> str:
    return _text(about.title or f"{conversion.model}, {conversion.coding}, T={conversion.time_steps}")


def _front_matter(
    conversion: Conversion, file: Path, results: Sequence[Mapping[str, Any]], about: About
) -> dict[str, Any]:
    license = about.license or _license(conversion)
    base_model = about.base_model or _repository(conversion)
    datasets = list(dict.fromkeys(name for name in (_dataset(result, about) for result in results) if name))
    tags = ["snnzoo", "spiking-neural-network", "ann-to-snn", conversion.coding.name, TASK]
    front: dict[str, Any] = {"license": (license or "unknown").lower(), "library_name": "snnzoo", "pipeline_tag": TASK}
    if base_model:
        front["base_model"] = base_model
    front["tags"] = tags
    if datasets:
        front["datasets"] = datasets
    if results:
        entries = [_entry(result, about) for result in results]
        front["model-index"] = [{"name": _title(conversion, about), "results": entries}]
    return front


def _license(conversion: Conversion) -> str | None:
    """That of weights of the manifest."""
    tag = conversion.source.get("weights")
    found = [entry.license for entry in all_entries() if entry.tag == tag]
    return found[0] if found else None


def _repository(conversion: Conversion) -> str | None:
    library, _, name = conversion.model.partition(":")
    return HUBS[library].format(name) if library in HUBS and name else None


def _dataset(result: Mapping[str, Any], about: About) -> str | None:
    """The name given, or that of the data's folder."""
    if about.dataset:
        return about.dataset
    parts = [part for part in PurePath(str(result.get("data") or "")).parts if part.lower() not in SPLITS]
    return parts[-1] if parts and parts[-1] not in ("/", "..") else None


def _entry(result: Mapping[str, Any], about: About) -> dict[str, Any]:
    """One of the model index: every readout's accuracy, agreement and energy."""
    metrics = []
    for row in result["results"]:
        after = f"T={row['time_steps']}"
        metrics += [
            {"type": "accuracy", "name": f"top-1, {after}", "value": round(100 * row["top1"], 4)},
            {"type": "accuracy", "name": f"top-5, {after}", "value": round(100 * row["top5"], 4)},
        ]
        if row.get("agreement") is not None:
            agreement = round(100 * row["agreement"], 4)
            metrics.append({"type": "agreement", "name": f"agreement with the ANN, {after}", "value": agreement})
    name = _dataset(result, about) or "unnamed"
    return {"task": {"type": TASK}, "dataset": {"name": name, "type": name.lower()}, "metrics": metrics}


def _described(conversion: Conversion) -> str:
    calibration = conversion.recipe.get("calibration", {})
    images = calibration.get("images")
    how = f"calibrated on {images} images, without training" if images else "from the BN statistics, without images"
    classes = f" of {len(conversion.classes)} classes" if conversion.classes else ""
    return (
        f"A spiking neural network{classes}: `{_text(conversion.model)}`, converted by snnzoo, {how}. "
        f"Its neurons send {conversion.coding.spikes}; it is made for {conversion.time_steps} time steps."
    )


def _usage(conversion: Conversion, file: Path) -> str:
    name, steps = file.name, conversion.time_steps
    return (
        "## How to load\n\n```bash\npip install snnzoo\n"
        f"snnzoo predict {name} photo.jpg\nsnnzoo eval {name} --data DIR\n```\n\n"
        f"```python\nimport snnzoo\n\nsnn = snnzoo.load({name!r})\nfast = snnzoo.prepare_for_inference(snn)\n"
        f"logits = fast(images.expand({steps}, *images.shape))  # images [N, C, H, W] -> [{steps}, N, classes]\n```"
    )


def _tables(result: Mapping[str, Any], about: About) -> str:
    ann, rows = result.get("ann") or {}, result["results"]
    where = _dataset(result, about) or "its data"
    settings = ", ".join(str(result[key]) for key in ("device", "dtype") if result.get(key))
    accuracy = [
        [f"T={row['time_steps']}", _percent(row["top1"]), _percent(row["top5"]), _percent(row.get("agreement"))]
        for row in rows
    ]
    energy = [
        [
            f"T={row['time_steps']}",
            f"{row['events_per_neuron_step']:.3f}",
            f"{row['synaptic_operations'] / 1e6:.2f}",
            f"{row['energy_uj']:.1f}",
        ]
        for row in rows
    ]
    if ann:
        accuracy.append(["ANN", _percent(ann.get("top1")), _percent(ann.get("top5")), "-"])
        if "energy_uj" in ann:
            operations = ann.get("multiply_accumulates")
            shown = "-" if operations is None else f"{operations / 1e6:.2f} (MAC)"
            energy.append(["ANN", "-", shown, f"{ann['energy_uj']:.1f}"])
    return (
        f"## Results on {_text(where)}\n\n{result.get('images', '?')} images, {_text(settings)}.\n\n"
        + _table(["", "top-1 %", "top-5 %", "agreement with the ANN %"], accuracy)
        + "\n\n### Energy of an image\n\n"
        + _table(["", "events per neuron and step", "synaptic operations, millions", "µJ"], energy)
        + "\n\nAn estimate of the arithmetic alone, in 45 nm (Horowitz, ISSCC 2014); memory is left out."
    )


def _made(conversion: Conversion) -> str:
    recipe = {key: value for key, value in conversion.recipe.items() if not isinstance(value, dict)}
    calibration = dict(conversion.recipe.get("calibration", {}))
    if calibration.get("source"):
        calibration["source"] = "/".join(
            PurePath(str(calibration["source"])).parts[-2:]
        )  # not where it was, what it is
    facts = {
        "weights": conversion.source.get("weights") or conversion.source.get("file"),
        **{key: conversion.source.get(key) for key in ("url", "sha256")},
        **{f"recipe: {key}": value for key, value in recipe.items()},
        **{f"calibration: {key}": value for key, value in calibration.items()},
        **({} if conversion.preprocess is None else conversion.preprocess.to_dict()),
    }
    rows = [[key, str(value)] for key, value in facts.items() if value is not None]
    return "## How it was made\n\n" + _table(["", ""], rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _text(value: str) -> str:
    """One line that Markdown shows as it is."""
    shown = printable(" ".join(value.split()))
    for mark in "\\`*_<>[]|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
