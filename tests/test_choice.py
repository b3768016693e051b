"""Choosing time steps and levels for the user."""

import copy
import types

import pytest
import torch
import torchvision
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings, functional
from snnzoo.conversion import capture_ann, choice, recipes
from snnzoo.errors import UsageError
from snnzoo.models.factory import build_ann


@pytest.fixture(scope="module")
def ann():
    torch.manual_seed(0)
    return build_ann("resnet20", snnzoo.create_model("resnet20").state_dict(), "random")


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    return torch.randn(12, 3, 16, 16)


def choose_among(ann, images, monkeypatch, agreements, tolerance=0.5):
    """`choose`, where the candidate (T, K) agrees on so many of the held-back images."""
    own = capture_ann(ann, images)

    class Fast:
        def __init__(self, net):
            self.levels = net.coding.levels

        def final(self, x_seq):
            assert torch.equal(x_seq[0], images[6:])
            logits = own(x_seq[0])
            right = round(len(logits) * agreements.get((len(x_seq), self.levels), 0))
            return torch.cat([logits[:right], -logits[right:]])

    monkeypatch.setattr(choice, "prepare_for_inference", Fast)
    return choice.choose(own, images, tolerance)


def test_the_fewest_steps_win_and_then_the_smallest_levels(ann, images, monkeypatch):
    found = choose_among(ann, images, monkeypatch, {(2, 7): 1, (2, 3): 1, (4, 7): 1, (4, 1): 1})
    assert (found.time_steps, found.recipe.coding.levels, found.within) == (2, 3, True)
    assert [(c.time_steps, c.levels) for c in found.candidates] == [(1, 7), (2, 7), (2, 1), (2, 3)]


def test_the_largest_levels_are_kept_where_no_fewer_do(ann, images, monkeypatch):
    found = choose_among(ann, images, monkeypatch, {(4, 7): 1})
    assert (found.time_steps, found.recipe.coding.levels) == (4, 7)


def test_tolerance_is_in_percentage_points_of_agreement(ann, images, monkeypatch):
    assert choose_among(ann, images, monkeypatch, {(1, 7): 5 / 6, (2, 7): 1}, tolerance=16).time_steps == 2
    assert choose_among(ann, images, monkeypatch, {(1, 7): 5 / 6, (2, 7): 1}, tolerance=17).time_steps == 1


def test_the_closest_is_taken_and_marked_where_none_is_within_the_tolerance(ann, images, monkeypatch):
    found = choose_among(ann, images, monkeypatch, {(4, 7): 1 / 2, (8, 7): 5 / 6, (16, 7): 2 / 3})
    assert (found.time_steps, found.recipe.coding.levels, found.within) == (8, 7, False)
    assert [c.time_steps for c in found.candidates] == list(choice.TIME_STEPS)


def test_a_candidate_is_judged_until_it_fails_and_one_that_passes_on_all(ann, images, monkeypatch):
    monkeypatch.setattr(choice, "JUDGED_AT_A_TIME", 1)
    own, seen = capture_ann(ann, images), []

    class Fast:
        wrong: tuple[int, ...]

        def __init__(self, net):
            pass

        def final(self, x_seq):
            seen.append(x_seq)
            return own(x_seq[0]) * (-1 if len(seen) in self.wrong else 1)

    monkeypatch.setattr(choice, "prepare_for_inference", Fast)
    for tolerance, wrong, agreement, images_seen in ((20, (2,), 5 / 6, 6), (20, (2, 4), 2 / 4, 4), (0, (1,), 0, 1)):
        seen.clear()
        Fast.wrong = wrong
        judge = choice.Judge(own, images[6:], tolerance, 64)
        assert judge.agreement(types.SimpleNamespace(coding=codings.Delta()), 2)[0] == pytest.approx(100 * agreement)
        assert len(seen) == images_seen


def test_measured_agreement_and_events_are_those_of_the_candidates(ann, images):
    found = choice.choose(ann, images, 0)
    assert found.within
    assert found.chosen.agreement == 100
    assert 0 < found.chosen.events <= found.time_steps


