"""`snnzoo list` and `snnzoo info`: what they show, as text and as JSON, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from snnzoo.checkpoints.manifest import load_manifest
from snnzoo.cli import main as cli
from snnzoo.cli.list import print_table, weights_table
from snnzoo.models.registry import MODELS, model_spec

ENTRIES = {entry.tag: entry for entry in load_manifest()}
MINE = {
    "model": "resnet18",
    "name": "mine",
    "url": "https://example.org/mine.pth",
    "layout": "timm",
    "num_classes": 7,
    "preprocess": "cifar10",
    "metrics": {"dataset": "[bold]own"},
    "license": "LicenseRef-[own]",
    "source": "[my] training",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache and an empty config folder, in place of the user's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["snnzoo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capfd.readouterr()

    return run


def rows(text):
    """The cells of each line of a table, by (model, weights); only the first row of a model names it."""
    found, model = {}, ""
    for line in text.splitlines():
        model = line.split()[0] if line[:1].strip() else model
        cells = line[len(model) if line.startswith(model) else 0 :].split()
        found[model, cells[0]] = cells[1:]
    return found


def facts(text):
    """`key  value` lines as a dict."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line.strip())


def test_list_has_a_row_for_every_weights_set_with_its_size_classes_metrics_and_license(run):
    code, out, err = run("list")
    assert (code, err) == (0, "")
    table = rows(out)
    for entry in ENTRIES.values():
        cells = table[entry.model, entry.name]
        siblings = [other for other in ENTRIES.values() if other.model == entry.model]
        assert ("*" in cells) == (entry.default and len(siblings) > 1)
        expected = [str(entry.num_classes), f"{entry.metrics['top1']:.2f}" if entry.metrics else entry.builder]
        expected += [f"{entry.size:.1f}"] if entry.size else []
        assert [cell for cell in expected if cell not in cells] == []
        assert cells[-1] == entry.license


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_a_table_is_unabridged_on_any_terminal(columns, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (["list"], ["info", "resnext101_32x8d"]):
        out = run(*arguments)[1]
        assert "…" not in out
        assert "\x1b" not in out
        assert {"resnext101_32x8d", "IMAGENET1K_V1", "BSD-3-Clause", "339.6", "cached"} <= set(out.split())


def test_list_as_json_has_every_field_of_every_weights_set(run):
    models = json.loads(run("list", "--json", "-")[1])["models"]
    assert [model["name"] for model in models] == list(MODELS)
    shown = {weights["tag"]: weights for model in models for weights in model["weights"]}
    assert set(shown) == set(ENTRIES)
    same = (
        "model",
        "name",
        "default",
        "num_classes",
        "metrics",
        "license",
        "source",
        "url",
        "builder",
        "sha256",
        "layout",
    )
    for tag, entry in ENTRIES.items():
        weights = shown[tag]
        assert {key: weights[key] for key in same} == {key: getattr(entry, key) for key in same}
        assert (weights["size_mib"], weights["manifest"]) == (entry.size, "weights_manifest.yaml")
        assert weights["preprocess"] == entry.preprocess.to_dict()


def test_a_pattern_selects_models(run):
    names = [model["name"] for model in json.loads(run("list", "*101*", "--json", "-")[1])["models"]]
    assert names == ["resnet101", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2", "sew_resnet101"]


def test_what_is_in_the_cache_is_shown_as_cached(run, cache):
    for name in ("resnet50-11ad3fa6.pth", "snnzoo-resnet18-digits.safetensors"):
        (cache / name).write_bytes(b"weights")
    (cache / "resnet34-b627a593.pth.part").write_bytes(b"half")
    cached = {key for key, cells in rows(run("list")[1]).items() if cells[-1] == "yes"}
    assert cached == {("resnet50", "IMAGENET1K_V2"), ("resnet18", "digits")}
    weights = json.loads(run("info", "resnet50", "--json", "-")[1])["weights"]
    assert [(w["cached"], w["path"]) for w in weights] == [
        (False, str(cache / "resnet50-0676ba61.pth")),
        (True, str(cache / "resnet50-11ad3fa6.pth")),
    ]
    assert facts(run("info", "resnet50.IMAGENET1K_V2")[1])["cached"] == str(cache / "resnet50-11ad3fa6.pth")
    no = f"no; its place is {cache / 'resnet34-b627a593.pth'}"
    assert facts(run("info", "resnet34.DEFAULT")[1])["cached"] == no


@pytest.mark.parametrize("place", ["option", "config folder"])
def test_a_users_weights_are_listed_with_the_file_that_they_are_from(place, run, tmp_path):
    path = tmp_path / ("mine.yaml" if place == "option" else "config/snnzoo/weights_manifest.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump([MINE]))
    options = ["--manifest", path] if place == "option" else []
    assert rows(run("list", *options)[1])["resnet18", "mine"] == ["7", "[bold]own", "LicenseRef-[own]"]
    shown = facts(run("info", "resnet18.mine", *options)[1])
    assert shown == {
        "weights": "resnet18.mine",
        "classes": "7",
        "metrics": "none published",
        "size": "not published",
        "license": "LicenseRef-[own]",
        "source": "[my] training",
        "url": "https://example.org/mine.pth",
        "sha256": "none: the file is not checked",
        "layout": "timm",
        "preprocess": "resize 32 (bilinear), crop 32, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)",
        "manifest": str(path),
        "cached": f"no; its place is {tmp_path}/home/hub/checkpoints/mine.pth",
    }


def test_info_shows_all_about_a_weights_set(run):
    shown = facts(run("info", "resnet50.imagenet1k_v2")[1])
    assert shown["weights"] == "resnet50.IMAGENET1K_V2 (default)"
    assert shown["metrics"] == "top1 80.86 %, top5 95.43 % on ImageNet-1K"
    assert shown["size"] == "97.79 MiB"
    assert shown["preprocess"].startswith("resize 232 (bilinear), crop 224, mean (0.485")
    assert facts(run("info", "resnet18.digits")[1])["url"] == "none: made by the builder digits"


@pytest.mark.parametrize("model", MODELS)
def test_info_shows_a_model_and_its_weights(model, run):
    code, out, _ = run("info", model)
    assert code == 0
    description, _, table = out.partition("\n\n")
    assert facts(description)["model"] == f"{model}, {model_spec(model).description}"
    assert facts(description)["classes"].startswith(str(model_spec(model).num_classes))
    own = {(entry.model, entry.name) for entry in ENTRIES.values() if entry.model == model}
    assert own <= set(rows(table))
    assert json.loads(run("info", model, "--json", "-")[1]) in json.loads(run("list", "--json", "-")[1])["models"]


def test_info_of_weights_is_their_part_of_the_models_json(run):
    model = json.loads(run("info", "resnet18", "--json", "-")[1])
    assert json.loads(run("info", "resnet18.digits", "--json", "-")[1]) in model["weights"]


def test_a_model_without_weights_has_a_row(capfd):
    print_table(weights_table([], ["resnet18"]))
    assert rows(capfd.readouterr().out)["resnet18", "-"] == ["1000"]


@pytest.mark.parametrize("command", [["list"], ["info", "resnet18"], ["info", "resnet18.digits"]])
def test_json_goes_to_a_file_that_is_replaced_only_with_force(command, run):
    as_text = run(*command)[1]
    assert run(*command, "--json", "out.json") == (0, as_text, "")
    assert json.loads(Path("out.json").read_text()) == json.loads(run(*command, "--json", "-")[1])
    Path("out.json").write_text("old")
    code, out, err = run(*command, "--json", "out.json")
    assert (code, out, Path("out.json").read_text()) == (2, "", "old")
    assert "out.json exists: give --force" in err
    assert run(*command, "--json", "out.json", "--force")[0] == 0
    assert json.loads(Path("out.json").read_text()) == json.loads(run(*command, "--json", "-")[1])


def run_alone(*arguments):
    """Run a command in a process of its own: exit code, output, errors, whether it imported torch."""
    script = (
        "import sys; from snnzoo.cli import main\n"
        "try: main.main()\n"
        "finally: sys.stdout.write('torch' if 'torch' in sys.modules else 'no torch')"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", [["list"], ["info", "resnet50"], ["info", "resnet50.IMAGENET1K_V1", "--json", "-"]])
def test_they_do_not_import_torch(command):
    code, out, err = run_alone(*command)
    assert (code, err) == (0, "")
    assert "IMAGENET1K_V1" in out
    assert out.endswith("no torch")


MISTAKES = {
    "unknown model": (["info", "resnet81"], 2, "unknown model 'resnet81': did you mean resnet18"),
    "unknown weights": (["info", "resnet18.digit"], 2, "resnet18 has no weights called 'digit': did you mean digits?"),
    "no model matches": (["list", "vit*"], 2, "no model matches 'vit*': snnzoo list shows all"),
    "no name": (["info"], 2, "Missing argument"),
    "no such manifest": (["list", "--manifest", "nowhere.yaml"], 2, "nowhere.yaml"),
    "malformed manifest": (["list", "--manifest", "bad.yaml"], 1, "bad.yaml: entry 1: field 'model' is missing"),
    "unwritable json": (["list", "--json", "nowhere/a.json"], 1, "the folder nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_without_torch(mistake):
    command, expected, message = MISTAKES[mistake]
    Path("bad.yaml").write_text("- name: mine\n")
    code, out, err = run_alone(*command)
    assert (code, out) == (expected, "no torch")
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1
