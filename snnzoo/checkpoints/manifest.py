"""The weights manifest: which pretrained weights there are. Nothing here imports torch.

Entries come from the package's `weights_manifest.yaml`, then from a file of that name in the user's
config folder, then from one given with `--manifest`; a later entry replaces an earlier one of its tag.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
import os
import re
import reprlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from snnzoo.checkpoints.layout_rules import LAYOUTS
from snnzoo.data.preprocess import INTERPOLATIONS, PRESETS, Preprocess
from snnzoo.errors import SnnzooError, UsageError, suggestion

FILE_NAME = "weights_manifest.yaml"
BUILDERS = ("digits",)
RENAMED = {"recipe": "builder"}  # fields that had another name


class ManifestError(SnnzooError):
    """A manifest file or an entry of it is malformed; the message names file, entry and field."""


@dataclass(frozen=True)
class WeightsEntry:
    """One weights set. The fields are explained at the head of `weights_manifest.yaml`.

    `filename` is its name in the cache; `origin` is the manifest file that it is from.
    """

    model: str
    name: str
    layout: str
    num_classes: int
    preprocess: Preprocess
    license: str
    source: str
    filename: str
    origin: str = FILE_NAME
    url: str | None = None
    builder: str | None = None
    sha256: str | None = None
    size: float | None = None
    default: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """`model.name`."""
        return f"{self.model}.{self.name}"


def config_file() -> Path:
    """The user's own manifest: `$XDG_CONFIG_HOME/snnzoo/weights_manifest.yaml`, by default in `~/.config`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "snnzoo" / FILE_NAME


def load_manifest(path: Path | None = None) -> tuple[WeightsEntry, ...]:
    """The entries of one manifest file, by default the one in the package.

    Raises:
        ManifestError: if the file cannot be read, or it or an entry is malformed.
    """
    if path is None:
        return _package_manifest()
    try:
        return _parse(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the manifest: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text") from None


def all_entries(extra: Path | None = None) -> tuple[WeightsEntry, ...]:
    """The package's entries, with those of the user's config folder and of the file `extra` over them.

    A later entry replaces one of the same tag, and a later `default` that of the same model.

    Raises:
        ManifestError: as `load_manifest`, and if two weights sets would share a file in the cache.
    """
    files = [None, *filter(os.path.isfile, [config_file()]), *filter(None, [extra])]
    entries: dict[str, WeightsEntry] = {}
    defaults: dict[str, str] = {}
    for file in files:
        for entry in load_manifest(file):
            entries[entry.tag.lower()] = entry
            if entry.default:
                defaults[entry.model] = entry.tag.lower()
    _check_filenames(entries.values())
    return tuple(dataclasses.replace(e, default=defaults.get(e.model) == tag) for tag, e in entries.items())


def find(model: str, name: str, entries: Iterable[WeightsEntry] | None = None) -> WeightsEntry:
    """The entry of `model` called `name` (in any case), or its default for "DEFAULT".

    Args:
        entries: where to look; `all_entries()` if None.

    Raises:
        UsageError: if there is none, listing what there is.
    """
    own = [entry for entry in (all_entries() if entries is None else entries) if entry.model == model]
    for entry in own:
        if entry.name.lower() == name.lower() or (entry.default and name.upper() == "DEFAULT"):
            return entry
    known = [entry.name for entry in own]
    hint = suggestion(name, known, f"known: {', '.join(known) or 'none'}")
    raise UsageError(f"{model} has no weights called {name!r}: {hint}")


@functools.cache
def _package_manifest() -> tuple[WeightsEntry, ...]:
    return _parse(importlib.resources.files("snnzoo").joinpath(FILE_NAME).read_text("utf-8"), FILE_NAME)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in Python because libyaml's overflows the stack, that takes no field twice.

    Without that, an entry whose leading dash was forgotten would silently replace the one above it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if key.id == "scalar"] if node.id == "mapping" else []
        for i, key in enumerate(keys):
            if key.value in (other.value for other in keys[:i]):
                problem = f"field {_shown(key.value)} is given twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str, origin: str) -> tuple[WeightsEntry, ...]:
    """The entries of a manifest's text; no tag and no model's default may come twice."""
    try:
        items = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2020-13-45
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ManifestError(f"{origin}: not valid YAML: {reason}") from None
    if items is None:  # nothing but comments
        return ()
    if not isinstance(items, list):
        raise ManifestError(f"{origin}: expected a list of entries, got {type(items).__name__}")
    entries = tuple(_entry(item, i, origin) for i, item in enumerate(items, start=1))
    tags: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for i, entry in enumerate(entries, start=1):
        place = f"entry {i} ({entry.tag})"
        if (other := tags.setdefault(entry.tag.lower(), place)) != place:
            raise ManifestError(f"{origin}: {place}: field 'name' is taken: {other} has the same tag")
        if entry.default and (other := defaults.setdefault(entry.model, place)) != place:
            raise ManifestError(f"{origin}: {place}: field 'default' is set in {other} of the same model too")
    return entries


def _check_filenames(entries: Iterable[WeightsEntry]) -> None:
    """No two weights sets may share a file in the cache, unless a hash says that it is the same file."""
    owners: dict[str, WeightsEntry] = {}
    for entry in entries:
        other = owners.setdefault(entry.filename.lower(), entry)
        same_hash = entry.sha256 is not None and entry.sha256 == other.sha256
        if other is not entry and other.url != entry.url and not same_hash:
            raise ManifestError(
                f"{entry.origin}: {entry.tag}: its file {entry.filename} would have the name of {other.tag}'s in the "
                f"cache: give the field 'filename', or the same 'sha256' if they are the same file"
            )


