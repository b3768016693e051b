"""Converted files whose metadata was tampered with: one line that names file and field, nothing allocated, no wait."""

import json
import random
import re
import resource
import time

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.checkpoints.files import read_safetensors, write_safetensors
from snnzoo.conversion.metadata import read
from snnzoo.data.preprocess import PRESETS
from snnzoo.errors import CheckpointError
from snnzoo.evaluation.provenance import facts_of

HANG = 20  # seconds of this process; a machine may be busy
MEMORY = 200 << 20  # bytes beyond what a good file needs


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted file's tensors and metadata, and a path for changed ones."""
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    net = snnzoo.convert(ann, torch.rand(8, 3, 16, 16), time_steps=2, gamma=0.5)
    net.conversion.preprocess, net.conversion.classes = PRESETS["cifar10"], list("abcdefghij")
    net.conversion.source = {"file": "a.th", "sha256": "01"}
    path = tmp_path_factory.mktemp("converted") / "net.safetensors"
    snnzoo.save(net, path)
    snnzoo.load(path)  # what that imports is imported, before memory is looked at
    return path, *read_safetensors(path)


def load(converted, **changes):
    path, tensors, metadata = converted
    changed = path.with_name("changed.safetensors")
    write_safetensors(changed, tensors, {k: v for k, v in {**metadata, **changes}.items() if v is not None})
    try:
        return snnzoo.load(changed), ""
    except CheckpointError as error:
        return None, str(error)


RULE = {"tolerance": 0.5, "thresholds": [0.5], "changed": 0.1, "mean_steps": 1.5}


def _exits(**changes):
    return json.dumps({"measure": "gap", "images": 9, "shift": [[0.0] * 10], "rules": [RULE], **changes})


