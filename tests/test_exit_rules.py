"""Exit rules: how they are chosen, kept in a file, and what the command line makes of them."""

import copy
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import snnzoo
from helpers import shake_batch_norm
from snnzoo import conversion, prepare_for_inference
from snnzoo.conversion import exits
from snnzoo.data.preprocess import PRESETS
from snnzoo.early_exit import NEVER, ExitRule, gap
from snnzoo.errors import UsageError
from snnzoo.evaluation import evaluate
from snnzoo.evaluation.prediction import class_names
from snnzoo.evaluation.tally import Tally

STEPS = 4


def settling(images=1200, classes=5, seed=0):
    """Logits `[T, N, classes]` that come closer to their last with each step, and lack the same at first."""
    generator = torch.Generator().manual_seed(seed)
    last = 3 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    noise = torch.randn(STEPS, images, classes, generator=generator, dtype=torch.float64)
    lacking = torch.randn(classes, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64).view(-1, 1, 1)
    return last + scale * (noise - 2 * lacking)


def test_rules_keep_their_tolerance_on_other_images_and_save_steps():
    table, others = exits.choose_rules(settling(), (0.5, 2.0, 5.0)), settling(seed=1)
    wanted = others[-1].argmax(1)
    mean_steps = []
    for rule in table.rules:
        answers, steps = table.rule(rule.tolerance).apply(others)
        changed = 100 * (answers.argmax(1) != wanted).double().mean().item()
        assert changed <= 1.5 * rule.tolerance  # one draw of 1,200 images
        assert steps.double().mean().item() == pytest.approx(rule.mean_steps, abs=0.25)
        assert rule.changed < rule.tolerance
        staying = [(steps > t).double().mean().item() for t in range(1, STEPS)]
        assert rule.staying == pytest.approx(staying, abs=0.1)
        mean_steps.append(rule.mean_steps)
    assert STEPS > mean_steps[0] > mean_steps[1] > mean_steps[2]


def test_what_all_early_readouts_lack_is_added():
    logits = settling()
    rule = exits.choose_rules(logits, (1.0,)).rule(1.0)
    lacking = (logits[-1] - logits[0]).mean(0)
    torch.testing.assert_close(rule.readout(logits, 0) - logits[0], lacking.expand_as(logits[0]), rtol=1e-3, atol=0)
    assert torch.equal(rule.readout(logits, STEPS - 1), logits[-1])


def test_readouts_that_go_on_as_they_changed_lately_are_foretold():
    """Each image at a pace of its own, straight to its last logits: what a shift for all cannot say."""
    last = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.stack([last * t / STEPS for t in range(1, STEPS + 1)])
    rule = exits.choose_rules(logits, (1.0,)).rule(1.0)
    for t in range(1, STEPS):
        torch.testing.assert_close(rule.readout(logits, t), last, rtol=1e-2, atol=1e-2)


def test_of_too_few_images_none_leaves():
    """One change more than was seen has to be reckoned with: of 100 images, that is a percent."""
    table = exits.choose_rules(settling(100), (0.5, 50.0))
    assert table.rules[0].thresholds == (NEVER,) * (STEPS - 1)
    assert table.rules[0].mean_steps == STEPS
    assert table.rules[1].mean_steps < 2


def test_thresholds_of_one_step_are_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    for price in (2.0, 5.0, 20.0):
        sure = torch.rand(1, 60, generator=generator, dtype=torch.float64)
        changes = torch.rand(1, 60, generator=generator, dtype=torch.float64) > 0.3 + sure
        (threshold,) = exits._thresholds(sure, changes, price)

        def cost(limit, sure=sure[0], changes=changes[0], price=price):
            leaves = sure > limit
            charged = price * exits.UNSEEN if leaves.any() else 0
            return torch.where(leaves, 1 + price * changes, 2.0).sum() + charged

        best = min(cost(limit) for limit in [*sure[0].tolist(), 0.0, NEVER])
        assert cost(threshold) == pytest.approx(best.item())


