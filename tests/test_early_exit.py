"""Early exit: what a batch gives image by image is what each image gives alone, whoever else leaves when."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snnzoo
from helpers import Pyramid, make_mlp, shake_batch_norm
from snnzoo import codings, prepare_for_inference
from snnzoo.conversion import capture_ann
from snnzoo.conversion.neurons import install
from snnzoo.early_exit import MEASURES, NEVER, ExitRule, certainty, gap
from snnzoo.evaluation.activity import ActivityMeter
from snnzoo.graph.shapes import site_channels
from snnzoo.inference import ahead

STEPS = 5


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def images(*shape):
    return torch.randn(*shape, generator=generator(), dtype=torch.float64)


def with_random_neurons(net, coding, shape):
    """The network with neurons whose thresholds and biases are drawn at random."""
    ann = capture_ann(net.double().eval(), torch.zeros(1, *shape, dtype=torch.float64))
    parameters = {
        site: {
            "v_threshold": torch.rand(channels, generator=generator(3), dtype=torch.float64) + 0.1,
            "bias": torch.randn(channels, generator=generator(4), dtype=torch.float64) * 0.1,
        }
        for site, channels in site_channels(ann.graph, ann.tensors(), list(shape), "net").items()
    }
    return install(ann, codings.CODINGS[coding](), parameters, extrapolation=0.3 if coding == "delta" else 0.0)


@functools.cache
def resnet(coding, size=16):
    torch.manual_seed(0)
    net = snnzoo.create_model("resnet20", neuron=nn.ReLU, num_classes=5)
    return with_random_neurons(shake_batch_norm(net), coding, (3, size, size))


def trained():
    torch.manual_seed(0)
    return shake_batch_norm(snnzoo.create_model("resnet20", neuron="if", num_classes=5)).double().eval()


def rule_for(logits, measure="gap", staying=None):
    """One by which about half of the images that are left leave at each step."""
    time_steps, _, classes = logits.shape
    shift = torch.randn(time_steps - 1, classes, generator=generator(), dtype=torch.float64) / 10
    onward = tuple(torch.rand(time_steps - 1, generator=generator(), dtype=torch.float64).tolist())
    blank = ExitRule(measure, (NEVER,) * (time_steps - 1), shift, onward)
    thresholds, left = [], torch.ones(logits.shape[1], dtype=torch.bool)
    for t in range(time_steps - 1):
        sure = MEASURES[measure](blank.readout(logits, t))
        ordered = sure[left].sort().values
        middle = len(ordered) // 2  # a threshold lies between two images: rounding decides nothing
        thresholds.append(ordered[middle - 1 : middle + 1].mean().item() if middle else NEVER)
        left &= sure <= thresholds[-1]
    return ExitRule(measure, tuple(thresholds), shift, onward, staying)


def readouts(fast, x_seq):
    """After each step: of a trained network, the mean of its logits."""
    logits = fast(x_seq)
    if fast.network.coding is None:
        logits = logits.cumsum(0) / torch.arange(1, 1 + len(logits)).view(-1, 1, 1)
    return logits


def assert_leaves_as_alone(fast, samples, x_seq, measure="gap"):
    rule = rule_for(readouts(fast, x_seq), measure)
    want, want_steps = rule.apply(readouts(fast, x_seq))
    assert len(set(want_steps.tolist())) > 2  # some leave early, some late
    logits, steps = fast.until_sure(samples, rule)
    assert torch.equal(steps, want_steps)
    assert torch.equal(logits.argmax(1), want.argmax(1))
    torch.testing.assert_close(logits, want, rtol=1e-9, atol=1e-9)
    is_static = x_seq.stride(0) == 0
    for i in range(x_seq.shape[1]):
        one = samples[i : i + 1] if is_static else samples[:, i : i + 1]
        alone, alone_steps = fast.until_sure(one, rule)
        assert alone_steps.item() == steps[i]
        assert alone.argmax() == logits[i].argmax()


@pytest.mark.parametrize("coding", list(codings.CODINGS))
def test_every_coding_leaves_as_each_image_alone(coding):
    fast, x = prepare_for_inference(resnet(coding)), images(12, 3, 16, 16)
    assert_leaves_as_alone(fast, x, x.expand(STEPS, *x.shape))


@pytest.mark.parametrize("measure", list(MEASURES))
def test_frames_leave_as_each_sequence_alone(measure):
    fast, x_seq = prepare_for_inference(resnet("delta")), images(STEPS, 12, 3, 16, 16)
    assert_leaves_as_alone(fast, x_seq, x_seq, measure)


@pytest.mark.parametrize("coding", ["delta", "rate"])
@pytest.mark.parametrize(("make", "size"), [(Pyramid, 16), (make_mlp, 8)], ids=["joins", "layers"])
def test_networks_of_other_operations_leave_as_each_image_alone(make, size, coding):
    torch.manual_seed(0)
    fast, x = prepare_for_inference(with_random_neurons(make(), coding, (3, size, size))), images(12, 3, size, size)
    assert_leaves_as_alone(fast, x, x.expand(STEPS, *x.shape))


def test_a_pool_that_keeps_sums_leaves_as_each_image_alone():
    """Its sums and changes are states, too: they have to leave with the image."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(200, 5),
    )
    network = with_random_neurons(net, "delta", (3, 16, 16))
    assert len(network._sums) > 0
    fast, x = prepare_for_inference(network), images(12, 3, 16, 16)
    assert_leaves_as_alone(fast, x, x.expand(STEPS, *x.shape))


