"""Every file of examples/ runs from top to bottom, and comes to what it says it does."""

import runpy
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("limits")  # users have them, too
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name, monkeypatch, folder):
    """The names that an example leaves."""
    monkeypatch.chdir(folder)
    with torch.random.fork_rng():
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def top1(result):
    return [row.top1 for row in result.results]


def test_a_module_of_ones_own_comes_close_to_the_ann_step_by_step(monkeypatch, tmp_path):
    names = run("convert_your_module", monkeypatch, tmp_path)
    assert sorted(names["distances"], reverse=True) == names["distances"]
    assert names["agreement"] > 0.95
    assert list(tmp_path.iterdir()) == []


def test_a_converted_network_is_better_for_training_on(monkeypatch, tmp_path):
    names = run("fine_tune_converted", monkeypatch, tmp_path)
    assert top1(names["after"]) > top1(names["before"])
    assert names["before"].ann["top1"] > 0.9


def test_frames_of_events_are_recorded_learnt_converted_and_evaluated(monkeypatch, tmp_path):
    names = run("event_frames", monkeypatch, tmp_path)
    assert names["result"].ann["top1"] > 0.9
    assert top1(names["result"])[-1] > 0.9
    assert not names["folder"].exists()


def test_images_leave_early_and_keep_the_accuracy(monkeypatch, tmp_path, digits_home):
    names = run("early_exit", monkeypatch, tmp_path)
    assert names["mean_steps"] < 3
    assert names["top1"] > 0.9
    assert abs(names["top1"] - names["top1_of_all"]) < 0.05


@pytest.mark.slow
def test_a_spiking_resnet_learns_the_digits(monkeypatch, tmp_path):
    assert top1(run("train_spiking_resnet", monkeypatch, tmp_path)["result"])[-1] > 0.8


def test_every_example_is_run():
    tests = Path(__file__).read_text("utf-8")
    assert [path.stem for path in EXAMPLES.glob("*.py") if f'run("{path.stem}"' not in tests] == []
