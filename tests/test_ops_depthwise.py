"""Neurons, a depthwise convolution and neurons in one kernel, against the three in turn."""

import dataclasses

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings, functional, ops
from snnzoo.codings import activations
from snnzoo.early_exit import ExitRule
from snnzoo.inference import network
from snnzoo.ops import backends, depthwise
from snnzoo.ops.spec import Arguments, Memo

if backends.named("compiled").unavailable() is not None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

# what their outputs are worth is whole eighths, so that sums of convolutions are exact
CODINGS = st.one_of(
    st.builds(codings.IF, st.sampled_from([None, 0.0, -0.25]), st.sampled_from([0.0, 0.5])),
    st.builds(codings.LIF, st.sampled_from([None, -0.25]), reciprocal_tau=st.sampled_from([0.25, 0.5])),
    st.sampled_from([codings.Rate(), codings.Signed(), codings.Delta(3, 0.5), codings.Delta(7, 0.5, 0.75)]),
    st.sampled_from([codings.Differential(1), codings.Differential(5)]),
)
ACTIVATIONS = [activations.RELU, activations.Clamp(0.0, 6.0), activations.LeakyReLU(0.25), activations.Hardswish()]


def channels_last(*shape, dtype, seed=0):
    """Noise `[T, N, C, H, W]`."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])


def in_turn(x_seq, coding, before, weight, geometry, behind):
    """What the reference gives for neurons, the convolution and neurons."""

    def run(x_seq, arguments):
        names = ["v_threshold", "bias", "state", "t", "output", "scaled", "activation", "absolute"]
        return ops.multi_step_neuron(x_seq, coding, **{name: getattr(arguments, name) for name in names})

    with ops.use_backend("reference"):
        first = run(x_seq, before)
        current = F.conv2d(first.sequence.flatten(0, 1), weight, **geometry)
        return first, run(current.unflatten(0, x_seq.shape[:2]), behind)


def assert_equal(found, want):
    for one, other in zip(found, want, strict=True):
        for a, b in zip((*one[:2], *one.state), (*other[:2], *other.state), strict=True):
            assert a is None or torch.equal(a, b)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), coding=CODINGS, double=st.booleans(), seed=st.integers(0, 99))
def test_every_call_gives_what_the_three_give_in_turn(data, coding, double, seed):
    dtype = torch.float64 if double else torch.float32
    draw = data.draw
    time_steps, batch, channels = draw(st.integers(1, 9)), draw(st.integers(1, 3)), draw(st.integers(1, 70))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pairs = {name: draw(st.tuples(*2 * [numbers])) for name, numbers in GEOMETRY.items()}
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 17))
        for k, d, p in zip(kernel, pairs["dilation"], pairs["padding"], strict=True)
    ]
    geometry = {**{name: list(pair) for name, pair in pairs.items()}, "groups": channels}
    x_seq = channels_last(time_steps, batch, channels, *size, dtype=dtype, seed=seed)
    if draw(st.booleans()):
        x_seq = x_seq[:1].expand(time_steps, -1, -1, -1, -1)
    weight = torch.randint(-3, 4, (channels, 1, *kernel), generator=torch.Generator().manual_seed(seed)).to(dtype)
    theta, bias = 2.0 ** (torch.arange(channels) % 3 - 1), torch.arange(channels) % 5 / 8
    state, start = None, draw(st.sampled_from([0, 3]))
    if draw(st.booleans()):
        state = tuple(channels_last(1, *x_seq.shape[1:], dtype=dtype, seed=i)[0].round() for i in range(2))
        state = state[: len(coding.state)]
    activation = draw(st.sampled_from(ACTIVATIONS)) if coding.any_activation else activations.RELU
    scaled, absolute = draw(st.booleans()), coding.bias_once and draw(st.booleans())
    before = Arguments(
        theta, bias, None, state, start, "sequence", scaled, dtype, draw(st.booleans()), activation, absolute
    )
    behind = dataclasses.replace(before, state=None, absolute=False, output=draw(st.sampled_from(["sequence", "sum"])))
    want = in_turn(x_seq, coding, before, weight, geometry, behind)
    found = depthwise.depthwise_neurons(x_seq, coding, before, weight, geometry, behind)
    want = [result._replace(state=result.state if before.keep_state else ()) for result in want]
    assert_equal(found, (want[0]._replace(sequence=None), want[1]))


GEOMETRY = {"stride": st.integers(1, 3), "padding": st.integers(0, 3), "dilation": st.integers(1, 2)}
SAME = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("keep_state", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_threads_share_images_rows_or_channels(threads, in_place, keep_state, stride):
    x_seq, weight = channels_last(3, 2, 70, 41, 12, dtype=torch.float32), torch.ones(70, 1, 3, 3)
    geometry = {**SAME, "stride": [stride, stride], "groups": 70}
    arguments = Arguments(1.0, 0.25, None, None, 0, "sequence", True, torch.float32, keep_state)
    want = in_turn(x_seq, codings.Rate(), arguments, weight, geometry, arguments)
    behind = dataclasses.replace(arguments, out=x_seq if in_place else None)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = depthwise.depthwise_neurons(x_seq, codings.Rate(), arguments, weight, geometry, behind)
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(results[1].sequence, want[1].sequence)
    assert (results[1].sequence.data_ptr() == x_seq.data_ptr()) == (in_place and stride == 1)
    for found, one in zip(results, want, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found.state, one.state, strict=bool(found.state)))


@pytest.mark.parametrize("images", [1, 2, 9])
def test_what_makes_the_input_is_run_for_some_images_at_a_time(monkeypatch, images):
    x_seq, weight, expand = (
        channels_last(2, 5, 4, 6, 6, dtype=torch.float32),
        torch.ones(8, 1, 3, 3),
        torch.ones(8, 4, 1, 1),
    )
    monkeypatch.setattr(depthwise, "KEPT_BYTES", images * 2 * 8 * 6 * 6 * 4)
    batches = []

    def first(x_seq):
        batches.append(x_seq.shape[1])
        return F.conv2d(x_seq.flatten(0, 1).round(), expand).unflatten(0, x_seq.shape[:2])

    coding, geometry = codings.Delta(3, 0.5), {**SAME, "groups": 8}
    arguments = Arguments(1.0, 0.25, None, None, 0, "sequence", True, torch.float32, True)
    want = in_turn(first(x_seq), coding, arguments, weight, geometry, arguments)
    found = depthwise.depthwise_neurons(x_seq, coding, arguments, weight, geometry, arguments, first)
    assert_equal(found, (want[0]._replace(sequence=None), want[1]))
    assert batches[1:] == {1: [1, 1, 1, 1, 1], 2: [2, 2, 1], 9: [5]}[images]


def test_calls_with_a_memo_give_what_calls_without_give():
    weight, geometry = torch.ones(8, 1, 3, 3), {**SAME, "groups": 8}
    plain = Arguments(1.0, 0.25, None, None, 0, "sequence", True, torch.float32, True)
    before, behind = (dataclasses.replace(plain, memo=Memo()) for _ in range(2))
    for seed, batch in enumerate([2, 2, 3, 2]):
        x_seq = channels_last(2, batch, 8, 6, 6, dtype=torch.float32, seed=seed)
        found, want = (
            depthwise.depthwise_neurons(x_seq, codings.Rate(), *pair[:1], weight, geometry, *pair[1:])
            for pair in ((before, behind), (plain, plain))
        )
        assert_equal(found, want)


def test_other_sums_differ_only_where_rounding_decides():
    x_seq = channels_last(4, 2, 48, 20, 20, dtype=torch.float32)
    weight = torch.randn(48, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    geometry, coding = {**SAME, "groups": 48}, codings.Delta(7, 0.6)
    arguments = Arguments(0.9, 0.1, None, None, 0, "sequence", True, torch.float32, False)
    found = depthwise.depthwise_neurons(x_seq, coding, arguments, weight, geometry, arguments)[1].sequence
    want = in_turn(x_seq.double(), coding, arguments, weight.double(), geometry, arguments)[1].sequence.float()
    assert ((found - want).abs() > 1e-4).float().mean() < 1e-3
    assert (want != 0).float().mean() > 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"out_dtype": torch.int8},
        {"counts_events": True},
        {"residual": torch.zeros(2, 1, 4, 5, 5)},
        {"scaled": False},
        {"activation": activations.Clamp(0.0, 3.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_it_does_not_take_it_leaves(change):
    x_seq, weight, geometry = (
        channels_last(2, 1, 4, 5, 5, dtype=torch.float32),
        torch.ones(4, 1, 3, 3),
        {**SAME, "groups": 4},
    )
    arguments = Arguments(1.0, 0.0, None, None, 0, "sequence", True, torch.float32, False)
    run = depthwise.depthwise_neurons
    assert run(x_seq, codings.Delta(), arguments, weight, geometry, arguments) is not None
    assert run(x_seq, codings.Delta(), arguments, weight, geometry, dataclasses.replace(arguments, **change)) is None
    assert run(x_seq.contiguous(), codings.Delta(), arguments, weight, geometry, arguments) is None
    with ops.use_backend("reference"):
        assert run(x_seq, codings.Delta(), arguments, weight, geometry, arguments) is None


class Inverted(nn.Module):
    """Inverted bottlenecks, with and without a stride and a shortcut."""

    def __init__(self):
        super().__init__()
        block = torchvision.models.mobilenetv2.InvertedResidual
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.Sequential(block(8, 6, 1, 1), block(6, 10, 2, 6), block(10, 10, 1, 4))
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def images(count):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["delta", "rate", "signed", "differential"])
def net(request):
    torch.manual_seed(0)
    return snnzoo.convert(shake_batch_norm(Inverted()).eval(), images(64), request.param, time_steps=4, check_fit=False)


def both(net, monkeypatch, dtype=torch.float64):
    """Its fast form without and with fused chains."""
    fused = snnzoo.prepare_for_inference(net, dtype=dtype)
    with monkeypatch.context() as patch:
        patch.setattr(network.FoldedNetwork, "fuse_depthwise", lambda self: None)
        return snnzoo.prepare_for_inference(net, dtype=dtype), fused


def test_a_network_runs_each_chain_as_one_and_gives_its_logits(net, monkeypatch):
    plain, fused = both(net, monkeypatch)
    calls, library = [], depthwise._library
    monkeypatch.setattr(depthwise, "_library", lambda dtype: calls.append(dtype) or library(dtype))
    x = images(5)
    for time_steps in (1, 4, 9):  # the last in two pieces
        x_seq = x.double().expand(time_steps, *x.shape)
        torch.testing.assert_close(fused(x_seq), plain(x_seq))
        torch.testing.assert_close(fused.final(x_seq), plain.final(x_seq))
        frames = torch.stack([x * (t + 1) / time_steps for t in range(time_steps)]).double()
        torch.testing.assert_close(fused(frames), plain(frames))
    assert len(calls) == 3 * 3 * (1 + 1 + 2)  # three chains, three runs, so many pieces
    values = [], []
    for fast, seen in zip((fused, plain), values, strict=True):
        fast(frames, lambda node, _, value, seen=seen: seen.append(value.clone()))
    assert all(torch.equal(*pair) for pair in zip(*values, strict=True))


def test_step_by_step_and_with_images_that_leave_it_gives_the_same(net, monkeypatch):
    plain, fused = both(net, monkeypatch)
    x = images(6).double()
    whole = fused(x.expand(4, *x.shape))
    functional.reset_net(fused.network)
    with torch.inference_mode():
        steps = torch.cat([fused.network.run(x.unsqueeze(0)) for _ in range(4)])
    functional.reset_net(fused.network)
    torch.testing.assert_close(steps, whole)
    gaps = plain(x.expand(4, *x.shape)).softmax(-1).topk(2).values.diff(dim=-1).abs()[..., 0]
    rule = ExitRule("gap", tuple(gaps[:3].median(1).values.tolist()))
    (logits, left), (want, want_left) = (fast.until_sure(x, rule) for fast in (fused, plain))
    assert torch.equal(left, want_left)
    assert len(left.unique()) > 1
    torch.testing.assert_close(logits, want)


def test_without_kernels_a_network_runs_as_before(net, monkeypatch):
    plain, fused = both(net, monkeypatch)
    monkeypatch.setattr(depthwise, "_library", lambda dtype: None)
    x = images(3).double()
    assert torch.equal(fused(x.expand(4, *x.shape)), plain(x.expand(4, *x.shape)))


def test_under_torch_compile_a_network_goes_without(net):
    assert not snnzoo.prepare_for_inference(net, compile=True).network._runs


def test_a_mobilenet_sends_the_spikes_of_its_layers_in_turn(monkeypatch):
    torch.manual_seed(0)
    ann = shake_batch_norm(torchvision.models.mobilenet_v2(num_classes=10)).eval()
    x = torch.randn(4, 3, 64, 64)
    plain, fused = both(snnzoo.convert(ann, x, "rate", time_steps=4, check_fit=False), monkeypatch, torch.float32)
    assert len(fused.network._runs) == 17
    found, want = fused(x.expand(4, *x.shape)), plain(x.expand(4, *x.shape))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.argmax(-1), want.argmax(-1))