def test_the_extrapolation_is_how_often_the_last_change_is_still_lacking():
    logits = torch.randn(3, 8, 10, dtype=torch.float64)
    expected = logits[-1] + 0.4 * (logits[-1] - logits[-2])
    extrapolation, error = recipes.fit_extrapolation(codings.Delta(), expected, logits)
    assert extrapolation == 0.4
    assert error == pytest.approx(0, abs=1e-6)


def test_an_extrapolation_never_goes_back_nor_beyond_its_limit():
    logits = torch.randn(3, 8, 10)
    change = logits[-1] - logits[-2]
    assert recipes.fit_extrapolation(codings.Delta(), logits[-1] - change, logits)[0] == 0
    limit = recipes.MOST_EXTRAPOLATION
    assert recipes.fit_extrapolation(codings.Delta(), logits[-1] + 9 * change, logits)[0] == limit


def test_there_is_no_extrapolation_of_one_step_nor_of_other_codings():
    logits = torch.randn(2, 8, 10)
    assert recipes.fit_extrapolation(codings.Delta(), logits[1], logits[:1])[0] == 0
    extrapolation, error = recipes.fit_extrapolation(codings.Rate(), logits[0], logits)
    assert extrapolation == 0
    assert error == pytest.approx((logits[0] - logits[1]).square().mean().item())


@given(errors=st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True), data=st.data())
def test_descending_ends_in_the_minimum_of_what_falls_and_rises_from_any_start(errors, data):
    fall = data.draw(st.integers(0, len(errors)))
    valley = sorted(errors[:fall], reverse=True) + sorted(errors[fall:])
    assume(sum(a > b < c for a, b, c in zip([51, *valley], valley, [*valley[1:], 51], strict=False)) == 1)
    candidates = [codings.Delta(levels=1 + i) for i in range(len(valley))]
    tried = []

    def error(coding):
        tried.append(coding)
        return valley[coding.levels - 1]

    found = recipes.descend(candidates, data.draw(st.sampled_from([*candidates, codings.Rate()])), error)
    assert valley[found.levels - 1] == min(valley)
    assert len(tried) == len(set(tried))


def test_the_fitted_extrapolation_brings_a_converted_network_closer_to_its_ann():
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", num_classes=5)).eval()
    images = torch.randn(32, 3, 16, 16)
    net = snnzoo.convert(ann, images, levels=1, gamma=0.7, time_steps=4)
    assert 0 < net.conversion.extrapolation <= recipes.MOST_EXTRAPOLATION
    assert net.extrapolation == net.conversion.extrapolation
    with torch.inference_mode():
        expected, x_seq = ann(images), images.expand(4, *images.shape)  # those that it was fitted to
        leading = net(x_seq)[-1]
        functional.reset_net(net)
        net._decode.extrapolation = 0.0
        plain = net(x_seq)[-1]
    assert (leading - expected).square().mean() < (plain - expected).square().mean()


def test_python_chooses_with_recipe_auto_and_records_it(images):
    torch.manual_seed(0)
    ann = torchvision.models.resnet18(num_classes=4)
    before = copy.deepcopy(ann.state_dict())
    net = snnzoo.convert(ann, images, "auto", tolerance=50)
    record = net.conversion.recipe["choice"]
    assert record["tolerance"] == 50
    assert net.conversion.time_steps == record["chosen"]["time_steps"]
    assert net.conversion.coding.levels == record["chosen"]["levels"]
    assert all(torch.equal(before[key], value) for key, value in ann.state_dict().items())


def test_choosing_needs_images_and_nothing_else_said(ann, images):
    for arguments in ({"images": None}, {"images": images, "time_steps": 4}, {"images": images, "levels": 3}):
        with pytest.raises(UsageError, match="takes images and a tolerance"):
            snnzoo.convert(ann, recipe="auto", **arguments)
    with pytest.raises(UsageError, match="at least 2 calibration images"):
        choice.choose(ann, images[:1])
    for tolerance in (-1, 100):
        with pytest.raises(UsageError, match=r"percentage points in \[0, 100\)"):
            choice.choose(ann, images, tolerance)
