"""The fewest events: what errors and events cost, what is chosen for them, and that it is what was asked for."""

import math

import pytest
import torch
from torch import nn

import snnzoo
from snnzoo import ops
from snnzoo.conversion import fewest
from snnzoo.conversion.ann import capture_ann
from snnzoo.conversion.calibration import Site
from snnzoo.conversion.operations import Operations
from snnzoo.conversion.recipes import make_recipe
from snnzoo.errors import UsageError

IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small(classes=4):
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, classes)).eval()


def test_squared_slopes_are_those_of_the_jacobian(monkeypatch):
    """Of the last activations, which reach the logits through an average and one layer, they are known."""
    monkeypatch.setattr(fewest, "DIRECTIONS", 200)
    ann = small()
    slopes, spread = fewest.squared_slopes(capture_ann(ann, IMAGES), IMAGES, seed=1)
    weight = ann[6].weight.detach()
    positions = 3 * 3
    expected = (weight - weight.mean(0)).square().sum(0) / positions  # (w / positions)^2, at each of them
    torch.testing.assert_close(slopes["3"], expected, rtol=0.1, atol=0)  # a mean over 4800 random directions
    logits = ann(IMAGES).detach()
    assert spread == pytest.approx((logits - logits.mean(1, keepdim=True)).square().sum(1).mean().item(), rel=1e-4)


def test_slopes_of_one_output_are_its_own():
    slopes, spread = fewest.squared_slopes(capture_ann(small(1), IMAGES), IMAGES)
    assert spread > 0
    assert all((slope > 0).any() for slope in slopes.values())


def test_operations_are_known_before_anything_runs():
    """The first layer sees the image, the last what is read out: of events there are those of the second."""
    operations = Operations.of(capture_ann(small(), IMAGES))
    second = 3 * 3 * 8 * 6 * 9  # outputs, inputs, kernel
    first = 6 * 3 * (3 * 8 - 2) ** 2  # padding is not counted
    assert operations.dense == first + second + 8 * 4
    assert operations.analog == first + 8 * 4
    assert operations.sites == {"1": pytest.approx(second), "3": 0}
    assert operations.neurons == {"1": 64, "3": 9}


def test_a_dearer_event_is_sent_less_often():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(200, 3, generator=generator)
    recipe = make_recipe("delta", levels=1, gamma=0.7)
    site = Site("a", recipe.coding, nn_relu(), target.expand(6, -1, -1), target, target.amax(0), target.amax(0))
    prices = fewest.Prices({"a": torch.ones(3)}, {"a": 1.0}, 1.0)
    events = []
    for multiplier in (0.0, 1e-3, 1e-2, 1e-1, 10.0):
        theta = prices.threshold(site, multiplier)
        events.append(site.errors_and_events(theta.unsqueeze(0))[1].sum().item())
    assert events == sorted(events, reverse=True)
    assert events[-1] < events[0] / 2


def test_neurons_are_the_deeper_the_more_are_before_them_on_any_way():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))

        def forward(self, x):
            first = self.convs[0](x).relu()
            longer = self.convs[2](self.convs[1](first).relu())
            return self.convs[3]((first + longer).relu()).relu().mean((2, 3))

    graph = capture_ann(Residual().eval(), IMAGES).graph
    assert list(fewest.depths_of(graph).values()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    alone = capture_ann(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), IMAGES).graph
    assert list(fewest.depths_of(alone).values()) == [0]