@pytest.fixture(scope="module")
def resnet20():
    torch.manual_seed(0)
    return shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")).eval()


@pytest.fixture(scope="module")
def net(resnet20):
    """Converted, with exit rules, and with those of one tolerance at which about half of the images leave early."""
    images = torch.randn(88, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net = snnzoo.convert(resnet20, images[:24], time_steps=3, gamma=0.5, exit_images=images[24:])
    logits = exits.readouts(net, images[24:], 3, 64)
    table = exits.choose_rules(logits, (0.5, 60.0))
    rule = table.rule(60.0)
    medians = tuple(gap(rule.readout(logits, t)).median().item() for t in range(2))
    loose = dataclasses.replace(table.rules[1], thresholds=medians)
    net.conversion.exits = dataclasses.replace(table, rules=(table.rules[0], loose))
    net.conversion.preprocess, net.conversion.classes = PRESETS["digits"], list("0123456789")
    return net


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "net.safetensors"
    snnzoo.save(net, path)
    return path


def test_conversion_chooses_rules_on_images_of_their_own(resnet20):
    images = torch.randn(72, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made = snnzoo.convert(resnet20, images[:8], time_steps=2, gamma=0.5, exit_images=images[8:])
    table = made.conversion.exits
    assert table.images == 64
    assert [rule.tolerance for rule in table.rules] == list(exits.TOLERANCES)
    assert made.conversion.recipe["calibration"]["images"] == 8
    without = snnzoo.convert(resnet20, images[:8], time_steps=2, gamma=0.5)
    assert without.conversion.exits is None
    assert conversion.calibrate_exits(without, images[8:]) == table
    assert without.conversion.exits == table


def test_rules_of_too_few_images_or_impossible_tolerances_are_errors(net):
    with pytest.raises(UsageError, match="at least 64 held-back images"):
        conversion.calibrate_exits(net, torch.randn(5, 3, 32, 32))
    with pytest.raises(UsageError, match="between 0 and 100"):
        conversion.calibrate_exits(net, torch.randn(64, 3, 32, 32), [0.0])


def test_a_file_keeps_the_rules(net, file):
    assert snnzoo.load(file).conversion.exits == net.conversion.exits


def test_a_file_without_rules_is_read_and_asked_for_one_says_how_to_get_it(resnet20, tmp_path):
    old = snnzoo.convert(resnet20, torch.randn(4, 3, 16, 16), time_steps=2, gamma=0.5)
    snnzoo.save(old, tmp_path / "old.safetensors")
    loaded = snnzoo.load(tmp_path / "old.safetensors")
    assert loaded.conversion.exits is None
    with pytest.raises(UsageError, match=r"old\.st has no exit rules: convert again with --calib-data, or .*_exits"):
        conversion.exit_rule(loaded.conversion, 0.5, "old.st")


def test_a_tolerance_that_is_not_kept_names_those_that_are(net):
    with pytest.raises(UsageError, match=r"net: exit rules are kept for tolerances of 0\.5, 60 points, got 0\.3"):
        conversion.exit_rule(net.conversion, 0.3, "net")


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(20, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.randint(0, 10, (20,), generator=generator))


def test_the_row_of_early_exit_equals_counts_by_hand(net, resnet20, data):
    """In float64: in float32 an image at the edge of a rule may leave a step later in another batch."""
    images, labels = data.tensors
    data = images.double(), labels
    net, resnet20 = copy.deepcopy(net).double(), copy.deepcopy(resnet20).double()
    rule = net.conversion.exits.rule(60.0)
    fast = prepare_for_inference(net)
    logits = fast(images.double().expand(3, *images.shape))
    answers, steps = rule.apply(logits)
    assert 1 < steps.double().mean() < 3
    alone = 0.0
    for t in steps.unique().tolist():
        those = steps == t
        fixed = evaluate(net, None, (data[0][those], labels[those]), [t], dtype=torch.float64).results[0]
        alone += fixed.synaptic_operations * those.sum().item() / 20
    rows = []
    for batch_size in (1, 7, 20):
        result = evaluate(net, resnet20, data, [1], batch_size=batch_size, exit=rule, dtype=torch.float64)
        assert [row.time_steps for row in result.results] == [1, 3]  # beside that of all steps
        row = result.exit
        assert row.steps == torch.bincount(steps - 1, minlength=3).tolist()
        assert row.mean_steps == pytest.approx(steps.double().mean().item())
        assert row.top1 == (answers.argmax(1) == labels).double().mean().item()
        with torch.inference_mode():
            assert row.agreement == (answers.argmax(1) == resnet20(data[0]).argmax(1)).double().mean().item()
        assert row.synaptic_operations < result.results[-1].synaptic_operations
        assert row.energy_uj < result.results[-1].energy_uj
        assert row.images_per_second > 0
        assert row.curve[0] == (1.0, (rule.readout(logits, 0).argmax(1) == labels).double().mean().item())
        assert row.curve[-1] == (3.0, result.results[-1].top1)
        rows.append((row.top5, row.curve))
        assert row.synaptic_operations == pytest.approx(alone)
    assert rows[0] == rows[1] == rows[2]


def test_if_no_image_leaves_early_the_row_is_that_of_all_steps(net, resnet20, data):
    result = evaluate(net, resnet20, data, [3], exit=ExitRule("gap", (NEVER,) * 2))
    last, row = result.results[-1], result.exit
    assert row.steps == [0, 0, 20]
    for name in ("top1", "top5", "agreement", "synaptic_operations", "energy_uj"):
        assert getattr(row, name) == getattr(last, name), name
    assert row.events_per_neuron_step == pytest.approx(last.events_per_neuron_step)


def test_counts_of_early_exit_add_up_and_survive_a_file():
    generator = torch.Generator().manual_seed(0)
    labels, logits = torch.randint(0, 5, (20,), generator=generator), settling(20)
    rule = ExitRule("gap", (0.9, 0.8, 0.7))
    answers, steps = rule.apply(logits)

    def counted(some):
        tally = Tally.empty([STEPS], 5, rule)
        tally.count(labels[some], None, logits[:, some])
        tally.count_exits(rule, labels[some], None, logits[:, some], answers[some], steps[some])
        return tally

    whole, parts = counted(slice(None)), counted(slice(0, 7)).plus(counted(slice(7, 20)))
    assert json.dumps(parts.to_dict()) == json.dumps(whole.to_dict())
    assert Tally.from_dict(json.loads(json.dumps(whole.to_dict()))).to_dict() == whole.to_dict()


@pytest.fixture
def run(run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return run_command


def test_eval_shows_the_row_in_table_json_and_report(run, file, image_folder, tmp_path):
    options = ("--data", image_folder, "--exit", "60", "--json", "out.json", "--report", "report.html")
    code, out, err = run("eval", file, *options)
    assert code == 0, err
    row = json.loads((tmp_path / "out.json").read_text())["exit"]
    assert row["tolerance"] == 60
    assert sum(row["steps"]) == 30
    assert f"ø {row['mean_steps']:.2f}" in out
    assert "Images left when they were sure" in out
    assert "Early exit" in (tmp_path / "report.html").read_text("utf-8")


def test_eval_of_a_tolerance_that_is_not_kept_is_a_usage_error(run, file, image_folder):
    code, _, err = run("eval", file, "--data", image_folder, "--exit", "0.3")
    assert code == 2
    assert "exit rules are kept for tolerances of 0.5, 60 points, got 0.3" in err
    code, _, err = run("eval", "a.pth", "--data", image_folder, "--exit", "0.3", "--model", "sew_resnet18", "-T", "4")
    assert code == 2


def test_bench_runs_early_exit_on_images(run, file, image_folder):
    options = ("--batch-size", 4, "--repeats", 1, "--device", "cpu", "--json", "-")
    code, out, err = run("bench", file, "--exit", 60, "--data", image_folder, *options)
    assert code == 0, err
    report = json.loads(out)
    assert 1 <= report["mean_steps"] <= 3
    assert "fast_exit" in [row["name"] for row in report["results"]]
    for wrong in (("--exit", 60), ("--data", image_folder), ("--exit", 60, "--data", image_folder, "-T", 2)):
        code, _, err = run("bench", file, *wrong)
        assert code == 2, wrong
        assert "--exit" in err
    assert run("bench", "resnet20", "--exit", 60, "--data", image_folder)[0] == 2


def test_predict_names_the_classes_of_each_image(run, file, net, image_folder):
    pictures = sorted(image_folder.glob("*/*.png"))
    code, out, err = run("predict", file, image_folder, "--json", "result.json")
    assert code == 0, err
    assert [line.partition(": ")[0] for line in out.splitlines()] == list(map(str, pictures))
    transform = PRESETS["digits"].transform()
    from PIL import Image

    x = torch.stack([transform(Image.open(picture).convert("RGB")) for picture in pictures])
    wanted = prepare_for_inference(net).final(x.expand(3, *x.shape)).softmax(1).topk(5)
    with open("result.json") as text:
        report = json.load(text)
    for i, row in enumerate(report["predictions"]):
        assert row["image"] == str(pictures[i])
        assert row["steps"] == 3
        assert [guess["index"] for guess in row["guesses"]] == wanted.indices[i].tolist()
        assert [guess["name"] for guess in row["guesses"]] == [str(j) for j in wanted.indices[i].tolist()]
        assert [guess["probability"] for guess in row["guesses"]] == pytest.approx(wanted.values[i].tolist(), abs=1e-4)
    code, out, _ = run("predict", file, *pictures[:3], "--exit", "60", "--json", "-")
    assert code == 0
    early = json.loads(out)
    rule = net.conversion.exits.rule(60.0)
    _, steps = prepare_for_inference(net).until_sure(x[:3], rule)
    assert [row["steps"] for row in early["predictions"]] == steps.tolist()


def test_predict_imports_nothing_of_what_takes_longer_than_to_predict(file, image_folder):
    """torch._dynamo and sympy, which the meta device and torchvision bring along, take two seconds."""
    program = """
import sys
from snnzoo.cli.main import main
try:
    main()
finally:
    print(*sorted({"torch._dynamo", "sympy", "torchvision"} & sys.modules.keys()), file=sys.stderr)
"""
    picture = next(image_folder.glob("*/*.png"))
    done = subprocess.run(
        [sys.executable, "-c", program, "predict", file, picture], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(picture))
    assert done.stderr.strip() == ""


def test_predict_goes_on_without_images_that_cannot_be_read(run, file, image_folder, tmp_path):
    good, bad = next(image_folder.glob("*/*.png")), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    code, out, err = run("predict", file, bad, good)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "bad.png: cannot read this image" in err
    code, _, err = run("predict", file, bad)
    assert code == 1
    assert "none of 1 images can be read" in err


def test_predict_of_what_is_no_image_is_a_usage_error(run, file, tmp_path):
    (tmp_path / "text.txt").touch()
    for path, message in (("nothing.jpg", "no such file"), ("text.txt", "expected an image")):
        code, _, err = run("predict", file, path)
        assert code == 2
        assert message in err
    assert run("predict", "nothing.safetensors", "text.txt")[0] == 2


def test_a_thousand_classes_without_names_are_imagenets():
    names = class_names(None, 1000)
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert class_names(None, 3) == ["0", "1", "2"]
    assert class_names(["a", "b"], 2) == ["a", "b"]
