"""Integer weights: the convolutions are those of the rounded weights, and the network stays what it was."""

import copy

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings, prepare_for_inference
from snnzoo.converted_node import ConvertedNode
from snnzoo.errors import UsageError
from snnzoo.evaluation.evaluator import evaluate
from snnzoo.inference import integer
from snnzoo.inference.integer import PIECES, IntegerConv2d, Source, SpikeValues
from snnzoo.inference.neuron import FoldedNeuron
from snnzoo.neuron import IFNode

NODES = {
    "if": lambda theta: IFNode(),
    "rate": lambda theta: ConvertedNode(codings.Rate(), theta),
    "signed": lambda theta: ConvertedNode(codings.Signed(), theta),
    "delta": lambda theta: ConvertedNode(codings.Delta(7, 0.5), theta),
    "differential": lambda theta: ConvertedNode(codings.Differential(6), theta),
}
STEPS, BATCH, CHANNELS = 3, 2, 8


def source_of(kind, integer):
    """A neuron after it ran on random currents, and what it sent."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(CHANNELS, generator=generator) + 0.2
    neuron = FoldedNeuron(NODES[kind](theta), torch.zeros(CHANNELS))
    neuron.float()
    neuron.sends_counts = integer
    current = 2 * torch.randn(STEPS, BATCH, CHANNELS, 6, 6, generator=generator) + 0.5
    current = current.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (STEPS, BATCH))
    return neuron, neuron(current).flatten(0, 1)


@pytest.mark.parametrize("kind", list(NODES))
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 4},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
    ],
    ids=["3x3", "1x1", "grouped", "dilated"],
)
def test_currents_are_those_of_the_rounded_weights(kind, pieces, settings):
    torch.manual_seed(1)
    conv = nn.Conv2d(CHANNELS, 12, bias=False, **settings)
    _, values = source_of(kind, integer=False)
    neuron, units = source_of(kind, integer=True)
    assert units.dtype == torch.int8
    assert units.count_nonzero() > 0
    current = IntegerConv2d(conv, Source([neuron]), pieces)(units)
    assert current.is_contiguous(memory_format=torch.channels_last)

    exact = copy.deepcopy(conv).double()
    largest_input = torch.as_tensor(neuron.spike_value(0, torch.float64)).max()
    events = nn.functional.conv2d(units.double().abs(), torch.ones_like(exact.weight), None, *_geometry(conv))
    half_a_unit = conv.weight.abs().max() * largest_input / 127 / 256 ** (pieces - 1) / 2
    difference = (current - exact(values.double())).abs()
    assert bool((difference <= events * half_a_unit * 1.01 + 1e-5).all())
    assert difference.max() > 0 or pieces == 2


def test_strided_1x1_convolutions_give_the_same_sums_at_every_call():
    """By several threads, oneDNN's own are sometimes wrong on CPUs with AVX2 only."""
    torch.manual_seed(1)
    conv = nn.Conv2d(CHANNELS, 12, 1, stride=2, bias=False)
    neuron, units = source_of("delta", integer=True)
    for _ in range(20):
        rounded = IntegerConv2d(conv, Source([neuron]), 2)
        first = rounded(units)
        assert all(torch.equal(rounded(units), first) for _ in range(5))


def _geometry(conv):
    return conv.stride, conv.padding, conv.dilation, conv.groups


@pytest.mark.parametrize("kind", list(NODES))
def test_units_are_worth_what_the_neuron_sends(kind):
    _, values = source_of(kind, integer=False)
    neuron, units = source_of(kind, integer=True)
    torch.testing.assert_close(SpikeValues(Source([neuron]))(units), values)


def trained(name="resnet18"):
    torch.manual_seed(0)
    return shake_batch_norm(snnzoo.create_model(name, num_classes=5)).eval()


def converted(name, levels=7):
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model(name, num_classes=5, neuron=nn.ReLU)).eval()
    return snnzoo.convert(ann, torch.randn(16, 3, 32, 32), levels=levels, gamma=0.5, time_steps=4)


@pytest.mark.parametrize("dtype", list(PIECES))
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet50"])
def test_logits_of_a_converted_network_stay_near_those_of_float32(name, dtype):
    net, x = converted(name), torch.randn(4, 3, 32, 32)
    x_seq = x.expand(4, *x.shape)
    want, got = (prepare_for_inference(net, dtype=d).final(x_seq) for d in (torch.float32, dtype))
    assert got.dtype == torch.float32
    error = (got - want).square().mean() / want.var()
    assert error < {torch.int8: 0.1, torch.int16: 0.01}[dtype]


def test_more_bits_come_closer():
    net, x = converted("resnet20"), torch.randn(8, 3, 32, 32)
    x_seq = x.expand(4, *x.shape)
    exact, *rounded = (prepare_for_inference(net, dtype=d)(x_seq) for d in (torch.float32, torch.int16, torch.int8))
    fine, coarse = ((logits - exact).square().mean() for logits in rounded)
    assert fine < coarse