def test_a_delayed_neuron_sends_nothing_until_its_turn():
    """The widest threshold that is tried, 8 times the largest activation, is theirs from the delay on."""
    recipe = make_recipe("delta", levels=1, gamma=0.5)
    settings = fewest.Settings(recipe.coding, delay=4)
    assert [settings.later(depth) for depth in (0, 0.5, 1)] == [1, 4, 16]
    assert fewest.Settings(make_recipe("signed").coding, delay=4).later(1) == 1  # it knows no gamma
    target = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    site = Site("a", recipe.coding, nn_relu(), target.expand(10, -1, -1), target, target.amax(0), target.amax(0))
    prices = fewest.Prices({"a": torch.ones(3)}, {"a": 1.0}, 1.0)
    for depth, first in ((0, 0), (1, 2)):  # 0.19 times the largest times 2^4 is more than 2 of its steps too wide
        theta = prices.threshold(site, 1e-4, settings.later(depth))
        result = ops.multi_step_neuron(site.x_seq, recipe.coding, v_threshold=theta, absolute=True)
        assert result.sequence[:first].count_nonzero() == 0
        assert result.sequence[first:].count_nonzero() > 0


def nn_relu():
    from snnzoo.codings import RELU

    return RELU


def test_errors_and_events_are_those_of_running_the_neuron():
    target = torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
    coding = make_recipe("delta", levels=3, gamma=0.5, dead_zone=0.7).coding
    site = Site("a", coding, nn_relu(), target.expand(4, -1, -1), target, target.amax(0), target.amax(0))
    thetas = torch.tensor([[0.2, 0.1], [0.4, 0.3]])
    errors, events = site.errors_and_events(thetas)
    torch.testing.assert_close(errors, site.errors(thetas))
    for theta, error, event in zip(thetas, errors, events, strict=True):
        _, relative, share = site.measure(site.parameters(theta))
        assert event.mean() == pytest.approx(4 * share.item())
        assert (error.mean() / target.square().mean()).item() == pytest.approx(relative.item(), rel=1e-4)


@pytest.mark.parametrize("within", [-1, 0, 7, len(fewest.MULTIPLIERS) - 1])
def test_the_multiplier_is_the_largest_within_the_tolerance(within):
    tried = []

    def judged(trade):
        place = fewest.MULTIPLIERS.index(trade.multiplier)
        tried.append(place)
        return fewest.replace(trade, agreement=100.0 if place <= within else 50.0)

    start = fewest.Fewest(make_recipe("delta", minimise="events"), None, None, {})
    found = fewest._largest_within(start, judged)
    assert fewest.MULTIPLIERS.index(found.multiplier) == max(within, 0)
    assert found.within == (within >= 0)
    assert len(tried) <= 3 + math.log2(len(fewest.MULTIPLIERS)) + len(fewest.MULTIPLIERS) / 4


def test_fewer_events_are_sent_and_the_record_says_how_they_were_found():
    ann = small()
    options = {"levels": 1, "gamma": 0.7}
    plain = snnzoo.convert(ann, IMAGES, "delta", 6, check_fit=False, **options)
    silent = snnzoo.convert(
        ann, IMAGES, "delta", 6, check_fit=False, minimise="events", dead_zone=0.7, tolerance=60.0, **options
    )
    events = [sum(layer["events"] for layer in net.conversion.layers) for net in (plain, silent)]
    assert events[1] < events[0]
    record = silent.conversion.recipe
    assert (record["minimise"], record["tolerance"]) == ("events", 60.0)
    assert record["fewest"]["within"]
    assert record["fewest"]["held_back"] == 12
    assert silent.coding.dead_zone == 0.7  # what was given is kept
    assert "minimise" not in plain.conversion.recipe


@pytest.mark.parametrize(("options", "message"), [
    ({"minimise": "energy"}, "minimise must be events or steps"),
    ({"minimise": "events", "threshold": "max"}, "leave threshold"),
    ({"minimise": "events", "tolerance": 100}, "percentage points"), ({"tolerance": 1}, "leave it out"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_recipe("delta", **options)


def test_images_are_needed():
    with pytest.raises(UsageError, match="give calibration images"):
        snnzoo.convert(small(), None, "delta", 4, minimise="events")
    with pytest.raises(UsageError, match="at least 2"):
        snnzoo.convert(small(), IMAGES[:1], "delta", 4, minimise="events", check_fit=False)
