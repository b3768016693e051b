"""The weights manifest: what the loader refuses, whose entries count, and that torchvision agrees with ours."""

import os
import time
from pathlib import Path

import pytest
import torchvision
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from snnzoo.checkpoints.manifest import ManifestError, all_entries, config_file, find, load_manifest
from snnzoo.data.preprocess import PRESETS
from snnzoo.errors import UsageError
from snnzoo.models.registry import MODELS, list_weights

PACKAGED = load_manifest()
TORCHVISION = [
    (model, weights)
    for model, spec in MODELS.items()
    if spec.network in ("ResNet", "VGG")
    for weights in torchvision.models.get_model_weights(model)
    if weights.name != "IMAGENET1K_FEATURES"  # of vgg16: has no classifier
]
GOOD = {
    "model": "resnet18",
    "name": "mine",
    "url": "https://example.org/mine-0123abcd.pth",
    "sha256": "0123abcd",
    "size": 44.7,
    "layout": "torchvision",
    "num_classes": 7,
    "preprocess": {"resize": 40, "crop": 32, "mean": [0.5], "std": [0.25], "interpolation": "bicubic"},
    "metrics": {"dataset": "mine", "top1": 90, "top5": 99.5},
    "license": "MIT",
    "source": "my own training",
}
BUILT = {"model": "resnet18", "name": "made", "builder": "digits", "layout": "torchvision", "num_classes": 10} | {
    "preprocess": "digits",
    "license": "MIT",
    "source": "made",
}