REFUSED = {
    "gammas": [
        ("[1]", "'gammas' must be a mapping"), ('{"layer1.0.conv1": 0.5}', "'gammas' names layer1.0.conv1, no neurons"),
        ('{"layer1.0.sn1": 0}', "'gammas' must be"), ('{"layer1.0.sn1": 1.5}', "'gammas' must be"),
        ('{"layer1.0.sn1": "0.5"}', "'gammas' must be"), ('{"layer1.0.sn1": NaN}', "NaN is no number"),
    ],
    "classes": [
        ('["a"]', "1 names for 10 classes"), ("{}", "'classes' must be a list of text, or null"), ("3", "'classes'"),
        ('["a", "b", "c", "d", "e", "f", "g", "h", "i", 3]', "'classes' must be"), ("[" * 100_000, "too deeply"),
    ],
    "preprocess": [
        ('{"resize": 0}', "preprocess.resize"), ('{"resize": 5000}', "preprocess.resize"), ("[1]", "'preprocess'"),
        ('{"resize": 32, "crop": 1000000000, "mean": [0, 0, 0], "std": [1, 1, 1]}', "preprocess.crop"),
        ('{"resize": 32, "crop": 32, "mean": [0, 0], "std": [1, 1]}', "preprocess.mean"),
        ('{"resize": 32, "crop": 32, "mean": [NaN, 0, 0], "std": [1, 1, 1]}', "NaN is no number"),
        ('{"resize": 32, "crop": 32, "mean": [1e999, 0, 0], "std": [1, 1, 1]}', "preprocess.mean"),
        ('{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [0, 1, 1]}', "std must be positive"),
        ('{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": []}', "interpolation"),
    ],
    "coding": [
        ('{"name": "differential", "levels": 1000000000}', "'coding' must be"), ('{"name": []}', "'coding' must be"),
        ('{"name": "delta", "gamma": Infinity}', "Infinity is no number"), ("null", "'coding' must be"),
        ('{"name": "unheard-of"}', "unknown coding"),
        ('{"name": "delta", "levels": "3"}', "levels must be a int"),
        ('{"name": "delta", "gamma": true}', "gamma must be a float"),
        ('{"name": "delta", "x": "\\n"}', "'coding' must"),
        (f'{{"name": "delta", "x": "{"y" * 101}"}}', "'coding' must be"),
        ('{"name": "delta", "lead": 1e300}', "'coding' must be"),
        ('{"name": "delta", "levels": 3, "extra": 1}', "delta"),
        (f'{{"name": "delta", "levels": {"9" * 5000}}}', "coding"),
    ],
    "time_steps": [(text, "time_steps") for text in ("1000000", "0", "-1", "1025", "1.5", "", "many", "٣", "9" * 9999)],
    "recipe": [("[]", "recipe"), ("{}", "recipe"), ('{"name": "delta", "calibration": 3}', "recipe"),
               ('{"name": "delta", "choice": [1]}', "recipe"), ('{"name": {}}', "recipe")],
    "source": [("[]", "source"), ('{"file": {}}', "source"), ('{"file": 3}', "source"), ("3", "source")],
    "layers": [("{}", "layers"), ("[3]", "layers"), ('[{"site": []}]', "layers"), ('[{"error": NaN}]', "no number")],
    "model": [("", "model"), ("a\nb", "model"), (None, "missing")],
    "extrapolation": [(text, "extrapolation") for text in ("-1", "1e300", "NaN", '"1"', "[]", "true", None)],
    "input_shape": [(text, "input_shape") for text in ("[]", "[3, 0, 3]", "[3, 1000000, 3]", "3", "[1, 1, 1, 1]")],
    "graph": [(text, "graph is damaged") for text in ("", "[" * 100_000, "{}")],
    "format": [("snnzoo/9", "format 'snnzoo/9'"), (None, "no snnzoo metadata")],
    "exits": [
        ("[]", "'exits' must be"), ("{}", "'exits.measure' is missing"), ('{"measure": 3}', "exits.measure"),
        (_exits(measure="margin"), "measure must be one of gap, entropy"), (_exits(images=0), "exits.images"),
        (_exits(shift=3), "exits.shift"), (_exits(shift=[["a"]]), "exits.shift"), (_exits(shift=[]), "time_steps=2"),
        (_exits(onward=["a"]), "exits.onward"), (_exits(onward=[0.5] * 2), "time_steps=2"),
        (_exits(shift=[[0.0] * 9]), "not of 10 classes"), (_exits(rules=[3]), "exits.rules"),
        (_exits(rules=[{"tolerance": 0}]), r"exits.rules\[0\].tolerance"), (_exits(surprise=1), "surprise"),
        (_exits(rules=[{**RULE, "thresholds": [0.5] * 2}]), "time_steps=2"),
        (_exits(rules=[{**RULE, "thresholds": [1.5]}]), "thresholds must be from 0 to 1"),
        (_exits(rules=[{**RULE, "mean_steps": "1"}]), "mean_steps"),
        (_exits(rules=[{**RULE, "staying": "1"}]), r"exits.rules\[0\].staying"),
        (_exits(rules=[{**RULE, "staying": [0.5] * 2}]), "time_steps=2"),
        (_exits(rules=[{**RULE, "staying": [2.0]}]), "images that stay must be from 0 to 1"),
        (_exits(shift=[[1e999] * 10]), "Infinity is no number"), ("[" * 100_000, "too deeply"),
    ],
    "surprise": [("1", "unknown field")],
}  # fmt: skip


@pytest.mark.parametrize("field", REFUSED)
def test_what_a_field_cannot_be_is_one_line_that_names_it(field, converted):
    before = peak()
    for text, message in REFUSED[field]:
        started = time.process_time()
        net, error = load(converted, **{field: text})
        assert net is None, (field, text)
        assert re.fullmatch(r".*changed\.safetensors: [^\n]*", error), error
        assert re.search(message, error), error
        assert len(error) < 1000
        assert time.process_time() - started < HANG
    assert peak() - before < MEMORY


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_what_a_field_may_be_is_read(converted):
    for field, text in (
        ("preprocess", "null"),
        ("classes", "null"),
        ("source", '{"weights": "resnet20.DEFAULT", "url": null}'),
        ("time_steps", "1024"),
        ("layers", None),
        ("exits", "null"),
        ("exits", _exits()),
        ("gammas", "{}"),
        ("gammas", '{"layer1.0.sn1": 0.25}'),
        ("torch", None),
    ):
        net, error = load(converted, **{field: text})
        assert net is not None, (field, error)


def test_gammas_of_neurons_are_for_delta_coding(converted):
    net, error = load(converted, gammas='{"layer1.0.sn1": 0.25}', coding='{"name": "rate"}')
    assert net is None
    assert "'gammas' is for delta coding, not for rate" in error


def test_settings_of_a_coding_from_outside_may_be_text_and_truth_values(converted):
    coding = {"name": "floor", "rule": "down", "leaks": True, "start": 0.5}
    assert read({**converted[2], "coding": json.dumps(coding)}, "net.safetensors")["coding"] == coding