def test_a_trained_network_leaves_by_the_mean_of_its_logits():
    fast, x = prepare_for_inference(trained()), images(12, 3, 16, 16)
    assert_leaves_as_alone(fast, x, x.expand(STEPS, *x.shape))


@pytest.mark.parametrize("batch", [1, 3, 7, 24])
def test_the_batch_size_changes_nothing(batch):
    fast, x = prepare_for_inference(resnet("delta")), images(24, 3, 16, 16)
    rule = rule_for(fast(x.expand(STEPS, *x.shape)))
    logits, steps = fast.until_sure(x, rule)
    parts = [fast.until_sure(part, rule) for part in x.split(batch)]
    assert torch.equal(torch.cat([part[1] for part in parts]), steps)
    assert torch.equal(torch.cat([part[0] for part in parts]).argmax(1), logits.argmax(1))


def test_integer_weights_leave_as_each_image_alone():
    fast = prepare_for_inference(copy.deepcopy(resnet("delta")).float(), dtype=torch.int8)
    x = images(12, 3, 16, 16).float()
    rule = rule_for(fast(x.expand(STEPS, *x.shape)))
    logits, steps = fast.until_sure(x, rule)
    want, want_steps = rule.apply(fast(x.expand(STEPS, *x.shape)))
    assert torch.equal(steps, want_steps)
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)


def test_only_images_that_are_left_are_run():
    """The time is really saved: each node sees no more images than have not left, and the stem runs once."""
    fast, x = prepare_for_inference(resnet("delta")), images(16, 3, 16, 16)
    rule = rule_for(fast(x.expand(STEPS, *x.shape)))
    seen = {}
    _, steps = fast.until_sure(
        x, rule, lambda node, inputs, value: seen.setdefault(node.name, []).append(value.shape[1])
    )
    running = [int((steps > t).sum()) for t in range(int(steps.max()))]
    graph = fast.network.graph
    assert running[0] == 16 > running[-1]
    for node in graph:
        assert seen[node.name] == ([16] if node.name in graph.before_neurons else running), node.name