@pytest.fixture(autouse=True)
def config_home(monkeypatch, tmp_path):
    """An empty config folder in place of the user's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def write(tmp_path):
    """Write entries, or text, as a manifest file."""

    def write(content, name="mine.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
        return path

    return write


# -- The package's entries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "weights"), TORCHVISION, ids=lambda value: getattr(value, "name", value))
def test_every_torchvision_weights_set_is_there_as_torchvision_describes_it(model, weights):
    entry = find(model, weights.name, PACKAGED)
    stated = weights.meta["_metrics"]["ImageNet-1K"]
    transform = weights.transforms()
    (edge,) = transform.resize_size
    (crop,) = transform.crop_size
    ours = entry.preprocess
    assert entry.url == weights.url
    assert f"-{entry.sha256}." in weights.url.rpartition("/")[2]
    assert entry.size == pytest.approx(weights.meta["_file_size"], abs=0.0006)
    assert entry.num_classes == len(weights.meta["categories"])
    assert (entry.metrics["top1"], entry.metrics["top5"]) == (stated["acc@1"], stated["acc@5"])
    assert (ours.resize, ours.crop, ours.interpolation) == (edge, crop, transform.interpolation.value)
    assert (list(ours.mean), list(ours.std)) == (transform.mean, transform.std)
    assert entry.layout == "torchvision"
    assert entry.default == (weights is type(weights).DEFAULT)


def test_the_package_has_torchvisions_sets_six_of_akamaster_and_digits_and_no_other():
    expected = {f"{model}.{weights.name}" for model, weights in TORCHVISION}
    assert len(expected) == 25
    expected |= {f"resnet{depth}.CIFAR10" for depth in (20, 32, 44, 56, 110, 1202)} | {"resnet18.digits"}
    assert {entry.tag for entry in PACKAGED} == expected


def test_akamasters_entries_are_ten_class_files_whose_name_holds_the_start_of_their_hash():
    entries = [entry for entry in PACKAGED if entry.layout == "akamaster"]
    assert len(entries) == 6
    for entry in entries:
        assert entry.filename == f"{entry.model}-{entry.sha256[:8]}.th"
        assert entry.url.startswith(entry.source)
        assert (entry.num_classes, entry.preprocess) == (10, PRESETS["cifar10"])
        assert 91 < entry.metrics["top1"] < 94


def test_every_model_of_the_package_has_exactly_one_default():
    assert sorted(entry.model for entry in PACKAGED if entry.default) == sorted({entry.model for entry in PACKAGED})
    assert {entry.model for entry in PACKAGED} == {name for name, spec in MODELS.items() if spec.convertible}


# -- The schema --------------------------------------------------------------------------------------------------------


def test_every_field_of_an_entry_is_read(write):
    (entry,) = load_manifest(write([GOOD]))
    assert (entry.tag, entry.url, entry.sha256, entry.size) == ("resnet18.mine", GOOD["url"], "0123abcd", 44.7)
    assert (entry.layout, entry.num_classes, entry.metrics) == ("torchvision", 7, GOOD["metrics"])
    assert (entry.license, entry.source, entry.default) == ("MIT", "my own training", False)
    assert entry.preprocess.to_dict() == {**GOOD["preprocess"], "order": "RGB"}
    assert entry.filename == "mine-0123abcd.pth"


def test_optional_fields_may_be_left_out_and_a_preset_named(write):
    optional = ("sha256", "size", "metrics")
    (entry,) = load_manifest(
        write([{key: value for key, value in GOOD.items() if key not in optional} | {"preprocess": "cifar10"}])
    )
    assert (entry.sha256, entry.size, entry.metrics) == (None, None, {})
    assert entry.preprocess == PRESETS["cifar10"]


REQUIRED = ("model", "name", "layout", "num_classes", "preprocess", "license", "source")
BAD_FIELDS = {
    "model": [None, "", "resnet 18", "resnet18.mine", "../up", 18, ["resnet18"]],
    "name": ["", "DEFAULT", "default", "-x", "a b", "a/b", 1.5, True],
    "layout": ["keras", "", None, ["timm"], {"timm": 1}],
    "num_classes": [0, -1, 10.0, "10", True, None],
    "license": ["", " ", None, 3, "two\nlines"],
    "source": ["", None, 3, "\x1b[2J"],
    "url": ["", "ftp://a.org/b", "file:///etc/passwd", "https://", "https:///a.pth", "https://a.org:x/b.pth",
            "https://a.org:0/b.pth", "https://[::1/b.pth", "https://a.org/b c.pth", "https://a.org/", "https://a.org",
            "https://a.org/..", "https://a.org/.hidden", "https://é.org/a.pth", 7, None],
    "filename": ["", "a/b", "..", ".", "../../etc/passwd", "a\\b", "a\nb", "x" * 201, "a.pth.part", "a.LOCK", 5, None],
    "sha256": [12345678, "0123ABCD", "0123abc", "g" * 8, "a" * 65, "", None],
    "size": [0, -1, "44.7", float("nan"), float("inf"), True, None],
    "default": ["yes", 1, None],
    "metrics": [[90], "90", 90],
    "metrics.dataset": [None, "", 3],
    "metrics.top1": [101, -1, "90", float("nan"), True],
    "metrics.top5": [101, None],
    "metrics.top3": [50],
    "preprocess": ["imagnet", None, [256], 256],
    "preprocess.resize": [0, 1.5, None, "256"],
    "preprocess.crop": [-1, True],
    "preprocess.mean": [0.5, [], ["a"], [float("nan")], [0.1, 0.2]],
    "preprocess.std": [[0.0], [-1], None],
    "preprocess.interpolation": ["lanczos", 2, None],
    "preprocess.size": [256],
    "colour": ["blue"],
}  # fmt: skip


def put(field, value):
    """GOOD with one field, or field of a field, changed."""
    outer, _, inner = field.partition(".")
    return GOOD | ({outer: GOOD[outer] | {inner: value}} if inner else {outer: value})


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_bad_field_is_one_line_that_names_file_entry_and_field(field, write):
    for value in BAD_FIELDS[field]:
        path = write([BUILT, put(field, value)])
        with pytest.raises(ManifestError) as caught:
            load_manifest(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: entry 2"), value
        assert f"'{field}'" in message or f"'{field.partition('.')[0]}'" in message, (value, message)
        assert message.isprintable(), value
        assert len(message) < len(str(path)) + 300, value


@pytest.mark.parametrize("field", [*REQUIRED, "metrics.dataset", "preprocess.resize", "preprocess.mean"])
def test_a_missing_field_is_named(field, write):
    outer, _, inner = field.partition(".")
    entry = {**GOOD, outer: {key: value for key, value in GOOD[outer].items() if key != inner} if inner else None}
    if not inner:
        del entry[outer]
    with pytest.raises(ManifestError, match=rf"entry 1.*: field '{field}' is missing"):
        load_manifest(write([entry]))


FILES = {
    "no list": ({"entries": [GOOD]}, "expected a list of entries, got dict"),
    "text": ("just text", "expected a list of entries, got str"),
    "an entry is no mapping": ([GOOD, "resnet18"], "entry 2: expected a mapping, got str"),
    "no YAML": ("- {model: resnet18", "not valid YAML: .*line 1"),
    "a tag that would run code": ("- !!python/object/apply:os.system ['true']", "not valid YAML: could not determine"),
    "no such date": ("- {source: 2020-13-45}", "not valid YAML: month"),
    "too deep": ("[" * 100_000, "not valid YAML: maximum recursion depth"),
    "a field twice": ("- model: resnet18\n  name: a\n  name: b", "field 'name' is given twice in line 3"),
    "text called a mapping": ("- !!map xy", "not valid YAML: expected a mapping node"),
    "a misspelt field": ([put("licence", "MIT")], "unknown field 'licence': did you mean license"),
    "a tag twice": ([GOOD, GOOD | {"name": "MINE"}], r"entry 2 \(resnet18.MINE\): field 'name' is taken: entry 1"),
    "two defaults": ([GOOD | {"default": True}, BUILT | {"default": True}], "entry 2 .*'default' is set in entry 1"),
    "url and builder": ([GOOD | {"builder": "digits"}], r"entry 1 \(resnet18.mine\): give either 'url' or 'builder'"),
    "neither of them": ([{k: v for k, v in GOOD.items() if k != "url"}], "give either 'url' or 'builder'"),
    "old name of the field": (
        [{k: v for k, v in BUILT.items() if k != "builder"} | {"recipe": "digits"}],
        "unknown field 'recipe': it is called 'builder' now",
    ),
    "unknown builder": ([BUILT | {"builder": "cake"}], "field 'builder' must be one of digits, got 'cake'"),
    "hash of what a builder makes": ([BUILT | {"sha256": "0" * 8}], "field 'sha256' does not go with 'builder'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_file_is_one_line_that_says_what_and_where(case, write):
    content, message = FILES[case]
    path = write(content)
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"- model: r\xe9snet")
    for path, message in [
        (tmp_path, "cannot read"),
        (tmp_path / "no.yaml", "cannot read"),
        (tmp_path / "latin.yaml", "not UTF-8"),
    ]:
        with pytest.raises(ManifestError, match=message) as caught:
            load_manifest(path)
        assert str(path) in str(caught.value)


def test_an_empty_file_has_no_entries(write):
    assert load_manifest(write("# nothing yet\n")) == ()


def complaint(path):
    """What the loader says of a file; None if it takes it. Any other error is a failure."""
    try:
        load_manifest(path)
    except ManifestError as error:
        return str(error)
    return None


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["digits", "0" * 8])
keys = st.text() | st.sampled_from([*GOOD["preprocess"], *GOOD["metrics"]])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner), max_leaves=8)
pieces = [*"-:{}[]&*!|>#'\"\n ", "- model: a", "<<", "0x", "1:2", "=", "?"]


@settings(deadline=None)
@given(field=st.sampled_from([*GOOD, "filename", "default"]), value=values)
def test_any_value_in_a_field_is_taken_or_refused_by_its_name(field, value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "field.yaml"
    path.write_text(yaml.safe_dump([GOOD | {field: value}]), "utf-8")
    message = complaint(path)
    if message is None:
        (entry,) = load_manifest(path)
        assert entry.filename == Path(entry.filename).name != ".."
    else:
        assert message.startswith(f"{path}: entry 1")
        assert field in message.removeprefix(f"{path}: entry 1 (resnet18.mine)")
        assert message.isprintable()


@given(text=st.text() | st.lists(st.sampled_from(pieces)).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_manifest_or_a_manifest_error(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(text, "utf-8")
    message = complaint(path)
    assert load_manifest(path) == () if message is None else message.startswith(f"{path}: ")


# -- The user's entries ------------------------------------------------------------------------------------------------


def test_the_users_files_add_to_the_package_and_the_later_replaces_the_earlier(config_home, write):
    write([GOOD, put("name", "own")], config_file().relative_to(config_home.parent))
    given_file = write([GOOD | {"name": "MINE", "num_classes": 8}])
    entries = all_entries(given_file)
    assert len(entries) == len(PACKAGED) + 2
    assert {entry.tag for entry in all_entries()} - {entry.tag for entry in PACKAGED} == {
        "resnet18.mine",
        "resnet18.own",
    }
    mine, own = find("resnet18", "mine", entries), find("resnet18", "own", entries)
    assert (mine.num_classes, mine.origin) == (8, str(given_file))
    assert (own.num_classes, own.origin) == (7, str(config_file()))


def test_a_users_default_takes_the_place_of_the_packages(write):
    entries = all_entries(write([GOOD | {"default": True}]))
    assert find("resnet18", "DEFAULT", entries).name == "mine"
    assert [entry.tag for entry in entries if entry.model == "resnet18" and entry.default] == ["resnet18.mine"]
    assert find("resnet34", "default", entries).name == "IMAGENET1K_V1"


def test_the_config_file_follows_xdg_and_else_home(config_home, monkeypatch, tmp_path):
    assert config_file() == config_home / "snnzoo" / "weights_manifest.yaml"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", None):
        monkeypatch.setenv("XDG_CONFIG_HOME", unset) if unset == "" else monkeypatch.delenv("XDG_CONFIG_HOME")
        assert config_file() == tmp_path / ".config" / "snnzoo" / "weights_manifest.yaml"


def test_a_malformed_config_file_is_named(config_home, write):
    path = write([put("size", "big")], config_file().relative_to(config_home.parent))
    with pytest.raises(ManifestError, match="field 'size' must be a positive number of MiB, got 'big'") as caught:
        all_entries()
    assert str(path) in str(caught.value)


def test_two_weights_sets_share_a_file_in_the_cache_only_if_it_is_the_same_file(write):
    other = put("name", "other") | {"url": "https://mirror.org/mine-0123abcd.pth"}
    assert len(all_entries(write([GOOD, other]))) == len(PACKAGED) + 2
    assert len(all_entries(write([GOOD, GOOD | {"name": "again"}]))) == len(PACKAGED) + 2
    with pytest.raises(
        ManifestError, match=r"resnet18.other: its file mine-0123abcd.pth .* resnet18.mine's .*'filename'"
    ):
        all_entries(write([GOOD, other | {"sha256": "f" * 8}]))
    renamed = other | {"sha256": "f" * 8, "filename": "other.pth"}
    assert find("resnet18", "other", all_entries(write([GOOD, renamed]))).filename == "other.pth"


def test_an_entry_of_an_unknown_model_is_named_with_near_names(write):
    with pytest.raises(ManifestError, match=r"resnet19.mine: field 'model' names an unknown model 'resnet19': did you"):
        list_weights(write([put("model", "resnet19")]))


def test_names_are_found_in_any_case_and_unknown_ones_list_what_there_is():
    for name in ("imagenet1k_v2", "DEFAULT", "IMAGENET1K_V2"):
        assert find("resnet50", name, reversed(PACKAGED)).name == "IMAGENET1K_V2"
    with pytest.raises(UsageError, match="resnet50 has no weights called 'other': known: IMAGENET1K_V1, "):
        find("resnet50", "other", PACKAGED)
    with pytest.raises(UsageError, match=r"did you mean digits\?"):
        find("resnet18", "digit", PACKAGED)


ODD = {
    "a tag of Python": "- !!python/object/apply:os.system [touch canary]",
    "a tag that does not fit": "- {model: !!int [1], name: !!float {}}",
    "a set": "- !!set {a, b}",
    "bytes": "- {model: !!binary aGk=}",
    "an integer of 10,000 digits": f"- {{num_classes: {'9' * 10_000}}}",
    "a hexadecimal one": f"- {{model: resnet18, num_classes: 0x{'F' * 10_000}}}",
    "20,000 fields": "- {" + ", ".join(f"k{i}: 1" for i in range(20_000)) + "}",
    "fields that merge fields": "\n".join(
        ["- &a0 {x0: 1}", *(f"- &a{i} {{x{i}: 1, <<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12))]
    ),
    "aliases of aliases": "\n".join(
        ["- &b0 [1]", *(f"- &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 40))]
    ),
    "depth": "[" * 20_000,
    "more than a manifest has": "# " + "x" * (1 << 19),
    "a name of hundreds of characters": "- {model: resnet18, name: " + "n" * 300 + "}",
    "a name of a download's own": "- {model: resnet18, name: a, layout: timm, num_classes: 1, preprocess: digits, "
    "license: MIT, source: me, url: 'https://a.example/x.part'}",
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_manifest_is_one_line_soon(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(ODD[case])
    started = time.monotonic()
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - started < 60  # a hang, not a speed
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_manifest_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ManifestError, match="is a pipe, socket or device, expected a file"):
            load_manifest(path)
