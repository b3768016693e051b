"""Models of energy: constants, what each counts, and the rate at which events break even."""

import dataclasses
import math

import pytest

from snnzoo import codings
from snnzoo.energy import MODELS, LayerCounts, NetworkFacts, pj_per_byte

LAYER = LayerCounts("conv", 1000, False, weights=90, inputs=64, outputs=100, operations=600.0, received=40.0)
STEM = dataclasses.replace(LAYER, name="stem", analog=True, operations=0.0, received=0.0)
FACTS = NetworkFacts(time_steps=4, event_bits=2, activation_bits=5, states=2)


def test_arithmetic_is_that_of_32_bit_floating_point():
    energy = MODELS["arithmetic"].layer(LAYER, FACTS)
    assert energy.ann == pytest.approx(4600)
    assert energy.snn == pytest.approx(600 * 2 * 0.9)
    stem = MODELS["arithmetic"].layer(STEM, FACTS)
    assert stem.ann == stem.snn == pytest.approx(4600)


def test_traffic_moves_each_number_once_a_pass():
    """360 bytes of weights, 256 of inputs and 800 of states all fit 8 KiB: 10 pJ for 8 bytes."""
    arithmetic, energy = (MODELS[name].layer(LAYER, FACTS) for name in ("arithmetic", "traffic"))
    byte = 10 / 8
    assert energy.ann - arithmetic.ann == pytest.approx((360 + 2 * 256) * byte)
    assert energy.snn - arithmetic.snn == pytest.approx((4 * 360 + 4 * 2 * 800 + 2 * 40 * 4) * byte)
    silent = dataclasses.replace(LAYER, operations=0.0, received=0.0)
    assert MODELS["traffic"].layer(silent, FACTS).snn == pytest.approx((4 * 360 + 4 * 2 * 800) * byte)
    classifier = MODELS["traffic"].layer(dataclasses.replace(STEM, fires=False), FACTS)
    assert classifier.snn == pytest.approx(classifier.ann)


def test_memories_cost_what_their_size_does():
    sizes = (1, 8 << 10, (8 << 10) + 1, 32 << 10, 1 << 20, (1 << 20) + 1)
    assert [8 * pj_per_byte(size) for size in sizes] == pytest.approx([10, 10, 20, 20, 100, 1300])


def test_bit_matched_is_an_integer_network_of_as_many_bits():
    energy = MODELS["bit-matched"].layer(LAYER, FACTS)
    assert energy.ann == pytest.approx(1000 * (0.2 * 5 / 8 + 0.1))
    assert energy.snn == pytest.approx(600 * 2 * 0.1)
    more = MODELS["bit-matched"].layer(LAYER, dataclasses.replace(FACTS, activation_bits=8))
    assert more.ann > energy.ann
    assert more.snn == energy.snn


@pytest.mark.parametrize("name", MODELS)
def test_at_the_break_even_rate_both_networks_take_the_same(name):
    model = MODELS[name]
    (verdict,) = model.verdicts([STEM, LAYER], FACTS)
    assert verdict.layer == "conv"
    assert verdict.event_rate == pytest.approx(600 / 4000)
    assert verdict.pays == (verdict.event_rate < verdict.break_even)
    scale = verdict.break_even / verdict.event_rate
    even = dataclasses.replace(LAYER, operations=600 * scale, received=40 * scale)
    energy = model.layer(even, FACTS)
    if verdict.break_even:
        assert energy.snn == pytest.approx(energy.ann)
    else:
        assert energy.fixed >= energy.ann


def test_totals_are_the_sums_of_layers():
    for model in MODELS.values():
        found = [model.layer(layer, FACTS) for layer in (STEM, LAYER)]
        ann, snn = model.totals([STEM, LAYER], FACTS)
        assert ann == pytest.approx(sum(one.ann for one in found) * 1e-6)
        assert snn == pytest.approx(sum(one.snn for one in found) * 1e-6)


@pytest.mark.parametrize(("coding", "time_steps", "bits"), [
    (codings.Rate(), 7, 3), (codings.Rate(), 8, 4), (codings.Rate(), 64, 7), (codings.Signed(), 15, 4),
    (codings.Delta(1, 0.5), 4, 4), (codings.Delta(3, 1.0), 1, 2), (codings.Delta(7, 0.5), 2, 5),
    (codings.Differential(8), 1, 8), (codings.Delta(1, 1.0), 1, 1),
], ids=str)  # fmt: skip
def test_bits_of_an_activation_number_all_that_the_steps_tell_apart(coding, time_steps, bits):
    """Whole units of the finest spike from 0 to the largest sum."""
    assert coding.activation_bits(time_steps) == bits


def test_bits_of_ternary_spikes_grow_with_every_step():
    bits = [codings.Delta(1, 0.7).activation_bits(t) for t in range(1, 17)]
    assert bits == sorted(bits)
    assert bits[-1] == math.ceil(math.log2(1 + (1 - 0.7**16) / 0.3 / 0.7**15))
