"""`snnzoo eval`: several files, reports, interruption and several processes."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm, torchrun
from snnzoo.data.datasets import labelled_data
from snnzoo.data.preprocess import Preprocess
from snnzoo.distributed import Rank
from snnzoo.errors import SnnzooError
from snnzoo.evaluation import evaluate
from snnzoo.evaluation.evaluator import Interrupted
from snnzoo.evaluation.partial import PartialCounts
from snnzoo.evaluation.runner import Runner
from snnzoo.evaluation.tally import Tally

SMALL = Preprocess(16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two converted networks for 16x16 images."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    for name, recipe in (("a", "delta"), ("b", "rate")):
        options = {"gamma": 0.5} if recipe == "delta" else {}
        net = snnzoo.convert(ann, torch.rand(8, 3, 16, 16), recipe, time_steps=2, **options)
        net.conversion.preprocess = SMALL
        snnzoo.save(net, folder / f"{name}.safetensors")
    return folder / "a.safetensors", folder / "b.safetensors"


@pytest.fixture
def run(run_command, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return run_command


def counts(report):
    """All of a JSON report but the speeds."""
    for row in report["results"]:
        del row["images_per_second"]
    return report


def test_a_report_and_a_picture_are_written_beside_the_table(run, files, image_folder):
    code, out, err = run(
        "eval", files[0], "--data", image_folder, "--limit", "8", "--report", "out.html", "--plot", "out.png"
    )  # fmt: skip
    assert code == 0, err
    assert "wrote out.html" in err
    assert "energy µJ" in out
    report = Path("out.html").read_text()
    assert "--report out.html" in report  # the command
    assert "Conversion error" in report
    assert report.count("<svg") == 4
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("eval", files[0], "--data", image_folder, "--report", "out.html")
    assert (code, "out.html exists" in err) == (2, True)


def test_several_files_are_compared_in_one_table_and_one_plot(run, files, image_folder):
    code, out, err = run(
        "eval", *files, "--data", image_folder, "--limit", "6", "--plot", "both.png", "--json", "both.json", "-T", "2"
    )
    assert code == 0, err
    assert out.count("┏") == 1
    for text in ("network", "│ a ", "│ b ", "a: delta(levels=3, gamma=0.5)", "b: rate, binary spikes", "graded"):
        assert text in out, text
    evaluations = json.loads(Path("both.json").read_text())["evaluations"]
    assert [Path(one["file"]).name for one in evaluations] == ["a.safetensors", "b.safetensors"]
    assert evaluations[0]["ann"]["top1"] == evaluations[1]["ann"]["top1"]
    assert Path("both.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plot", "x.gif"), "--plot: the suffix must be one of .png, .svg, .pdf, got '.gif'"),
        (("--report", "missing/x.html"), "the folder missing does not exist"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(run, files, image_folder, options, message):
    code, _, err = run("eval", files[0], "--data", image_folder, *options)
    assert code in (1, 2)
    assert message in err


@pytest.fixture
def interrupt_after(monkeypatch):
    """Ctrl-C in the middle of a batch, once `batches` are done."""

    def interrupt_after(batches):
        run, calls = Runner.__call__, []

        def interrupted(self, images):
            result = run(self, images)
            calls.append(len(images))
            if len(calls) > batches:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(Runner, "__call__", interrupted)
        return lambda: monkeypatch.setattr(Runner, "__call__", run)

    return interrupt_after


def test_ctrl_c_says_what_is_measured_and_resume_goes_on(run, files, image_folder, interrupt_after):
    command = ("eval", files[0], "--data", image_folder, "--batch-size", "7", "--json", "resumed.json")
    undo = interrupt_after(2)
    code, out, err = run(*command)
    undo()
    assert code == 130
    assert "so far, 14 of 30 images" in out
    assert "interrupted" in err
    kept = list(Path("home").rglob("partial/*"))
    assert len(kept) == 1

    undo = interrupt_after(1)
    code, out, _ = run(*command, "--resume")  # and again
    undo()
    assert "so far, 21 of 30 images" in out
    code, _, err = run(*command, "--resume")
    assert code == 0, err
    assert not list(Path("home").rglob("partial/*"))
    code, _, _ = run(*command[:-1], "whole.json")
    whole, resumed = (counts(json.loads(Path(name).read_text())) for name in ("whole.json", "resumed.json"))
    assert resumed == whole


def test_counts_of_another_evaluation_are_not_gone_on_with(run, files, image_folder, interrupt_after):
    command = ("eval", files[0], "--data", image_folder, "--batch-size", "7")
    undo = interrupt_after(1)
    run(*command)
    undo()
    code, _, err = run(*command, "-T", "1", "--resume", "--json", "t1.json")
    assert code == 0
    assert "nothing to resume" in err
    assert json.loads(Path("t1.json").read_text())["images"] == 30


def test_counts_are_written_from_time_to_time(files, image_folder, tmp_path):
    net, ann = snnzoo.conversion.load_with_ann(files[0])
    data = labelled_data(str(image_folder), SMALL, None, 10)
    partial = PartialCounts({"a": 1}, tmp_path, seconds=0.0)
    seen = []

    def progress(done, total, description):
        tally, batches = partial.load()
        seen.append((tally.images, batches))

    evaluate(net, ann, data, [1], batch_size=10, partial=partial, progress=progress)
    assert seen == [(10, 1), (20, 2), (30, 3)]
    partial.delete()
    assert partial.load() is None


def test_counts_come_back_as_they_were_and_not_at_all_once_a_byte_is_another(files, image_folder, tmp_path):
    net, ann = snnzoo.conversion.load_with_ann(files[0])
    partial = PartialCounts({"a": 1}, tmp_path)
    data = labelled_data(str(image_folder), SMALL, None, 10)
    result = evaluate(net, ann, data, [1, 2], batch_size=10, error_images=2, partial=partial)
    assert evaluate(net, ann, data, [1, 2], batch_size=10, partial=partial, resume=True) == result
    content = partial.path.read_bytes()
    for place in range(0, len(content), 7):
        partial.path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert partial.load() is None, place
    for damaged in (b"", b"nonsense", b"\xff\xfe", content[:-1], content + b" "):
        partial.path.write_bytes(damaged)
        assert partial.load() is None


def test_counts_that_cannot_be_kept_are_told_of_once_and_the_evaluation_goes_on(files, image_folder, tmp_path):
    net, ann = snnzoo.conversion.load_with_ann(files[0])
    (tmp_path / "file").write_text("in the way")
    told = []
    partial = PartialCounts({"a": 1}, tmp_path / "file" / "folder", seconds=0.0, notify=told.append)
    data = labelled_data(str(image_folder), SMALL, None, 10)
    assert evaluate(net, ann, data, [1], batch_size=10, partial=partial).images == 30
    assert len(told) == 1
    assert "--resume will not find it" in told[0]


def broken(*arguments, **options):
    raise SnnzooError("No space left on device")


def test_results_survive_outputs_that_fail(run, files, image_folder, monkeypatch):
    """Each output is written whatever became of the others, and nothing is evaluated again."""
    command = ("eval", files[0], "--data", image_folder, "--batch-size", "10", "--force")
    outputs = ("--json", "out.json", "--report", "out.html", "--plot", "out.png")
    assert run(*command, "--json", "whole.json")[0] == 0
    for name in ("snnzoo.report.html.write_report", "snnzoo.cli.results.print_table", "snnzoo.cli.common.write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(name, broken)
            code, out, err = run(*command, *outputs)
        assert code == 1
        assert "No space left on device" in err
        assert "--resume evaluates nothing anew" in err
        written = {path for path in ("out.json", "out.html", "out.png") if Path(path).exists()}
        assert len(written) == (3 if name.endswith("_table") else 2)
        assert ("energy µJ" in out) == (not name.endswith("_table"))
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "__call__", broken)  # nothing is run
            code, out, err = run(*command, *outputs, "--resume")
        assert code == 0, err
        assert counts(json.loads(Path("out.json").read_text())) | {"layers": 0} == counts(
            json.loads(Path("whole.json").read_text())
        ) | {"layers": 0}  # errors of layers are measured for reports alone
        for path in ("out.json", "out.html", "out.png"):
            Path(path).unlink()
        assert not list(Path("home").rglob("partial/*"))


def test_images_that_changed_are_not_mixed_with_counts_of_the_old_ones(run, files, image_folder, interrupt_after):
    shutil.copytree(image_folder, "images")
    command = ("eval", files[0], "--data", "images", "--batch-size", "7")
    undo = interrupt_after(2)
    run(*command)
    undo()
    changed = next(Path("images").rglob("*.png"))
    os.utime(changed, (1, 1))
    code, _, err = run(*command, "--resume", "--json", "out.json")
    assert code == 0
    assert "nothing to resume" in err


def test_an_interruption_before_the_first_batch_has_nothing_to_say(files, image_folder, interrupt_after):
    net, ann = snnzoo.conversion.load_with_ann(files[0])
    interrupt_after(0)
    with pytest.raises(Interrupted) as caught:
        evaluate(net, ann, labelled_data(str(image_folder), SMALL, None, 10), [1])
    assert caught.value.evaluation is None


def test_shards_add_up_to_the_whole(files, image_folder, monkeypatch):
    """Every process counts its own batches; together they are all, whatever the number of processes."""
    net, ann = snnzoo.conversion.load_with_ann(files[0])
    data = labelled_data(str(image_folder), SMALL, None, 10)
    whole = evaluate(net, ann, data, [1, 2], batch_size=4)
    tallies = []
    monkeypatch.setattr(Rank, "gather", lambda self, tally: tallies.append(tally) or [tally])
    for count in (2, 3, 9):  # 8 batches: the ninth process has none
        tallies.clear()
        for rank in range(count):
            with contextlib.suppress(ValueError, ZeroDivisionError):  # speed is that of the first process
                evaluate(net, ann, data, [1, 2], batch_size=4, rank=Rank(rank, count))
        result = functools.reduce(Tally.plus, tallies).evaluation(net.conversion.coding)
        for row in (*whole.results, *result.results):
            row.images_per_second = 0.0
        assert dataclasses.replace(result, fit=whole.fit) == whole


def test_several_threads_read_the_same_images(run, files, image_folder):
    command = ("eval", files[0], "--data", image_folder, "--batch-size", "7", "--json", "-")
    one, four = (json.loads(run(*command, *more)[1]) for more in ((), ("--workers", "4")))
    assert counts(four) == counts(one)


def test_torchrun_gives_the_same_to_the_digit_and_one_process_prints(run, files, image_folder):
    """30 images in batches of 4 on 2 processes: 4 batches each, the last of 2 images."""
    command = ("eval", files[0], "--data", image_folder, "--batch-size", "4", "--device", "cpu")
    code, printed, _ = run(*command, "--json", "one.json")
    assert code == 0
    done = torchrun(*command, "--json", "two.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("┏") == printed.count("┏") > 0
    one, two = (counts(json.loads(Path(name).read_text())) for name in ("one.json", "two.json"))
    assert two == one
