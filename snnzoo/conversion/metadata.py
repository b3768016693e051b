"""The metadata of a converted file, checked once on reading: nothing in it is believed before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from snnzoo.checkpoints.schema import PREPROCESS, Field, check, is_count, is_number, is_text, matches
from snnzoo.errors import CheckpointError
from snnzoo.models.registry import MODELS

__all__ = ["FIRST_FORMAT", "FORMAT", "MAX_SETTING", "MAX_TIME_STEPS", "read"]

Check = Callable[[Any], bool]

MAX_TIME_STEPS = 1024
MAX_CLASSES = 1 << 20
MAX_SIZE = 4096  # pixels of an image, or its channels
MAX_SETTING = 10_000  # of a coding
MAX_TEXT = 100  # characters of one that is text
FORMAT, FIRST_FORMAT = "snnzoo/2", "snnzoo/1"
_PLAIN = ("format", "model", "time_steps", "snnzoo", "torch", "graph")  # text; a graph is read by `Graph.from_json`


def _is_mapping(value: Any, of: Check = lambda value: True) -> bool:
    return isinstance(value, dict) and all(map(of, value.values()))


def _is_coding(value: Any) -> bool:
    if not (_is_mapping(value) and is_text(value.get("name"))):
        return False
    return all(_is_setting(setting) for key, setting in value.items() if key != "name")


def _is_setting(value: Any) -> bool:
    if isinstance(value, str):
        return is_text(value) and len(value) <= MAX_TEXT
    return isinstance(value, bool) or (is_number(value) and abs(value) <= MAX_SETTING)


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 < value <= 1


def _is_steps(value: Any) -> bool:
    return matches(r"\d{1,4}")(value) and is_count(int(value), MAX_TIME_STEPS)


def _is_convertible(name: Any) -> bool:
    return isinstance(name, str) and name in MODELS and MODELS[name].convertible


def _is_recipe(value: Any) -> bool:
    parts = ("calibration", "choice", "fewest", "earliest")
    return _is_mapping(value) and is_text(value.get("name")) and all(_is_mapping(value.get(key, {})) for key in parts)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_source(value: Any) -> bool:
    return _is_mapping(value, lambda fact: fact is None or isinstance(fact, str))


def _are_layers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_mapping(layer, lambda x: is_text(x) or is_number(x)) for layer in value)


def _is_list(value: Any, of: Check) -> bool:
    return isinstance(value, list) and all(map(of, value))


def _are_numbers(value: Any) -> bool:
    return _is_list(value, is_number)


def _is_fit(value: Any) -> bool:
    figures = ("images", "mean", "median")
    return (
        _is_mapping(value)
        and all(is_number(value.get(key)) for key in figures)
        and is_text(value.get("worst"))
        and _is_mapping(value.get("layers"), is_number)
        and isinstance(value.get("decisions", []), list)
    )


def _or_null(accepts: Check) -> Check:
    return lambda value: value is None or accepts(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 3 and all(is_count(size, MAX_SIZE) for size in value)


_METADATA = {
    "format": Field("text", is_text, required=True),
    "coding": Field(f"a mapping to a name, short text and numbers up to {MAX_SETTING}", _is_coding, required=True),
    "time_steps": Field(f"a whole number from 1 to {MAX_TIME_STEPS}", _is_steps, required=True),
    "recipe": Field("a mapping with a name, to plain values and its calibration and choice", _is_recipe, required=True),
    "preprocess": Field("a mapping, or null", _or_null(_is_mapping), required=True),
    "classes": Field("a list of text, or null", _or_null(_are_names), required=True),
    "source": Field("a mapping to text", _is_source, required=True),
    "layers": Field("a list of mappings to text and numbers", _are_layers),
    "exits": Field("exit rules, or null", _or_null(_is_mapping)),
    "fit": Field("a mapping to figures of BN, or null", _or_null(_is_fit)),
    "snnzoo": Field("text", is_text),
    "torch": Field("text", is_text),
}
_FIRST_METADATA = {  # a model of the zoo instead of a graph
    **_METADATA,
    "model": Field("a model of snnzoo list that can be converted", _is_convertible, required=True),
    "model_kwargs": Field("a mapping", _is_mapping, required=True),
}
_SECOND_METADATA = {
    **_METADATA,
    "model": Field("text", is_text, required=True),
    "graph": Field("text", lambda value: isinstance(value, str), required=True),
    "extrapolation": Field("a number from 0 to 100", lambda x: is_number(x) and 0 <= x <= 100, required=True),
    "input_shape": Field(f"a list of one to three numbers from 1 to {MAX_SIZE}", _is_shape, required=True),
    "gammas": Field("a mapping of neurons to numbers above 0, up to 1", partial(_is_mapping, of=_is_share)),
}
_EXITS = {
    "measure": Field("text", is_text, required=True),
    "images": Field("a whole number, at least 1", partial(is_count, most=1 << 40), required=True),
    "shift": Field("a list of lists of numbers", partial(_is_list, of=_are_numbers), required=True),
    "onward": Field("a list of numbers, or null", _or_null(_are_numbers)),
    "rules": Field("a list of rules", partial(_is_list, of=_is_mapping), required=True),
}
_EXIT_RULE = {
    "tolerance": Field("a number between 0 and 100", lambda x: is_number(x) and 0 < x < 100, required=True),
    "thresholds": Field("a list of numbers", _are_numbers, required=True),
    "changed": Field("a number from 0 to 100", lambda x: is_number(x) and 0 <= x <= 100, required=True),
    "mean_steps": Field("a number, at least 1", lambda x: is_number(x) and x >= 1, required=True),
    "staying": Field("a list of numbers, or null", _or_null(_are_numbers)),
}
_MODEL_KWARGS = {
    "num_classes": Field(f"a number from 1 to {MAX_CLASSES}", partial(is_count, most=MAX_CLASSES), required=True),
    "in_channels": Field("a number from 1 to 1024", partial(is_count, most=1024)),
    "option": Field("A or B", ("A", "B").__contains__),
    "hidden_features": Field("a number from 1 to 65536", partial(is_count, most=65536)),
    "head": Field("a description of layers", lambda value: isinstance(value, list | dict)),
}


def read(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return the fields of a converted file's metadata as plain values, all of the right type and range.

    Args:
        metadata: the strings of the safetensors header.
        source: what messages call the file.

    Raises:
        CheckpointError: naming the field that is missing, unknown or wrong.
    """
    found = metadata.get("format")
    if found not in (FORMAT, FIRST_FORMAT):
        what = f"has format {found!r}" if found else "has no snnzoo metadata"
        raise CheckpointError(f"{source}: {what}, expected {FORMAT!r}: make one with snnzoo convert")
    where = f"{source}: metadata"
    fields: dict[str, Any] = {
        key: text if key in _PLAIN else _parse(text, f"{where}: field {key!r}") for key, text in metadata.items()
    }
    if found == FIRST_FORMAT:
        check(fields, _FIRST_METADATA, where, CheckpointError)
        check(fields["model_kwargs"], _MODEL_KWARGS, where, CheckpointError, "model_kwargs.")
        fields["extrapolation"] = _lead(fields["coding"], where)
    else:
        check(fields, _SECOND_METADATA, where, CheckpointError)
    if fields["preprocess"] is not None:
        check(fields["preprocess"], PREPROCESS, where, CheckpointError, "preprocess.")
    absent: dict[str, Any] = {"gammas": {}, "layers": [], "fit": None, "input_shape": None, "exits": None}
    fields = {**absent, **fields, "time_steps": int(fields["time_steps"])}
    if fields["exits"] is not None:
        _check_exits(fields["exits"], fields["time_steps"], where)
    return fields


