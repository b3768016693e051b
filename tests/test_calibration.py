"""The calibration walk: what it waits for, and what it says of how far it is."""

import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings
from snnzoo.conversion import calibration, capture_ann
from snnzoo.conversion.recipes import make_recipe

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}


class Waits(TorchDispatchMode):
    """Counts operations whose result a GPU's host would have to wait for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        masks = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def ann():
    torch.manual_seed(0)
    source = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", num_classes=4))
    return capture_ann(source.eval(), torch.zeros(2, 3, 16, 16))


def test_the_instrument_sees_what_a_host_waits_for():
    x = torch.arange(4.0)
    with Waits() as waits:
        x.sum().item()
        bool((x > 1).any())
        x[x > 1]
        x[torch.tensor([1, 2])]
    assert len(waits.seen) == 3 + ("nonzero" in waits.seen)


@pytest.mark.parametrize(("name", "options", "time_steps"), [
    ("delta", {"levels": 3, "gamma": 0.5}, 4),
    ("rate", {}, 8),
    ("rate", {"threshold": "percentile"}, 4),
    ("rate", {"threshold": "balanced"}, 4),
    ("differential", {}, 2),
])  # fmt: skip
def test_nothing_in_the_walk_waits_for_a_value(ann, name, options, time_steps):
    recipe = make_recipe(name, **options)
    calibrator = calibration.Calibrator(ann, recipe.coding, batch_size=4, seed=0)
    images = torch.randn(8, 3, 16, 16)
    with Waits() as waits:
        found = calibrator.run(images, recipe.coding, recipe.fit, time_steps, percentile=recipe.site_percentile)
    assert waits.seen == []
    assert len(found.layers) == 19


def test_images_that_join_late_reach_the_end_too_and_the_cost_adds_up_to_what_was_foretold(ann, monkeypatch):
    images = torch.randn(6, 3, 16, 16)
    recipe = make_recipe("rate", threshold="max", bias_correction=False)
    calibrator = calibration.Calibrator(ann, recipe.coding, batch_size=3, seed=0)
    monkeypatch.setattr(calibration, "FEWEST_IMAGES", 1)
    runs = []
    for kept in (calibration.KEPT_BYTES, 300_000):  # all at once; few at the front
        monkeypatch.setattr(calibration, "KEPT_BYTES", kept)
        costs = []
        found = calibrator.run(images, recipe.coding, recipe.fit, 4, report=lambda cost, where: costs.append(cost))  # noqa: B023
        assert sum(costs) == pytest.approx(calibrator.cost(6, 4))
        runs.append((found, len(costs)))
    (all_at_once, steps), (late, more_steps) = runs
    assert more_steps > steps
    torch.testing.assert_close(late.expected, all_at_once.expected)
    torch.testing.assert_close(ann(images), late.expected, atol=1e-3, rtol=1e-3)
    assert late.actual.shape == (4, 6, 4)


def test_several_thresholds_at_a_time_have_the_errors_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    x_seq = torch.randn(4, 50, 3, generator=generator, dtype=torch.float64).cumsum(0)
    slopes = codings.activations.LeakyReLU((0.1, 0.2, 0.3))
    for activation in (codings.RELU, slopes):
        target = activation(x_seq[-1])
        site = calibration.Site("a", codings.Delta(3, 0.5), activation, x_seq, target, target.amax(0), target.amax(0))
        thetas = torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.1
        expected = torch.stack([site.residual(theta).square().mean(0) for theta in thetas])
        torch.testing.assert_close(site.errors(thetas), expected)


@pytest.mark.slow
def test_the_bar_tells_the_time_left_within_thirty_percent_from_a_tenth_on():
    torch.manual_seed(0)
    ann = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s").eval()
    images = torch.randn(512, 3, 32, 32)
    seen = []
    snnzoo.convert(ann, images[:64], time_steps=4, levels=7)  # warm
    snnzoo.convert(
        ann,
        images,
        time_steps=4,
        levels=7,
        progress=lambda done, total, _: seen.append((done / total, time.perf_counter())),
    )
    end = time.perf_counter()
    (first, start), *later = seen  # there a bar begins
    told = [(end - now, (now - start) / (done - first) * (1 - done)) for done, now in later if 0.1 <= done <= 0.9]
    assert len(told) > 20
    assert all(abs(said - left) <= 0.3 * left for left, said in told)
