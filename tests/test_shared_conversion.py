"""`torchrun` shares a conversion: the file is the one that a single process writes, to the last bit."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

import snnzoo
from helpers import shake_batch_norm, torchrun
from snnzoo.distributed import Rank


@pytest.fixture
def command(tmp_path, monkeypatch, image_folder):
    """Converts a ResNet-20 on 16 images in batches of 5: two for each of two processes."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    torch.save(ann.state_dict(), "resnet20.pth")
    options = ("--calib-data", str(image_folder), "--calib-samples", "16", "--exit-samples", "8", "--batch-size", "5")
    return ("convert", "resnet20", "--checkpoint", "resnet20.pth", "--force-fit", "--device", "cpu", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--levels", "7", "-T", "3"),
        pytest.param(("--recipe", "rate", "-T", "4", "--threshold", "percentile"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_write_the_file_of_one_and_one_of_them_prints(run_command, command, options):
    assert run_command(*command, *options, "-o", "one.safetensors")[0] == 0
    done = torchrun(*command, *options, "-o", "two.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote two.safetensors") == 1
    with safe_open("one.safetensors", "pt") as one, safe_open("two.safetensors", "pt") as two:
        assert one.metadata() == two.metadata()
        assert set(one.keys()) == set(two.keys())
        assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())  # noqa: SIM118


def test_every_batch_is_one_processs_and_a_single_one_takes_all():
    ranks = [Rank(rank, 3) for rank in range(3)]
    assert all(sum(rank.takes(batch) for rank in ranks) == 1 for batch in range(10))
    assert all(Rank().takes(batch) for batch in range(10))
    assert Rank().in_order({1: "b", 0: "a"}) == ["a", "b"]