@pytest.mark.parametrize("has_frames", [False, True])
def test_steps_between_which_no_image_may_leave_run_together(has_frames):
    """Layer by layer, in runs that are not too long; and all is as if they had run one by one."""
    fast, x, time_steps, runs = prepare_for_inference(resnet("delta")), images(8, 3, 16, 16), 14, []
    samples = images(time_steps, 8, 3, 16, 16) if has_frames else x
    x_seq = samples if has_frames else x.expand(time_steps, *x.shape)
    logits = fast(x_seq)
    middles = [(best[3] + best[4]) / 2 for best in gap(logits).sort().values.tolist()]
    rule = ExitRule("gap", tuple(middles[t] if t in (2, 3) else NEVER for t in range(time_steps - 1)))
    assert rule.exits == [2, 3, 13]

    def watch(node, inputs, value):
        if node is fast.network.sites[-1]:
            runs.append(len(value))

    answers, steps = fast.until_sure(samples, rule, watch)
    assert runs == [3, 1, 8, 2]
    want, want_steps = rule.apply(logits)
    assert torch.equal(steps, want_steps)
    assert {3, 14} <= set(steps.tolist())
    torch.testing.assert_close(answers, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("has_frames", [False, True])
@pytest.mark.parametrize("coding", ["delta", "rate", None])
def test_steps_that_are_taken_ahead_change_nothing(coding, has_frames, monkeypatch):
    """An image that is sure after one of several steps leaves with what is read out there."""
    network = trained() if coding is None else resnet(coding)
    fast, x = prepare_for_inference(network), images(12, 3, 16, 16)
    samples = images(STEPS, 12, 3, 16, 16) if has_frames else x
    x_seq = samples if has_frames else x.expand(STEPS, *x.shape)
    rule = rule_for(readouts(fast, x_seq), staying=(0.5, 0.3, 0.2, 0.1))
    lengths, run = [], fast.network.run
    monkeypatch.setattr(fast.network, "run", lambda x_seq, *rest: lengths.append(len(x_seq)) or run(x_seq, *rest))
    for launch, expected in ((0.0, [1] * STEPS), (1e12, [STEPS]), (3.0, None)):
        lengths.clear()
        fast.__dict__["_cost"] = ahead.Cost(launch, 0.0, 1.0)
        logits, steps = fast.until_sure(samples, rule)
        want, want_steps = rule.apply(readouts(fast, x_seq))
        assert len(set(steps.tolist())) > 2
        assert torch.equal(steps, want_steps)
        torch.testing.assert_close(logits, want, rtol=1e-9, atol=1e-9)
        assert expected is None or lengths[: len(expected)] == expected[: int(steps.max())]


def test_no_step_is_taken_ahead_of_who_watches():
    """What is counted is what an image needs."""
    fast, x = prepare_for_inference(resnet("delta")), images(12, 3, 16, 16)
    rule = rule_for(fast(x.expand(STEPS, *x.shape)), staying=(0.9,) * (STEPS - 1))
    meter = ActivityMeter(fast.network)
    with meter:
        _, steps = fast.until_sure(x, rule, meter.watch)
    exact = dataclasses.replace(rule, staying=None)
    other = ActivityMeter(fast.network)
    with other:
        fast.until_sure(x, exact, other.watch)
    assert len(set(steps.tolist())) > 2
    assert meter.activity == other.activity


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 64),
    st.tuples(*[st.floats(0, 100)] * 3),
)
@settings(deadline=None)
def test_the_cheapest_runs_cost_no_more_than_any_others(shares, at_once, count, costs):
    cost = ahead.Cost(*costs)
    rule = ExitRule("gap", (0.5,) * len(shares), staying=tuple(sorted(shares, reverse=True)))

    def price(runs):
        total = 0.0
        for run in runs:
            left = count * (1.0, *rule.staying)[run[0]]
            total += min(1.0, left) * cost.run + left * (cost.image + len(run) * cost.step)
        return total

    def all_runs(start):
        if start == rule.time_steps:
            yield []
        for stop in range(start + 1, min(start + at_once, rule.time_steps) + 1):
            yield from ([range(start, stop), *rest] for rest in all_runs(stop))

    runs = list(ahead.cheapest(rule, at_once, count, cost))
    assert [t for run in runs for t in run] == list(range(rule.time_steps))
    assert max(map(len, runs)) <= at_once
    assert price(runs) == pytest.approx(min(map(price, all_runs(0))))


