"""Layers that look along time: the convolution over T, and the max pool of sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from snnzoo import functional, layer


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 2, 4]))
    settings = {
        "kernel_size": draw(st.integers(1, 5)),
        "dilation": draw(st.integers(1, 3)),
        "groups": groups,
        "causal": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    shape = draw(st.sampled_from([(), (3,), (3, 2), (2, 3, 2)]))
    return layer.TemporalConv(4, 8, **settings).double(), torch.randn(draw(st.integers(1, 9)), 2, 4, *shape).double()


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_it_equals_conv1d_on_the_moved_time_axis(case):
    conv, x_seq = case
    reach = (conv.kernel_size - 1) * conv.dilation
    before = reach if conv.causal else reach // 2
    actual = conv(x_seq)
    positions = x_seq.flatten(3) if x_seq.ndim > 3 else x_seq.unsqueeze(3)
    for p in range(positions.shape[3]):
        over_time = positions[..., p].permute(1, 2, 0)  # [N, C, T]
        padded = F.pad(over_time, (before, reach - before))
        expected = F.conv1d(padded, conv.weight, conv.bias, dilation=conv.dilation, groups=conv.groups)
        got = (actual.flatten(3) if actual.ndim > 3 else actual.unsqueeze(3))[..., p]
        torch.testing.assert_close(got, expected.permute(2, 0, 1), rtol=1e-12, atol=1e-12)


def test_weights_are_those_of_conv1d_and_load_strictly():
    torch.manual_seed(5)
    theirs = nn.Conv1d(6, 4, 3, groups=2)
    torch.manual_seed(5)
    ours = layer.TemporalConv(6, 4, 3, groups=2)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    ours.load_state_dict(nn.Conv1d(6, 4, 3, groups=2).state_dict(), strict=True)


@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_means_that_a_change_at_t_changes_nothing_before_t(dilation):
    conv = layer.TemporalConv(3, 3, 4, dilation=dilation)
    x_seq = torch.randn(12, 2, 3, 4)
    changed = x_seq.clone()
    changed[5] += 1
    differs = (conv(x_seq) != conv(changed)).flatten(1).any(1).tolist()
    assert differs == [t in range(5, 5 + 4 * dilation, dilation) for t in range(12)]


def test_centred_looks_as_far_ahead_as_back():
    conv = layer.TemporalConv(3, 3, 3, dilation=2, causal=False)
    x_seq = torch.randn(12, 2, 3, 4)
    changed = x_seq.clone()
    changed[5] += 1
    differs = (conv(x_seq) != conv(changed)).flatten(1).any(1).tolist()
    assert differs == [t in (3, 5, 7) for t in range(12)]


def test_depthwise_keeps_channels_apart():
    conv = layer.TemporalConv(4, 4, 3, groups=4, bias=False)
    x_seq = torch.randn(6, 2, 4)
    silent = x_seq.clone()
    silent[:, :, 2] = 0
    assert torch.equal(conv(x_seq)[:, :, [0, 1, 3]], conv(silent)[:, :, [0, 1, 3]])
    assert conv(silent)[:, :, 2].abs().max() == 0


def test_weights_and_input_get_gradients():
    conv, x_seq = layer.TemporalConv(2, 2, 3).double(), torch.randn(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: torch.func.functional_call(conv, {"weight": w, "bias": b}, x),
                                    (x_seq, conv.weight, conv.bias))  # fmt: skip


def test_single_step_mode_is_an_error_that_says_why():
    net = nn.Sequential(layer.TemporalConv(2, 2, 3))
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match=r"step_mode='s'.*convolves over time.*set_step_mode\(net, 'm'\)"):
        net(torch.rand(5, 1, 2))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"kernel_size": 0}, "kernel_size must be at least 1"),
    ({"dilation": 0}, "dilation must be at least 1"),
    ({"groups": 3}, "groups=3 must divide in_channels=4 and out_channels=4"),
])  # fmt: skip
def test_arguments_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer.TemporalConv(4, 4, **{"kernel_size": 3, **arguments})


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 3), (5, 1, 3, 4)])
def test_a_wrong_shape_is_an_error_that_shows_it(shape):
    with pytest.raises(ValueError, match=r"\[T, N, 4, \.\.\.\], got"):
        layer.TemporalConv(4, 4, 3)(torch.rand(shape))
