"""The weights manifest: which pretrained weights there are. Nothing here imports torch.

Entries come from the package's `weights_manifest.yaml`, then from a file of that name in the user's
config folder, then from one given with `--manifest`; a later entry replaces an earlier one of its tag.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from snnzoo.checkpoints.layout_rules import LAYOUTS
from snnzoo.checkpoints.schema import PREPROCESS, Field, check, is_count, is_number, is_text, matches, shown
from snnzoo.data.preprocess import PRESETS, Preprocess
from snnzoo.errors import SnnzooError, UsageError, suggestion

FILE_NAME = "weights_manifest.yaml"
MAX_SIZE = 1 << 19  # bytes of a manifest
MAX_FIELDS = 1000  # of a mapping in it
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
    """Return the user's own manifest: `$XDG_CONFIG_HOME/snnzoo/weights_manifest.yaml`, by default in `~/.config`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "snnzoo" / FILE_NAME


def load_manifest(path: Path | None = None) -> tuple[WeightsEntry, ...]:
    """Return the entries of one manifest file, by default the one in the package.

    Raises:
        ManifestError: if the file cannot be read, or it or an entry is malformed.
    """
    if path is None:
        return _package_manifest()
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise ManifestError(f"{path}: is a pipe, socket or device, expected a file")
        with path.open("rb") as file:
            text = file.read(MAX_SIZE + 1)
        if len(text) > MAX_SIZE:
            raise ManifestError(f"{path}: is larger than {MAX_SIZE:,} bytes, more than a manifest has")
        return _parse(text.decode(), str(path))
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the manifest: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text") from None


def all_entries(extra: Path | None = None) -> tuple[WeightsEntry, ...]:
    """Return the package's entries, with those of the user's config folder and of the file `extra` over them.

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
    """Return the entry of `model` called `name` (in any case), or its default for "DEFAULT".

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
        seen = set()
        for key, _ in node.value if node.id == "mapping" else ():
            if key.id == "scalar" and key.value in seen:
                problem = f"field {shown(key.value)} is given twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if key.id == "scalar" else None)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_FIELDS:  # mappings that merge others, which merge others ...
            problem = f"a mapping has more than {MAX_FIELDS} fields"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _parse(text: str, origin: str) -> tuple[WeightsEntry, ...]:
    """The entries of a manifest's text; no tag and no model's default may come twice."""
    try:
        items = yaml.load(text, Loader=_Loader)
    except Exception as error:  # a date such as 2020-13-45, a tag that does not fit: PyYAML's constructors raise many
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


def _is_percentage(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def _is_url(value: Any) -> bool:
    if not matches(r"https?://[!-~]{1,2000}")(value):
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


_is_filename = matches(r"(?!\.)(?!.*\.(?i:part|lock)$)[\w.+%=@,~ -]{1,200}")  # those are a download's own
_LAYOUTS_TEXT, _BUILDERS_TEXT = ", ".join(LAYOUTS), ", ".join(BUILDERS)

_ENTRY = {
    "model": Field("the name of a model", matches(r"\w{1,64}"), required=True),
    "name": Field(
        "letters, digits, '_', '-', '+' and '.', not DEFAULT", matches(r"(?!(?i:default)$)\w[\w.+-]{0,63}"), True
    ),
    "layout": Field(f"one of {_LAYOUTS_TEXT}", tuple(LAYOUTS).__contains__, required=True),
    "num_classes": Field("a whole number of at least 1", is_count, required=True),
    "preprocess": Field(
        f"a preset ({', '.join(PRESETS)}) or its fields", lambda value: isinstance(value, str | dict), required=True
    ),
    "license": Field("text", is_text, required=True),
    "source": Field("text", is_text, required=True),
    "url": Field("an http:// or https:// address", _is_url),
    "builder": Field(f"one of {_BUILDERS_TEXT}", BUILDERS.__contains__),
    "filename": Field("a file name without a folder", _is_filename),
    "sha256": Field("8 to 64 of the digits 0-9 and a-f, in quotes", matches(r"[0-9a-f]{8,64}")),
    "size": Field("a positive number of MiB", lambda value: is_number(value) and value > 0),
    "default": Field("true or false", lambda value: isinstance(value, bool)),
    "metrics": Field("a mapping", lambda value: isinstance(value, dict)),
}
_METRICS = {
    "dataset": Field("text", is_text, required=True),
    "top1": Field("a percentage", _is_percentage),
    "top5": Field("a percentage", _is_percentage),
}


def _entry(item: Any, number: int, origin: str) -> WeightsEntry:
    """Check one item of the YAML list and make it an entry."""
    where = f"{origin}: entry {number}"
    if not isinstance(item, dict):
        raise ManifestError(f"{where}: expected a mapping, got {type(item).__name__}")
    if all(_ENTRY[key].accepts(item.get(key)) for key in ("model", "name")):
        where += f" ({item['model']}.{item['name']})"
    check(item, _ENTRY, where, ManifestError, renamed=RENAMED)
    if ("url" in item) == ("builder" in item):
        raise ManifestError(f"{where}: give either 'url' or 'builder'")
    for key in ("sha256", "size", "filename"):
        if "builder" in item and key in item:
            raise ManifestError(f"{where}: field {key!r} does not go with 'builder'")
    if item.get("metrics"):
        check(item["metrics"], _METRICS, where, ManifestError, "metrics.")
    filename = item.get("filename") or _default_filename(item)
    if not _is_filename(filename):
        raise ManifestError(f"{where}: field 'url' must end in a file name, got {shown(item['url'])}")
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
    check(value, PREPROCESS, where, ManifestError, "preprocess.")
    try:
        return Preprocess(**value)
    except ValueError as error:
        raise ManifestError(f"{where}: field 'preprocess': {error}") from None
