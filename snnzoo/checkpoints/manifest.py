"""The weights manifest: which pretrained weights there are. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from snnzoo.errors import SnnzooError, UsageError, suggestion
from snnzoo.preprocess import PRESETS, Preprocess

RECIPES = ("digits",)
LAYOUTS = ("torchvision", "akamaster")


class ManifestError(SnnzooError):
    """An entry of a manifest file is malformed; the message names file, entry and field."""


@dataclass(frozen=True)
class WeightsEntry:
    """One weights set; the fields are explained at the head of `weights_manifest.yaml`."""

    model: str
    name: str
    layout: str
    num_classes: int
    preprocess: Preprocess
    license: str
    source: str
    url: str | None = None
    recipe: str | None = None
    sha256: str | None = None
    size: float | None = None
    default: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f"{self.model}.{self.name}"

    @property
    def filename(self) -> str:
        """Its name in the cache: the url's, as torch.hub has it, or one for what a recipe makes."""
        return self.url.rsplit("/", 1)[-1] if self.url else f"snnzoo-{self.model}-{self.name}.safetensors"


@functools.cache
def load_manifest(path: Path | None = None) -> tuple[WeightsEntry, ...]:
    """The entries of a manifest file, by default the one in the package.

    Raises:
        ManifestError: if the file or an entry is malformed.
    """
    if path is None:
        text = importlib.resources.files("snnzoo").joinpath("weights_manifest.yaml").read_text("utf-8")
    else:
        text = path.read_text("utf-8")
    origin = str(path or "weights_manifest.yaml")
    try:
        items = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ManifestError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(items, list):
        raise ManifestError(f"{origin}: expected a list of entries, got {type(items).__name__}")
    entries = tuple(_entry(item, f"{origin}: entry {i}") for i, item in enumerate(items, start=1))
    tags = [entry.tag for entry in entries]
    for tag in tags:
        if tags.count(tag) > 1:
            raise ManifestError(f"{origin}: {tag} has {tags.count(tag)} entries, expected one")
    return entries


def find(model: str, name: str) -> WeightsEntry:
    """The entry of `model` called `name`, or its default for "DEFAULT".

    Raises:
        UsageError: if there is none, listing what there is.
    """
    entries = [entry for entry in load_manifest() if entry.model == model]
    for entry in entries:
        if entry.name.lower() == name.lower() or (entry.default and name.upper() == "DEFAULT"):
            return entry
    known = [entry.name for entry in entries]
    hint = suggestion(name, known, f"known: {', '.join(known) or 'none'}")
    raise UsageError(f"{model} has no weights called {name!r}: {hint}")


_REQUIRED: dict[str, Any] = {
    "model": str,
    "name": str,
    "layout": str,
    "num_classes": int,
    "license": str,
    "source": str,
}
_OPTIONAL: dict[str, Any] = {
    "url": str,
    "recipe": str,
    "sha256": str,
    "size": (int, float),
    "default": bool,
    "metrics": dict,
}


def _entry(item: Any, where: str) -> WeightsEntry:
    """Check one item of the YAML list and make it an entry."""
    if not isinstance(item, dict):
        raise ManifestError(f"{where}: expected a mapping, got {type(item).__name__}")
    where = f"{where} ({item.get('model')}.{item.get('name')})"
    known = {f.name for f in dataclasses.fields(WeightsEntry)}
    for key in item:
        if key not in known:
            raise ManifestError(f"{where}: unknown field {key!r}: {suggestion(str(key), known, 'remove it')}")
    for key, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if key in _REQUIRED and key not in item:
            raise ManifestError(f"{where}: field {key!r} is missing")
        wrong_bool = kind is not bool and isinstance(item.get(key), bool)
        if key in item and (not isinstance(item[key], kind) or wrong_bool):
            raise ManifestError(f"{where}: field {key!r} has the wrong type: got {item[key]!r}")
    if ("url" in item) == ("recipe" in item):
        raise ManifestError(f"{where}: give either 'url' or 'recipe'")
    if item.get("recipe", RECIPES[0]) not in RECIPES:
        raise ManifestError(f"{where}: field 'recipe' must be one of {', '.join(RECIPES)}, got {item['recipe']!r}")
    if item["layout"] not in LAYOUTS:
        raise ManifestError(f"{where}: field 'layout' must be one of {', '.join(LAYOUTS)}, got {item['layout']!r}")
    sha256 = item.get("sha256")
    if sha256 is not None and not (8 <= len(sha256) <= 64 and set(sha256) <= set("0123456789abcdef")):
        raise ManifestError(f"{where}: field 'sha256' must be 8 to 64 hexadecimal digits, got {sha256!r}")
    return WeightsEntry(**{**item, "preprocess": _preprocess(item.get("preprocess"), where)})


def _preprocess(value: Any, where: str) -> Preprocess:
    if isinstance(value, str) and value in PRESETS:
        return PRESETS[value]
    if isinstance(value, dict):
        try:
            return Preprocess(**value)
        except (TypeError, ValueError) as error:
            raise ManifestError(f"{where}: field 'preprocess': {error}") from None
    raise ManifestError(
        f"{where}: field 'preprocess' must be a preset ({', '.join(PRESETS)}) or its fields, got {value!r}"
    )
