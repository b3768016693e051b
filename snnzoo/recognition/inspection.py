"""What a checkpoint file holds, found out without trusting it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from snnzoo.checkpoints.files import FORMATS, file_format, read_with_metadata, sha256_of
from snnzoo.checkpoints.layout_rules import is_neuron_key
from snnzoo.checkpoints.layouts import compare
from snnzoo.checkpoints.wrapping import unwrap
from snnzoo.errors import CheckpointError, SnnzooError
from snnzoo.models.factory import ann_shapes
from snnzoo.recognition.identification import Architecture, architecture
from snnzoo.recognition.reading import read_layout

THRESHOLD = ".v_threshold"
NEURON_PARAMETERS = ("v_threshold", "bias", "offset")  # of converted networks; the last one in the first format


def inspect_checkpoint(path: Path, layout: str | None = None) -> dict[str, Any]:
    """Return all there is to say about a checkpoint, as plain data.

    Returns:
        `file`, `format`, `size` (bytes), `sha256`, `tensors` (their number), `elements`, `dtypes` (elements of
        each), `not_finite` (elements that are NaN or infinite, by key), `layout` (`name`, `confidence`, `summary`,
        `wrapping`, `notes`; or an `error`), `model` (see `Architecture`), `missing`, `unexpected` and
        `mismatched` keys against that model (None without a model), `neuron_parameters` (their keys), `metadata`.

    Raises:
        UsageError: for an unknown `layout`.
        CheckpointError: if the file cannot be read, or holds no state dict.
    """
    tensors, metadata = read_with_metadata(path)
    unwrapped = unwrap(tensors, str(path))
    values = unwrapped.state_dict
    report: dict[str, Any] = {
        "file": str(path),
        "format": FORMATS[file_format(path)],
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "tensors": len(values),
        "elements": sum(value.numel() for value in values.values()),
        "dtypes": _dtypes(values),
        "not_finite": {key: bad for key, value in values.items() if (bad := _not_finite(value))},
        **_reading(tensors, layout, path, metadata),
        "metadata": {**{key: value for key, value in unwrapped.extra.items() if _is_plain(value)}, **metadata},
    }
    return report


def _dtypes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    elements: Counter[str] = Counter()
    for value in tensors.values():
        elements[str(value.dtype).removeprefix("torch.")] += value.numel()
    return dict(elements.most_common())


def _not_finite(value: Tensor) -> int:
    """How many elements are NaN or infinite, a part at a time: what is computed on the way may be larger than all."""
    if not (value.is_floating_point() or value.is_complex()):
        return 0
    return sum(part.numel() - int(_finite(part).sum()) for part in value.flatten().split(1 << 22))


def _finite(value: Tensor) -> Tensor:
    try:
        return value.isfinite()
    except (RuntimeError, NotImplementedError):  # no such operation for this 8-bit type
        return value.bfloat16().isfinite()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _reading(content: Any, layout: str | None, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The layout, the model and how well they fit."""
    report: dict[str, Any] = dict.fromkeys(("model", "missing", "unexpected", "mismatched"))
    if layout is None and metadata.get("format", "").startswith("snnzoo/"):
        return {**report, **_reading_of_ours(content, metadata)}
    try:
        found = read_layout(content, str(path), layout, path)
    except CheckpointError as error:
        return {"layout": {"error": str(error).removeprefix(f"{path}: ")}, **report, "neuron_parameters": []}
    report["layout"] = {
        "name": found.layout.name,
        "confidence": found.confidence,
        "summary": found.summary,
        "wrapping": list(found.wrapping),
        "notes": list(found.notes),
    }
    report["neuron_parameters"] = [key for key in found.state_dict if is_neuron_key(key)]
    try:
        guess = architecture(found.state_dict)
        report["model"] = _describe_model(guess)
        if found.layout.is_sew and guess.name is not None:
            report["model"]["name"] = f"sew_{guess.name}"
        if guess.name is not None:
            net = ann_shapes(guess.name, **guess.kwargs)
            keys = compare(net.state_dict(), found.state_dict)
            report.update(zip(("missing", "unexpected", "mismatched"), keys, strict=True))
    except SnnzooError as error:
        report["layout"]["notes"].append(str(error))
    return report


def _reading_of_ours(content: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Of a converted network: whatever it is of, its metadata names it, and its neurons have thresholds."""
    sites = [key.removesuffix(THRESHOLD) for key in content if key.endswith(THRESHOLD)]
    neurons = [
        key for key in content if key.rpartition(".")[0] in set(sites) and key.rpartition(".")[2] in NEURON_PARAMETERS
    ]
    summary = f"layout snnzoo (sure: all {len(content)} keys are its own)"
    layout = {"name": "snnzoo", "confidence": 1.0, "summary": summary, "wrapping": [], "notes": []}
    guess = architecture({key: value for key, value in content.items() if key not in set(neurons)})
    model = _describe_model(guess) if guess.name == metadata.get("model") else {"name": metadata.get("model")}
    return {"layout": layout, "model": model, "missing": [], "unexpected": [], "neuron_parameters": neurons}


def _describe_model(guess: Architecture) -> dict[str, Any]:
    return {
        "name": guess.name,
        "depth": guess.depth,
        "block": guess.block,
        "stages": list(guess.stages),
        "groups": guess.groups,
        "width_per_group": guess.width_per_group,
        "in_channels": guess.in_channels,
        "classes": guess.num_classes,
        "shortcut_option": guess.option,
        "head": guess.head,
    }
