"""The earliest answers: neurons that settle early, and images that leave sooner because of them."""

import pytest
import torch
from test_fewest import small

import snnzoo
from snnzoo.conversion import exits
from snnzoo.conversion.ann import capture_ann
from snnzoo.conversion.calibration import Calibrator
from snnzoo.conversion.earliest import Earliest
from snnzoo.conversion.recipes import make_recipe
from snnzoo.errors import UsageError

IMAGES = torch.rand(160, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def settling_at(steps, images=400, classes=4):
    """Logits `[6, N, classes]` that are the last ones from some step on, and before of other classes."""
    last = torch.rand(images, classes, generator=torch.Generator().manual_seed(0))
    last += 5 * torch.eye(classes)[torch.arange(images) % classes]
    return torch.stack([last if t + 1 >= steps else last.roll(1, 1) for t in range(6)])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_earliest_steps_are_those_after_which_classes_stay(steps):
    logits = settling_at(steps)
    mean_steps, agreement = exits.earliest_steps(logits, logits[-1].argmax(1))
    assert mean_steps == pytest.approx(steps, abs=0.1)
    assert agreement == 100


def test_images_whose_last_class_is_not_the_anns_take_all_steps():
    logits = settling_at(1)
    classes = logits[-1].argmax(1)
    classes[:40] = (classes[:40] + 1) % 4
    mean_steps, agreement = exits.earliest_steps(logits, classes)
    assert mean_steps == pytest.approx(0.9 * 1 + 0.1 * 6)
    assert agreement == pytest.approx(90)


def test_a_class_that_comes_and_goes_is_not_had_for_good():
    logits = settling_at(1)
    logits[2:4] = logits[2:4].roll(1, 2)
    mean_steps, _ = exits.earliest_steps(logits, logits[-1].argmax(1))
    assert mean_steps == pytest.approx(5, abs=0.1)


def test_neurons_are_fitted_to_what_they_have_sent_when_they_settle():
    """The first neuron of a network for four steps, settling in two, is that of a network for two steps."""
    images = IMAGES[:8]
    recipe = make_recipe("delta", levels=1, gamma=0.5)
    calibrator = Calibrator(capture_ann(small(), images), recipe.coding, batch_size=8, seed=0)

    def threshold(fit, time_steps):
        return calibrator.run(images, recipe.coding, fit, time_steps).parameters["1"]["v_threshold"]

    settling = threshold(Earliest(recipe, recipe.coding, settled=2).fit, 4)
    torch.testing.assert_close(settling, threshold(recipe.fit, 2))
    assert not torch.allclose(settling, threshold(recipe.fit, 4))


@pytest.mark.parametrize(("recipe", "options"), [("delta", {"levels": 1}), ("signed", {})])
def test_the_record_says_when_neurons_settle_and_what_that_gives(recipe, options):
    net = snnzoo.convert(
        small(), IMAGES, recipe, 8, check_fit=False, minimise="steps", tolerance=60.0, exit_images=IMAGES, **options
    )
    record = net.conversion.recipe
    assert record["minimise"] == "steps"
    assert record["earliest"]["settled"] in (2, 3, 4, 6, 8)
    assert record["earliest"]["within"]
    assert 1 <= record["earliest"]["mean_steps"] < 8
    assert record["earliest"]["held_back"] == 96
    assert net.conversion.time_steps == 8
    assert len(net.conversion.exits.rules[0].thresholds) == 7


def test_a_gamma_that_was_given_is_kept():
    net = snnzoo.convert(small(), IMAGES, "delta", 4, levels=1, gamma=0.35, minimise="steps", check_fit=False)
    assert net.coding.gamma == 0.35


@pytest.mark.parametrize(("images", "time_steps", "message"), [
    (None, 4, "give calibration images"), (IMAGES[:64], 4, "at least 65"), (IMAGES, 1, "more than one time step"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused(images, time_steps, message):
    with pytest.raises(UsageError, match=message):
        snnzoo.convert(small(), images, "delta", time_steps, minimise="steps", check_fit=False)


def test_a_file_keeps_the_record(tmp_path):
    net = snnzoo.convert(small(), IMAGES, "delta", 4, levels=1, gamma=0.6, minimise="steps", check_fit=False)
    snnzoo.save(net, tmp_path / "net.safetensors")
    assert snnzoo.load(tmp_path / "net.safetensors").conversion.recipe["earliest"] == net.conversion.recipe["earliest"]