def test_a_run_costs_what_its_layers_and_its_images_do():
    small, large = (prepare_for_inference(resnet("delta", size))._cost for size in (16, 32))
    assert large.run == small.run
    assert large.image == pytest.approx(4 * small.image)
    assert 4 * small.step < large.step < 5 * small.step  # borders count for less


def test_no_image_leaves_a_rule_that_never_lets_it_and_all_leave_one_that_always_does():
    fast, x = prepare_for_inference(resnet("delta")), images(6, 3, 16, 16)
    logits = fast(x.expand(3, *x.shape))
    for threshold, step in ((NEVER, 3), (0.0, 1)):
        answer, steps = fast.until_sure(x, ExitRule("gap", (threshold,) * 2))
        assert steps.tolist() == [step] * 6
        torch.testing.assert_close(answer, logits[step - 1])


def test_each_call_starts_anew_and_leaves_no_state():
    fast, x = prepare_for_inference(resnet("delta")), images(8, 3, 16, 16)
    rule = rule_for(fast(x.expand(STEPS, *x.shape)))
    first, all_steps = fast.until_sure(x, rule), fast(x[:3].expand(STEPS, 3, 3, 16, 16))
    assert torch.equal(fast.until_sure(x, rule)[0], first[0])
    assert torch.equal(fast(x[:3].expand(STEPS, 3, 3, 16, 16)), all_steps)
    assert all(neuron.state is None for neuron in fast._neurons)


def test_an_input_of_another_shape_or_length_is_an_error():
    fast, rule = prepare_for_inference(resnet("delta")), ExitRule("gap", (0.5, 0.5))
    for shape in ((4, 2, 3, 16, 16), (3,)):
        with pytest.raises(ValueError, match="rule's T=3"):
            fast.until_sure(images(*shape), rule)


def test_events_of_images_that_left_are_not_counted():
    fast, x = prepare_for_inference(resnet("delta")), images(12, 3, 16, 16)
    rule = rule_for(fast(x.expand(STEPS, *x.shape)))
    together, alone = (ActivityMeter(fast.network) for _ in range(2))
    with together:
        _, steps = fast.until_sure(x, rule, together.watch)
    for one in x.split(1):
        with alone:
            fast.until_sure(one, rule, alone.watch)
    assert len(set(steps.tolist())) > 2
    assert together.activity == alone.activity
    assert together.activity.images == 12


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8))
@settings(deadline=None)
def test_measures_are_from_0_to_1_and_know_the_extremes(values):
    logits = torch.tensor([values], dtype=torch.float64)
    for measure in MEASURES.values():
        assert -1e-12 <= measure(logits).item() <= NEVER
        assert measure(torch.zeros_like(logits)).item() == pytest.approx(0, abs=1e-12)


def test_measures_equal_their_definitions():
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    p = [math.exp(x) for x in (2.0, 1.0, -1.0)]
    p = [x / sum(p) for x in p]
    assert gap(logits).item() == pytest.approx(p[0] - p[1])
    assert certainty(logits).item() == pytest.approx(1 + sum(x * math.log(x) for x in p) / math.log(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("margin", (0.5,)), "measure must be one of gap, entropy"),
        (("gap", (1.5,)), "thresholds must be from 0 to 1"),
        (("gap", (math.nan,)), "thresholds must be from 0 to 1"),
        (("gap", (0.5,), torch.ones(2, 3)), "shift is of 2 steps"),
        (("gap", (0.5,), None, (1.0, 1.0)), "onward is of 2 steps"),
        (("gap", (0.5,), None, None, (0.5, 0.1)), "staying is of 2 steps"),
        (("gap", (0.5,), None, None, (1.5,)), "shares of images that stay must be from 0 to 1"),
    ],
)
def test_a_rule_that_cannot_be_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExitRule(*arguments)
