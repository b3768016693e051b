"""Bundles of whole numbers: near the network, and run to the bit by the reader of the docs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import snnzoo
from helpers import Pyramid, shake_batch_norm
from snnzoo.codings import Delta
from snnzoo.conversion.recipes import Recipe
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.export.check import compare, expected_logits
from snnzoo.export.integer import open_integer, to_integers, write_integer
from snnzoo.export.integer_run import ONE, rounded

READER = Path(__file__).resolve().parents[1] / "docs" / "integer_reader.py"
SHAPE = (3, 16, 16)
IMAGES = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(3))

RECIPES = {
    "rate": ("rate", {}, 6),
    "plain": ("plain", {"most": 3, "clipped": True}, 6),
    "plain, to zero": ("plain", {"to_zero": True}, 6),
    "plain, late": ("plain", {"late": True}, 6),
    "signed": ("signed", {}, 5),
    "delta": ("delta", {"levels": 3, "gamma": 0.5}, 4),
    "delta, any gamma": ("delta", {"levels": 7, "gamma": 0.3}, 3),
}


def resnet():
    torch.manual_seed(0)
    return shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")).eval()


def few_layers():
    """Groups, dilation, uneven sizes, an average pool in the middle, joined channels."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
            self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
            self.c = nn.Conv2d(16, 6, 1)
            self.fc1, self.fc2 = nn.Linear(6 * 4 * 8, 12), nn.Linear(12, 5)

        def forward(self, x):
            x = torch.relu(self.a(x))
            x = torch.cat([x, torch.relu(self.b(x))], 1)
            x = torch.relu(self.c(nn.functional.avg_pool2d(x, 2)))
            return self.fc2(torch.relu(self.fc1(x.flatten(1))))

    torch.manual_seed(0)
    return Net().eval()


def reader():
    spec = importlib.util.spec_from_file_location("integer_reader", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_reader_reproduces(path):
    bundle = reader().Bundle(path)
    arrays = bundle.arrays
    neurons = [node["name"] for node in bundle.about["nodes"] if node["operation"] == "neuron"]
    assert {f"trace.{name}" for name in (*neurons, "input", "logits")} == {k for k in arrays if k.startswith("trace.")}
    fired = 0
    for t in range(bundle.about["time_steps"]):
        values, logits = bundle.step(arrays["trace.input"], t)
        assert np.array_equal(logits, arrays["trace.logits"][t]), t
        for name in neurons:
            assert np.array_equal(values[name], arrays[f"trace.{name}"][t]), (name, t)
            fired += np.count_nonzero(values[name])
    assert fired > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_reader_of_the_docs_reproduces_every_trace(recipe, tmp_path):
    name, options, time_steps = RECIPES[recipe]
    net = snnzoo.convert(resnet(), IMAGES, name, time_steps=time_steps, **options)
    write_integer(net, tmp_path / "net.npz", time_steps, SHAPE, traced=IMAGES)
    assert_reader_reproduces(tmp_path / "net.npz")


@pytest.mark.parametrize("recipe", ["rate", "delta"])
def test_layers_of_other_geometries_come_near_the_network(recipe, tmp_path):
    name, options, _ = RECIPES[recipe]
    net = snnzoo.convert(few_layers(), IMAGES, name, time_steps=8, **options)
    found = write_integer(net, tmp_path / "net.npz", 8, SHAPE, images=IMAGES)
    assert found.typical < 0.2
    assert found.agreement >= 0.9
    assert_reader_reproduces(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz") as file:
        assert {file[key].dtype for key in file.files if key.endswith(".weight")} == {np.dtype(np.int8)}
        thresholds = [file[key] for key in file.files if key.endswith(".threshold")]
        assert all((value == ONE).all() for value in thresholds)
        about = json.loads(str(file["graph"]))
    assert about["verified"]["agreement"] == found.agreement
    assert about["coding"] == net.coding.to_dict()


def test_a_stem_with_a_max_pool_is_whole_numbers_too(tmp_path):
    torch.manual_seed(0)
    ann = shake_batch_norm(torchvision.models.resnet18(num_classes=5)).eval()
    net = snnzoo.convert(ann, IMAGES, "delta", time_steps=2, gamma=0.5, levels=7)
    write_integer(net, tmp_path / "net.npz", 2, (3, 32, 32))
    assert_reader_reproduces(tmp_path / "net.npz")


def test_a_file_gives_the_same_logits_as_what_was_checked(tmp_path):
    net = snnzoo.convert(few_layers(), IMAGES, "rate", time_steps=8)
    found = write_integer(net, tmp_path / "net.npz", 8, SHAPE, images=IMAGES)
    again = compare(open_integer(tmp_path / "net.npz"), IMAGES, expected_logits(net, IMAGES, 8))
    assert (again.difference, again.agreement) == (found.difference, found.agreement)


def test_the_reader_is_short_and_needs_numpy_alone(tmp_path):
    text = READER.read_text("utf-8")
    assert len(text.splitlines()) <= 100
    net = snnzoo.convert(few_layers(), IMAGES, "rate", time_steps=3)
    write_integer(net, tmp_path / "net.npz", 3, SHAPE)
    blocked = "import sys; sys.modules['torch'] = sys.modules['snnzoo'] = None; import runpy; sys.argv = sys.argv[1:]; "
    run = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')", str(READER)]
    done = subprocess.run([*run, str(tmp_path / "net.npz")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("4 layers, 3 steps: all traces reproduced; classes [")


def test_a_reader_that_counts_otherwise_is_noticed(tmp_path):
    net = snnzoo.convert(few_layers(), IMAGES, "rate", time_steps=3)
    write_integer(net, tmp_path / "net.npz", 3, SHAPE, traced=IMAGES)
    with np.load(tmp_path / "net.npz") as file:
        arrays = dict(file)
    key = next(key for key in arrays if key.endswith(".weight"))
    arrays[key] = arrays[key][::-1]
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(AssertionError):
        assert_reader_reproduces(tmp_path / "changed.npz")


def test_what_integers_cannot_express_is_named():
    net = snnzoo.convert(few_layers(), IMAGES, "differential", time_steps=2)
    with pytest.raises(
        UsageError, match="integers are for networks of rate, plain, signed or delta coding, not for diff"
    ):
        to_integers(net, SHAPE, 2)
    torch.manual_seed(0)
    net = snnzoo.convert(Pyramid(), IMAGES, "rate", time_steps=2)
    with pytest.raises(
        SnnzooError, match="is upsample, which --format integer cannot express: export with --format onnx"
    ):
        to_integers(net, SHAPE, 2)


def test_neurons_with_a_gamma_of_their_own_are_refused():
    net = snnzoo.convert(few_layers(), IMAGES, Recipe(Delta(31, 0.4), own_gammas=True), 3)
    with pytest.raises(UsageError, match="integers are for one gamma in all neurons"):
        to_integers(net, SHAPE, 3)


def test_more_steps_than_64_bits_have_room_for_are_refused(tmp_path):
    net = snnzoo.convert(few_layers(), IMAGES, "delta", time_steps=2, gamma=0.3)
    with pytest.raises(SnnzooError, match=r"T=40 leaves the 64 bits of --format integer: give -T \d+ or fewer"):
        write_integer(net, tmp_path / "net.npz", 40, SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_halves_are_rounded_up():
    assert rounded(torch.tensor([-3, -2, -1, 1, 2, 3]), 1).tolist() == [-1, -1, 0, 1, 1, 2]
    assert rounded(torch.tensor([5, -5]), 0).tolist() == [5, -5]
