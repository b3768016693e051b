"""The command line: results on real input, and what a mistake says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import typer
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import snnzoo
from helpers import shake_batch_norm
from snnzoo.checkpoints.files import read_safetensors
from snnzoo.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[1]


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: Result(*run_command(*arguments))


@pytest.fixture(scope="module")
def resnet18_pth(tmp_path_factory, image_folder):
    """A torchvision resnet18 with 10 classes, saved as users save one."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "resnet18.pth"
    torch.save(shake_batch_norm(torchvision.models.resnet18(num_classes=10)).state_dict(), path)
    return path


def test_convert_and_eval_of_the_digits_network_offline(run, digits_home):
    result = run("convert", "resnet18", "--weights", "digits", "-T", "4")
    assert result.code == 0, result.err
    assert "wrote resnet18-snn.safetensors" in result.err
    assert snnzoo.load("resnet18-snn.safetensors").conversion.classes == list("0123456789")  # the weights' own
    result = run("eval", "resnet18-snn.safetensors", "--data", "digits", "--limit", "200", "--json", "-")
    report = json.loads(result.out)
    assert set(report) == {
        "file", "model", "recipe", "coding", "data", "images", "device", "dtype",
        "ann", "results", "layers", "left_out", "fit",
        "energy", "neurobench",
    }  # fmt: skip
    assert (report["model"], report["recipe"], report["images"]) == ("resnet18", "delta", 200)
    rows = report["results"]
    assert [row["time_steps"] for row in rows] == [1, 2, 4]
    fields = "time_steps top1 top5 agreement images_per_second events_per_neuron_step synaptic_operations energy_uj"
    fields += " energy_ratios"
    assert set(rows[0]) == set(fields.split())
    assert report["ann"]["top1"] > 0.97
    assert rows[-1]["top1"] > report["ann"]["top1"] - 0.02
    assert 0 < rows[-1]["events_per_neuron_step"] < 1


def test_convert_and_eval_of_the_real_cifar_checkpoint(run, resnet20_checkpoint):
    data = resnet20_checkpoint.parents[1] / "data" / "cifar10-jpeg.tar.gz"
    if not data.is_file():
        pytest.skip(f"{data} is not there")
    subprocess.run(["tar", "xzf", data, "--wildcards", "test/*/000*.jpg", "test/*/001*.jpg"], check=True)
    result = run(
        "convert", "resnet20", "--checkpoint", resnet20_checkpoint, "--calib-data", "test", "--calib-samples", "64",
        "--recipe", "delta", "--levels", "7", "-o", "resnet20.safetensors", "--quiet",
    )  # fmt: skip
    assert (result.code, result.out, result.err) == (0, "", "")
    report = json.loads(run("eval", "resnet20.safetensors", "--data", "test", "-T", "4", "--json", "-").out)
    assert report["images"] == 200
    assert report["ann"]["top1"] > 0.7
    assert report["results"][0]["agreement"] > 0.9