class _Field(NamedTuple):
    """What a field of an entry may hold."""

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_percentage(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _is_url(value: Any) -> bool:
    if not _matches(r"https?://[!-~]+")(value):
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


_is_filename = _matches(r"(?!\.)[\w.+%=@,~ -]{1,200}")
_LAYOUTS_TEXT, _BUILDERS_TEXT = ", ".join(LAYOUTS), ", ".join(BUILDERS)

_ENTRY = {
    "model": _Field("the name of a model", _matches(r"\w+"), required=True),
    "name": _Field(
        "letters, digits, '_', '-', '+' and '.', not DEFAULT", _matches(r"(?!(?i:default)$)\w[\w.+-]*"), True
    ),
    "layout": _Field(f"one of {_LAYOUTS_TEXT}", tuple(LAYOUTS).__contains__, required=True),
    "num_classes": _Field("a whole number of at least 1", _is_count, required=True),
    "preprocess": _Field(
        f"a preset ({', '.join(PRESETS)}) or its fields", lambda value: isinstance(value, str | dict), required=True
    ),
    "license": _Field("text", _is_text, required=True),
    "source": _Field("text", _is_text, required=True),
    "url": _Field("an http:// or https:// address", _is_url),
    "builder": _Field(f"one of {_BUILDERS_TEXT}", BUILDERS.__contains__),
    "filename": _Field("a file name without a folder", _is_filename),
    "sha256": _Field("8 to 64 of the digits 0-9 and a-f, in quotes", _matches(r"[0-9a-f]{8,64}")),
    "size": _Field("a positive number of MiB", lambda value: _is_number(value) and value > 0),
    "default": _Field("true or false", lambda value: isinstance(value, bool)),
    "metrics": _Field("a mapping", lambda value: isinstance(value, dict)),
}
_METRICS = {
    "dataset": _Field("text", _is_text, required=True),
    "top1": _Field("a percentage", _is_percentage),
    "top5": _Field("a percentage", _is_percentage),
}
_PREPROCESS = {
    "resize": _Field("a whole number of pixels", _is_count, required=True),
    "crop": _Field("a whole number of pixels", _is_count, required=True),
    "mean": _Field("a list of numbers", _are_numbers, required=True),
    "std": _Field("a list of numbers", _are_numbers, required=True),
    "interpolation": _Field(f"one of {', '.join(INTERPOLATIONS)}", INTERPOLATIONS.__contains__),
}


def _check(item: Mapping[Any, Any], schema: Mapping[str, _Field], where: str, parent: str = "") -> None:
    """Raise a ManifestError for the first field that is unknown, missing or wrong."""
    for key in item:
        if key not in schema:
            hint = suggestion(str(key), schema, f"known: {', '.join(schema)}")
            if key in RENAMED:
                hint = f"it is called {RENAMED[key]!r} now"
            raise ManifestError(f"{where}: unknown field {_shown(f'{parent}{key}')}: {hint}")
    for key, (expected, accepts, required) in schema.items():
        if required and key not in item:
            raise ManifestError(f"{where}: field '{parent}{key}' is missing")
        if key in item and not accepts(item[key]):
            raise ManifestError(f"{where}: field '{parent}{key}' must be {expected}, got {_shown(item[key])}")


def _entry(item: Any, number: int, origin: str) -> WeightsEntry:
    """Check one item of the YAML list and make it an entry."""
    where = f"{origin}: entry {number}"
    if not isinstance(item, dict):
        raise ManifestError(f"{where}: expected a mapping, got {type(item).__name__}")
    if all(_ENTRY[key].accepts(item.get(key)) for key in ("model", "name")):
        where += f" ({item['model']}.{item['name']})"
    _check(item, _ENTRY, where)
    if ("url" in item) == ("builder" in item):
        raise ManifestError(f"{where}: give either 'url' or 'builder'")
    for key in ("sha256", "size", "filename"):
        if "builder" in item and key in item:
            raise ManifestError(f"{where}: field {key!r} does not go with 'builder'")
    if item.get("metrics"):
        _check(item["metrics"], _METRICS, where, "metrics.")
    filename = item.get("filename") or _default_filename(item)
    if not _is_filename(filename):
        raise ManifestError(f"{where}: field 'url' must end in a file name, got {_shown(item['url'])}")
    made = {"preprocess": _preprocess(item["preprocess"], where), "filename": filename, "origin": origin}
    return WeightsEntry(**{**item, **made})


def _default_filename(item: Mapping[str, Any]) -> str:
    """The last part of the url, as torch.hub has it; of what a builder makes, one of our own."""
    if "builder" in item:
        return f"snnzoo-{item['model']}-{item['name']}.safetensors"
    return urlsplit(item["url"]).path.rpartition("/")[2]


def _preprocess(value: str | dict[str, Any], where: str) -> Preprocess:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ManifestError(f"{where}: field 'preprocess' must be {_ENTRY['preprocess'].expected}, got {value!r}")
        return PRESETS[value]
    _check(value, _PREPROCESS, where, "preprocess.")
    try:
        return Preprocess(**value)
    except ValueError as error:
        raise ManifestError(f"{where}: field 'preprocess': {error}") from None


def _shown(value: Any) -> str:
    """A value as it stands in a message, however long or deep it is."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 100
    return shown.repr(value)