def _check_exits(exits: dict[str, Any], time_steps: int, where: str) -> None:
    """Every rule, and what is added to readouts, has to be of all steps but the last."""
    check(exits, _EXITS, where, CheckpointError, "exits.")
    lengths = [len(added) for added in (exits["shift"], exits.get("onward")) if added is not None]
    for i, rule in enumerate(exits["rules"]):
        check(rule, _EXIT_RULE, where, CheckpointError, f"exits.rules[{i}].")
        lengths += [len(of_steps) for of_steps in (rule["thresholds"], rule.get("staying")) if of_steps is not None]
    if any(length != time_steps - 1 for length in lengths):
        raise CheckpointError(
            f"{where}: field 'exits' has rules, shifts, trends or shares of other numbers of steps than "
            f"time_steps={time_steps} needs"
        )


def _lead(coding: dict[str, Any], where: str) -> float:
    """The readout's extrapolation, which the first format kept with the coding, taken out of there."""
    lead = float(coding.pop("lead", 0.0))
    if lead < 0:
        raise CheckpointError(f"{where}: field 'coding': lead must be at least 0, got {lead}")
    return lead


def _parse(text: str, where: str) -> Any:
    """The value of a JSON text; no key may come twice, and no number be NaN or infinite."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise CheckpointError(f"{where} is not valid JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return mapping


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")