@pytest.mark.parametrize(
    "options", [("--recipe", "rate", "--threshold", "max"), ("--recipe", "rate"), ("--levels", "1")]
)
def test_convert_of_a_torchvision_state_dict_keeps_the_anns_tensors(run, resnet18_pth, image_folder, options):
    result = run(
        "convert", "resnet18", "--checkpoint", resnet18_pth, "--num-classes", "10", "--calib-data", image_folder,
        "--calib-samples", "8", "--input-size", "32", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "-T", "2",
        "--json", "report.json", *options,
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads(Path("report.json").read_text())
    assert (report["time_steps"], report["preprocess"]["crop"]) == (2, 32)
    with safe_open("resnet18-snn.safetensors", "pt") as file:
        for key, value in torch.load(resnet18_pth).items():
            assert torch.equal(file.get_tensor(key), value)
    net = snnzoo.load("resnet18-snn.safetensors")
    assert net(torch.rand(2, 1, 3, 32, 32)).shape == (2, 1, 10)


def test_eval_prints_one_table_with_gap_and_agreement(run, digits_home):
    run("convert", "resnet18.digits", "--recipe", "rate", "-T", "2", "--calib-samples", "16", "-q")
    result = run("eval", "resnet18-snn.safetensors", "--data", "digits", "--limit", "20")
    assert result.code == 0, result.err
    for heading in ("T", "ANN top-1 %", "SNN top-1 %", "gap", "agreement %"):
        assert heading in result.out
    assert re.search(r"│ +2 │ +1?\d\d\.\d\d │", result.out)
    assert "\x1b" not in result.out


def test_convert_of_the_same_input_twice_is_the_same_bytes_whatever_images_cannot_be_read(run, image_folder):
    torch.save(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s").state_dict(), "ann.pth")
    shutil.copytree(image_folder, "images")
    Path("images/3/broken.png").write_bytes(b"not a picture")
    for name in "ab":
        result = run(
            "convert", "resnet20", "--checkpoint", "ann.pth", "--calib-data", "images", "--input-size", "16",
            "--recipe", "delta", "-T", "2", "-o", f"{name}.safetensors", "--json", f"{name}.json",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert "left out: images/3/broken.png: cannot read this image" in result.err
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    report = json.loads(Path("a.json").read_text())
    assert len(report["left_out"]) == 1
    assert report["recipe"]["calibration"]["images"] == 30


def test_convert_without_images_is_data_free_and_says_so(run, resnet18_pth):
    result = run("convert", "resnet18", "--checkpoint", resnet18_pth, "--levels", "7", "-T", "8")
    assert result.code == 0, result.err
    assert "data-free" in result.err
    assert "--calib-data" in result.err
    assert snnzoo.load("resnet18-snn.safetensors").conversion.recipe["calibration"]["images"] == 0


def test_convert_reports_on_every_layer(run, digits_home):
    options = ("--calib-samples", "16", "--recipe", "signed", "-T", "2", "--json", "report.json", "--verbose")
    result = run("convert", "resnet18.digits", *options)
    assert result.code == 0, result.err
    layers = json.loads(Path("report.json").read_text())["layers"]
    assert len(layers) == 17
    assert set(layers[0]) == {"site", "channels", "threshold", "clipped", "error", "events"}
    assert all(layer["site"] in result.out for layer in layers)
    assert "ternary spikes" in result.err
    assert "only 16 calibration images" in result.err


def test_the_seed_fixes_the_result_exactly(run, digits_home):
    contents = []
    for name in ("a.safetensors", "b.safetensors"):
        run("convert", "resnet18.digits", "--calib-samples", "32", "--seed", "5", "-o", name, "-q")
        contents.append(read_safetensors(Path(name)))
    (tensors, metadata), (others, other_metadata) = contents
    assert metadata == other_metadata
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.mark.slow
def test_demo_prints_one_table_of_six_rows(run, digits_home):
    result = run("demo", "--json", "demo.json")
    assert result.code == 0, result.err
    rows = json.loads(Path("demo.json").read_text())["results"]
    assert [row["time_steps"] for row in rows] == [1, 2, 4, 8, 16, 32]
    assert rows[3]["agreement"] > 0.95
    assert len(re.findall(r"│ +(?:1|2|4|8|16|32) │", result.out)) == 6


def test_eval_takes_a_user_folder_by_class_name_order(run, digits_home, image_folder):
    run("convert", "resnet18.digits", "-T", "4", "-q")
    report = json.loads(run("eval", "resnet18-snn.safetensors", "--data", image_folder, "--json", "-").out)
    assert report["images"] == 30
    assert report["ann"]["top1"] > 0.9


CONVERT = ["convert", "resnet18", "--checkpoint", "{pth}", "--calib-data", "{images}", "--calib-samples", "2"]
MISTAKES = {
    "unknown command": (["konvert"], 2, "konvert"),
    "unknown option": (["convert", "resnet18", "--wieghts", "x"], 2, "--wieghts"),
    "unknown model": (["convert", "resnet81"], 2, "unknown model 'resnet81': did you mean resnet18"),
    "unknown weights": (["convert", "resnet18", "--weights", "digit"], 2, "did you mean digits?"),
    "tolerance with -T": (["convert", "resnet18.digits", "-T", "4", "--tolerance", "1"], 2, "leave --recipe, -T"),
    "tolerance of all": (["convert", "resnet18.digits", "--tolerance", "100"], 2, "percentage points in [0, 100)"),
    "tolerance, no images": (["convert", "resnet18", "--tolerance", "1", "--checkpoint", __file__], 2, "--calib-data"),
    "no pattern matches": (["list", "densenet*"], 2, "no model matches 'densenet*'"),
    "T below 1": (["convert", "resnet18.digits", "-T", "0"], 2, "--time-steps must be from 1 to 1024, got 0"),
    "T below 1 in eval": (["eval", "{file}", "--data", "digits", "-T", "4,0"], 2, "must be from 1 to 1024, got 0"),
    "T too large": (["convert", "resnet18.digits", "-T", "1025"], 2, "--time-steps must be from 1 to 1024, got 1025"),
    "T too large in eval": (["eval", "{file}", "--data", "digits", "-T", "4,99999"], 2, "to 1024, got 99999"),
    "T of many digits": (["eval", "{file}", "--data", "digits", "-T", "9" * 9999], 2, "such as 1,2,4,8, got '999"),
    "T too large in bench": (["bench", "{file}", "-T", "1025"], 2, "--time-steps must be from 1 to 1024, got 1025"),
    "T too large in export": (["export", "{file}", "-f", "pt2", "-T", "1025"], 2, "from 1 to 1024, got 1025"),
    "T no number": (["eval", "{file}", "--data", "digits", "-T", "4,x"], 2, "such as 1,2,4,8"),
    "weights and checkpoint": ([*CONVERT, "--weights", "digits"], 2, "not both"),
    "checkpoint is missing": (["convert", "resnet18", "--checkpoint", "nowhere.pth"], 2, "nowhere.pth: no such file"),
    "calibration folder is empty": ([*CONVERT[:4], "--calib-data", "{empty}"], 2, "has no images"),
    "mean no numbers": ([*CONVERT, "--mean", "a,b,c"], 2, "--mean"),
    "std zero": ([*CONVERT, "--std", "0,1,1"], 2, "std must be positive"),
    "input size zero": ([*CONVERT, "--input-size", "0"], 2, "--input-size must be at least 1"),
    "unknown preset": ([*CONVERT, "--preprocess", "imagnet"], 2, "did you mean imagenet"),
    "integer weights on a GPU": (
        ["eval", "{file}", "--data", "digits", "--dtype", "int8", "--device", "cuda"],
        2,
        "int8 is for CPUs",
    ),
    "unknown dtype": (["eval", "{file}", "--data", "digits", "--dtype", "float8"], 2, "float32, float16, bfloat16"),
    "unknown device": (["eval", "{file}", "--data", "digits", "--device", "tpu"], 2, "auto, cpu, cuda"),
    "eval data is empty": (["eval", "{file}", "--data", "{empty}"], 2, "no folders in it: expected one folder a class"),
    "eval data is flat": (["eval", "{file}", "--data", "{images}/3"], 2, "has no folders in it"),
    "eval data has an empty class": (["eval", "{file}", "--data", "{hollow}"], 2, "has no images in it"),
    "eval data is missing": (["eval", "{file}", "--data", "nowhere"], 2, "nowhere: no such folder"),
    "eval file is missing": (["eval", "nowhere.safetensors", "--data", "digits"], 2, "make one with snnzoo convert"),
    "output exists": ([*CONVERT, "-o", "{file}"], 2, "--force"),
    "json output exists": ([*CONVERT, "--json", "{file}"], 2, "--force"),
    "output folder is missing": ([*CONVERT, "-o", "nowhere/a.safetensors"], 1, "the folder nowhere does not exist"),
}  # fmt: skip


# What is wrong with a recipe, its own room says: the refusal waits for torch.
RECIPE_MISTAKES = {
    "unknown recipe": (["--recipe", "dleta"], "unknown recipe 'dleta': did you mean delta"),
    "levels of another recipe": (["--recipe", "rate", "--levels", "3"], "recipe rate has no option 'levels', only"),
    "no levels": (["--levels", "0"], "levels must be"),
    "unknown threshold": (["--recipe", "rate", "--threshold", "x"], "threshold must be one of max, percentile, mse"),
}
ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from snnzoo.cli import main
answers = []
for arguments in json.load(sys.stdin):
    sys.argv = ["snnzoo", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main.main()
        except SystemExit as stop:
            answers.append([stop.code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory, resnet18_pth, image_folder):
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "hollow" / "a").mkdir(parents=True)
    (folder / "file.safetensors").write_bytes(b"something")
    return {
        "pth": resnet18_pth,
        "images": image_folder,
        "empty": folder / "empty",
        "hollow": folder / "hollow",
        "file": folder / "file.safetensors",
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory, places):
    """What the program says to each mistake, all made in one fresh process and an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    commands = [[argument.format(**places) for argument in arguments] for arguments, *_ in MISTAKES.values()]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], input=json.dumps(commands), cwd=folder, capture_output=True,
        text=True,
    )  # fmt: skip
    assert list(folder.iterdir()) == []
    return dict(zip(MISTAKES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_usage_mistake_is_one_line_without_torch_and_writes_nothing(mistake, answers, places):
    _, expected, message = MISTAKES[mistake]
    code, out, err, imported_torch = answers[mistake]
    assert code == expected, err
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not imported_torch
    assert places["file"].read_bytes() == b"something"


@pytest.mark.parametrize("mistake", RECIPE_MISTAKES)
def test_a_mistake_in_a_recipe_is_one_line_and_writes_nothing(mistake, run, tmp_path):
    options, message = RECIPE_MISTAKES[mistake]
    result = run("convert", "resnet18.digits", *options)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


def broken_checkpoints(folder):
    """(what is wrong, file, message): each for `convert resnet18 --num-classes 10`."""
    good = torchvision.models.resnet18(num_classes=10).state_dict()

    def saved(name, content):
        torch.save(content, folder / name)
        return folder / name

    without = {k: v for k, v in good.items() if "bn2" not in k}
    yield "missing keys", saved("a.pth", without), r"32 missing \(layer1\.0\.bn2\.weight, .* and 29 more\)"
    reshaped = {**good, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    yield (
        "another shape",
        saved("b.pth", reshaped),
        r"layer1\.0\.conv1\.weight \[64, 64, 1, 1\] instead of \[64, 64, 3, 3\]",
    )
    unexpected = {**good, "extra.weight": torch.zeros(1)}
    yield "unexpected keys", saved("c.pth", unexpected), r"1 unexpected \(extra\.weight\)"
    classes = torchvision.models.resnet18(num_classes=7).state_dict()
    yield "another number of classes", saved("d.pth", classes), "has 7 classes, not 10: give --num-classes 7"
    deeper = torchvision.models.resnet34(num_classes=10).state_dict()
    yield "another model", saved("e.pth", deeper), "resnet34, not resnet18"
    yield "no state dict", saved("f.pth", [1, 2, 3]), "not a state dict"
    (folder / "g.pth").write_bytes(b"not a checkpoint at all")
    yield "no checkpoint", folder / "g.pth", "g.pth"
    (folder / "h.pth").write_bytes(b"")
    yield "empty file", folder / "h.pth", "h.pth"
    yield "sparse weights", saved("i.pth", {**good, "fc.weight": good["fc.weight"].to_sparse()}), "sparse tensors"


def test_a_checkpoint_that_does_not_fit_is_one_line_and_writes_nothing(run, image_folder, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for what, file, message in broken_checkpoints(folder):
        result = run(
            "convert", "resnet18", "--checkpoint", file, "--num-classes", "10", "--calib-data", image_folder,
            "--calib-samples", "2", "--input-size", "32",
        )  # fmt: skip
        assert result.code == 1, what
        assert re.search(message, result.err), (what, result.err)
        assert str(file) in result.err, what
        assert result.err.count("\n") == 1, (what, result.err)
        assert list(Path().glob("*.safetensors*")) == []


def test_the_number_of_classes_is_read_from_the_checkpoint_when_it_is_not_given(run, resnet18_pth, image_folder):
    result = run(
        "convert", "resnet18", "--checkpoint", resnet18_pth, "--calib-data", image_folder, "--calib-samples", "2",
        "--input-size", "32",
    )  # fmt: skip
    assert result.code == 0, result.err
    net = snnzoo.load("resnet18-snn.safetensors")
    assert net.num_classes == 10
    assert net.conversion.classes == list("0123456789")  # the folders of the calibration images


def test_an_unreadable_image_is_named_and_nothing_is_written(run, resnet18_pth, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    result = run("convert", "resnet18", "--checkpoint", resnet18_pth, "--calib-data", "images")
    assert result.code == 1
    assert "torn.jpg: cannot read this image" in result.err
    assert result.err.count("\n") == 1
    assert not Path("resnet18-snn.safetensors").exists()


def test_an_eval_folder_with_another_number_of_classes_is_a_usage_error(run, digits_home, image_folder, tmp_path):
    run("convert", "resnet18.digits", "--calib-samples", "4", "-q")
    shutil.copytree(image_folder, tmp_path / "nine")
    shutil.rmtree(tmp_path / "nine" / "9")
    (tmp_path / "nine" / "0").rename(tmp_path / "nine" / "zero")
    result = run("eval", "resnet18-snn.safetensors", "--data", "nine")
    assert result.code == 2
    assert "9 class folders, but the network has 10 classes" in result.err


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs a folder that not even root can write to")
def test_a_read_only_output_folder_is_one_line(run, resnet18_pth, image_folder):
    result = run(
        "convert", "resnet18", "--checkpoint", resnet18_pth, "--calib-data", image_folder, "-o", "/proc/a.safetensors"
    )
    assert result.code == 1
    assert "cannot write to the folder /proc" in result.err
    assert result.err.count("\n") == 1


def test_force_replaces_an_output(run, digits_home):
    Path("net.safetensors").write_bytes(b"old")
    arguments = ("convert", "resnet18.digits", "--calib-samples", "4", "-o", "net.safetensors", "-q")
    assert run(*arguments).code == 2
    assert run(*arguments, "--force").code == 0
    assert snnzoo.load("net.safetensors").model_name == "resnet18"


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(run, digits_home, monkeypatch):
    Path("net.safetensors").write_bytes(b"old")

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("snnzoo.checkpoints.files.save_file", interrupted)
    result = run("convert", "resnet18.digits", "--calib-samples", "4", "-o", "net.safetensors", "-q", "--force")
    assert result.code == 130
    assert Path("net.safetensors").read_bytes() == b"old"
    assert os.listdir() == ["net.safetensors"]


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snnzoo.cli", "convert", "resnet19", "--debug"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert "Traceback" in done.stderr
    assert "resnet19" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["convert", "--help"], ["list"], ["list", "--json", "-"], ["--version"]]
)
def test_help_list_and_version_do_not_import_torch(arguments, tmp_path):
    script = (
        "import sys; from snnzoo.cli import main\n"
        "try: main.main()\n"
        "finally: sys.stderr.write('torch' if 'torch' in sys.modules else 'no torch')"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "no torch"
    assert len(done.stdout) > 5


COMMANDS = typer.main.get_command(cli.app).commands


def test_there_is_a_command_for_each_file_of_the_command_line():
    assert len(COMMANDS) == 12


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_that_the_command_takes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet20.th").touch()  # some commands ask for a file that is there
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    example = re.search(rf"snnzoo {command}\b([^\n│]*)", result.output.partition("Example")[2])
    assert example is not None, result.output
    with COMMANDS[command].make_context(command, shlex.split(example[1])):
        pass  # parsed


def test_list_shows_every_model_and_weights_set_as_json(run):
    models = json.loads(run("list", "--json", "-").out)["models"]
    assert [model["name"] for model in models] == snnzoo.list_models()
    names = {weights["name"] for model in models if model["name"] == "resnet18" for weights in model["weights"]}
    assert names == {"IMAGENET1K_V1", "digits"}


def test_shell_completion_offers_models(tmp_path):
    environment = {
        **os.environ,
        "_SNNZOO_COMPLETE": "complete_bash",
        "COMP_WORDS": "snnzoo convert resnext",
        "COMP_CWORD": "2",
    }
    script = Path(sys.executable).parent / "snnzoo"
    done = subprocess.run([script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]


def test_convert_without_recipe_options_says_what_it_chose_and_what_the_others_cost(run, digits_home):
    result = run("convert", "resnet18.digits", "--tolerance", "2", "--calib-samples", "128", "--json", "-")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    choice = report["recipe"]["choice"]
    assert (choice["tolerance"], choice["within"]) == (2.0, True)
    assert choice["chosen"] in choice["candidates"]
    assert choice["chosen"]["agreement"] >= 98
    assert report["time_steps"] == choice["chosen"]["time_steps"]
    assert report["coding"]["levels"] == choice["chosen"]["levels"]
    assert "<- chosen" in result.err
    assert f"within 2 points of the ANN on {choice['held_back']} held-back images" in result.err