def test_layers_without_weights_are_refused(converted):
    path, tensors, metadata = converted
    for key, value in tensors.items():
        if value.ndim and key.endswith(("conv1.weight", "bn1.bias", "fc.weight")):
            empty = torch.empty((0, *value.shape[1:]))
            _, error = load((path, {**tensors, key: empty}, metadata))
            assert f"layers without weights: {key} {list(empty.shape)}; the file is damaged" in error


VALUES = [None, True, -1, 0, 1, 2, 7, 1e9, 1 << 62, -(1 << 62), 0.5, -0.0, 1e308, "", "A", "\x1b[31m", "\udcff",
          "é" * 300, [], {}, [[]], {"": None}, {"name": "delta"}, list("abc"), ["Linear", 64, 10, True]]  # fmt: skip


def tampered(number, metadata):
    """The metadata with one to three things changed at random: the same for the same number."""
    chance = random.Random(number)
    changed = dict(metadata)
    for _ in range(chance.choice([1, 1, 2, 3])):
        field = chance.choice(list(changed))
        text = changed[field]
        kind = chance.random()
        if kind < 0.6:
            try:
                changed[field] = json.dumps(_replaced(json.loads(text), chance))
            except (ValueError, TypeError, RecursionError):
                changed[field] = str(chance.choice(VALUES))
        elif kind < 0.9:
            place = chance.randrange(len(text) + 1)
            middle = chance.choice(["", "-", "9" * chance.choice([1, 3, 20, 5000]), "null", "[" * 5000, '"', "1e400"])
            changed[field] = text[:place] + middle + text[place + chance.randrange(4) :]
        else:
            del changed[field]
    return {key: value.encode("utf-8", "replace").decode() for key, value in changed.items()}


def _replaced(value, chance):
    """A JSON value with one part of it another."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {other: value[other] for other in value if other != key} | {chance.choice(["x", key * 2, ""]): 1}
        return {**value, key: _replaced(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], _replaced(value[place], chance), *value[place + chance.choice([1, 1, 1, 0, 2]) :]]
    return chance.choice(VALUES)


def taken_apart(path):
    """Load a file and take apart what a report does; the message of the error, if it cannot be loaded."""
    try:
        conversion = snnzoo.load(path).conversion
    except CheckpointError as error:
        return str(error)
    facts_of(conversion, {"data": "digits"})
    assert f"{conversion.coding}{conversion.coding.spikes}"
    return ""


def tally(converted, numbers):
    """Load a file for each number, and take apart what loads as a report does."""
    path, tensors, metadata = converted
    before, slowest, loaded = peak(), 0.0, 0
    for number in numbers:
        changed = path.with_name("tampered.safetensors")
        write_safetensors(changed, tensors, tampered(number, metadata))
        started = time.process_time()
        message = taken_apart(changed)
        loaded += not message
        assert not message or re.fullmatch(r".*tampered\.safetensors: [^\n]*", message), (number, message)
        slowest = max(slowest, time.process_time() - started)
    assert 0 < loaded < len(numbers)
    assert slowest < HANG
    assert peak() - before < MEMORY


def test_a_few_tampered_files_do_no_harm(converted):
    tally(converted, range(60))


@pytest.mark.slow
def test_three_thousand_tampered_files_do_no_harm(converted):
    tally(converted, range(1_000, 4_000))


def test_no_file_is_written_that_could_not_be_read(converted, tmp_path):
    net = snnzoo.load(converted[0])
    net.conversion.classes = ["one"]
    with pytest.raises(CheckpointError, match=r"cannot save the network: metadata: field 'classes' has 1 names for 10"):
        snnzoo.save(net, tmp_path / "net.safetensors")
    net.conversion.classes = None
    net.get_submodule("layer1.0.sn1").v_threshold.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"layer1\.0\.sn1\.v_threshold not finite: are the ANN's weights"):
        snnzoo.save(net, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
    tensors = {**converted[1], "layer1.0.sn1.v_threshold": torch.full((16,), torch.inf)}
    _, error = load((converted[0], tensors, converted[2]))
    assert "layer1.0.sn1.v_threshold not finite" in error


def test_the_same_network_is_the_same_bytes(converted, tmp_path):
    net = snnzoo.load(converted[0])
    for name in "ab":
        snnzoo.save(net, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == converted[0].read_bytes()
