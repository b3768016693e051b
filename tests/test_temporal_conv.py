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


# -- Max pooling of sums -----------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.sampled_from([(2, 2, 0), (3, 2, 1), (2, 1, 0)]), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_outputs_sum_up_to_the_maximum_of_the_sums_at_every_step(time_steps, pool, seed):
    x_seq = torch.randn(time_steps, 2, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y_seq = layer.AccumulatingMaxPool2d(*pool, step_mode="m")(x_seq)
    expected = torch.stack([F.max_pool2d(total, *pool) for total in x_seq.cumsum(0)])
    torch.testing.assert_close(y_seq.cumsum(0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_step_by_step_and_in_pieces_are_bit_for_bit_layer_by_layer(dtype):
    x_seq = torch.randn(7, 2, 3, 6, 6).to(dtype)
    expected = layer.AccumulatingMaxPool2d(2, step_mode="m")(x_seq)
    single, pieces = layer.AccumulatingMaxPool2d(2), layer.AccumulatingMaxPool2d(2, step_mode="m")
    assert expected.dtype == dtype
    assert torch.equal(torch.stack([single(x) for x in x_seq]), expected)
    assert torch.equal(torch.cat([pieces(x_seq[:3]), pieces(x_seq[3:])]), expected)


def test_a_constant_in_every_step_of_a_channel_passes_unchanged():
    x_seq = torch.randn(5, 2, 3, 4, 4, dtype=torch.float64)
    bias = torch.randn(3, 1, 1, dtype=torch.float64)
    plain, shifted = (layer.AccumulatingMaxPool2d(2, step_mode="m")(x) for x in (x_seq, x_seq + bias))
    torch.testing.assert_close(shifted, plain + bias)


def test_a_plain_max_pool_of_each_step_would_be_wrong():
    x_seq = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 1, 2)  # sums: 1 and 1
    assert F.max_pool2d(x_seq.flatten(0, 1), (1, 2)).sum() == 2
    assert layer.AccumulatingMaxPool2d((1, 2), step_mode="m")(x_seq).sum() == 1


def test_the_pool_has_no_keys_and_says_to_reset_when_the_batch_size_changes():
    pool = layer.AccumulatingMaxPool2d(2)
    assert not pool.state_dict()
    pool(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="reset_net"):
        pool(torch.rand(3, 1, 4, 4))
    functional.reset_net(pool)
    assert pool(torch.rand(3, 1, 4, 4)).shape == (3, 1, 2, 2)