@pytest.mark.parametrize("steps", [4, 11])
def test_each_call_starts_anew_and_pieces_of_time_join(steps):
    net, x = converted("resnet20"), torch.randn(2, 3, 32, 32)
    fast = prepare_for_inference(net, dtype=torch.int16)
    x_seq = x.expand(steps, *x.shape)
    logits = fast(x_seq)
    assert torch.equal(fast(x_seq), logits)
    assert torch.equal(fast(x.expand(2, *x.shape)), logits[:2])
    torch.testing.assert_close(fast.final(x_seq), logits[-1])


def test_an_evaluation_counts_the_same_activity():
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", num_classes=5, neuron=nn.ReLU, step_mode="s")).eval()
    net, x = (
        snnzoo.convert(ann, torch.randn(16, 3, 32, 32), levels=7, gamma=0.5, time_steps=4),
        torch.randn(6, 3, 32, 32),
    )
    data = x, torch.zeros(len(x), dtype=torch.long)
    exact, rounded = (evaluate(net, ann, data, [4], dtype=dtype) for dtype in (torch.float32, torch.int16))
    assert rounded.ann == exact.ann
    assert [layer.neurons for layer in rounded.layers] == [layer.neurons for layer in exact.layers]
    (few,), (many,) = rounded.results, exact.results
    assert few.synaptic_operations == pytest.approx(many.synaptic_operations, rel=0.02)


def test_a_network_whose_convolutions_see_no_spikes_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    snn = snnzoo.convert(net, torch.randn(4, 3, 8, 8), levels=7, gamma=0.5)
    with pytest.raises(UsageError, match="no convolution of the network sees spikes"):
        prepare_for_inference(snn, dtype=torch.int8)


class Joined(nn.Module):
    """Two branches whose spikes, with thresholds of their own, are joined for one convolution."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(10, 5, 3)

    def forward(self, x):
        y = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.join(y).relu().mean((2, 3))


def test_joined_spikes_keep_what_each_is_worth():
    torch.manual_seed(0)
    net = snnzoo.convert(Joined(), torch.randn(8, 3, 12, 12), levels=7, gamma=0.5)
    x = torch.randn(4, 3, 12, 12)
    exact, rounded = (prepare_for_inference(net, dtype=d) for d in (torch.float32, torch.int16))
    assert list(rounded.network._replaced)
    torch.testing.assert_close(rounded(x.expand(4, *x.shape)), exact(x.expand(4, *x.shape)), rtol=0.02, atol=0.01)


def test_joined_spikes_that_shrink_each_at_its_own_rate_stay_floating_point():
    torch.manual_seed(0)
    net = snnzoo.convert(Joined(), torch.randn(8, 3, 12, 12), levels=7, gamma=0.5)
    net.neuron(net.sites[0].path)._coding = codings.Delta(7, 0.25)
    with pytest.raises(UsageError, match="no convolution of the network sees spikes"):
        prepare_for_inference(net, dtype=torch.int8)


def test_spikes_too_large_for_eight_bits_are_refused():
    with pytest.raises(UsageError, match=r"at most 64 units, .* has 100"):
        prepare_for_inference(converted("resnet20", levels=100), dtype=torch.int8)


def test_integer_weights_are_for_cpus_without_compilation():
    with pytest.raises(UsageError, match="on a CPU"):
        prepare_for_inference(trained(), dtype=torch.int8, compile=True)


def test_the_largest_unit_is_what_the_coding_sends():
    assert codings.Delta(levels=5).largest_unit == 5
    assert codings.Differential(levels=7).largest_unit == 64
    assert codings.IF().largest_unit == codings.Signed().largest_unit == 1
    assert not codings.IF().signed


def test_operators_that_are_not_as_known_are_not_used(monkeypatch):
    assert integer.unavailable() is None
    net = converted("resnet20")
    for changed, message in (
        ((("qconv2d_pointwise", "default", "qx somewhat else"),), "no operator onednn::qconv2d_pointwise as known"),
        ((("not_there", "default", "x"),), "no operator onednn::not_there"),
    ):
        integer.unavailable.cache_clear()
        monkeypatch.setattr(integer, "_OPERATORS", changed)
        with pytest.raises(UsageError, match=message):
            prepare_for_inference(net, dtype=torch.int8)
    monkeypatch.undo()
    integer.unavailable.cache_clear()


def test_convolutions_that_compute_something_else_are_not_used(monkeypatch):
    integer.unavailable.cache_clear()
    monkeypatch.setattr(IntegerConv2d, "forward", lambda self, x: torch.zeros(2, 8, 5, 5))
    assert "8-bit convolutions are wrong" in str(integer.unavailable())
    monkeypatch.undo()
    integer.unavailable.cache_clear()
