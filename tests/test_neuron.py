import copy
import functools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnzoo import codings, functional, neuron, surrogate
from snnzoo.converted_node import ConvertedNode

NODES = {
    "IF": neuron.IFNode,
    "LIF": neuron.LIFNode,
    "LIF, input does not decay": functools.partial(neuron.LIFNode, tau=3.0, decay_input=False),
    "PLIF": neuron.ParametricLIFNode,
}


def by_hand(kind, x_seq, v_threshold, v_reset):
    """The classic equations, element by element, in plain Python."""
    rest = v_reset or 0.0
    outputs = torch.zeros_like(x_seq)
    for column in range(x_seq.shape[1]):
        v = rest
        for t in range(x_seq.shape[0]):
            x = x_seq[t, column].item()
            if kind == "IF":
                v = v + x
            elif kind == "LIF, input does not decay":
                v = v - (v - rest) / 3.0 + x
            else:
                v = v + (x - (v - rest)) / 2.0
            if v >= v_threshold:
                outputs[t, column] = 1
                v = v - v_threshold if v_reset is None else v_reset
    return outputs


@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
@pytest.mark.parametrize("v_threshold", [1.0, 0.5])
def test_spikes_equal_the_classic_equations_by_hand(kind, v_reset, v_threshold):
    x_seq = torch.randn(20, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    node = NODES[kind](v_threshold=v_threshold, v_reset=v_reset, step_mode="m")
    assert torch.equal(node(x_seq), by_hand(kind, x_seq, v_threshold, v_reset))


@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_multi_step_equals_single_steps_bit_for_bit(kind, v_reset):
    x_seq = torch.randn(12, 3, 4, 5, 5)
    single, multi = NODES[kind](v_reset=v_reset), NODES[kind](v_reset=v_reset, step_mode="m")
    expected = torch.stack([single(x) for x in x_seq])
    assert torch.equal(multi(x_seq), expected)
    assert torch.equal(multi.v, single.v)


@settings(max_examples=60, deadline=None)
@given(
    time_steps=st.integers(2, 12),
    cut=st.integers(1, 11),
    coding=st.sampled_from(["if", "rate", "plain", "signed", "differential", "delta"]),
    seed=st.integers(0, 2**31),
)
def test_state_carries_over_wherever_a_sequence_is_cut(time_steps, cut, coding, seed):
    cut = min(cut, time_steps - 1)
    generator = torch.Generator().manual_seed(seed)
    x_seq = torch.randn(time_steps, 2, 3, generator=generator, dtype=torch.float64)
    theta = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    if coding == "if":
        node = neuron.IFNode(theta, step_mode="m")
    else:
        node = ConvertedNode(codings.CODINGS[coding](), theta, bias=theta / 9, step_mode="m")
    whole = node(x_seq)
    node.reset()
    assert torch.equal(torch.cat([node(x_seq[:cut]), node(x_seq[cut:])]), whole)


def test_defaults_are_the_classic_ones():
    node = neuron.LIFNode()
    assert (node.v_threshold, node.v_reset, node.tau, node.decay_input) == (1.0, 0.0, 2.0, True)
    assert (node.detach_reset, node.step_mode) == (False, "s")
    assert isinstance(node.surrogate_function, surrogate.Sigmoid)


@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_multi_step_names_are_the_same_class_in_multi_step_mode(name):
    single, multi = getattr(neuron, name), getattr(neuron, f"MultiStep{name}")
    assert issubclass(multi, single)
    assert multi().step_mode == "m"
    x_seq = torch.rand(6, 4)
    assert torch.equal(multi()(x_seq), single(step_mode="m")(x_seq))


def test_a_neuron_fires_at_the_threshold_itself():
    assert neuron.IFNode()(torch.tensor([1.0, 0.999])).tolist() == [1.0, 0.0]


def test_integer_threshold_and_reset_work():
    assert neuron.IFNode(v_threshold=1, v_reset=0)(torch.tensor([2.0])).item() == 1.0


def test_per_channel_threshold_equals_scalar_thresholds_channel_by_channel():
    x_seq, theta = torch.randn(10, 2, 3, 4), torch.tensor([0.5, 1.0, 2.0])
    together = neuron.IFNode(theta, v_reset=None, step_mode="m")(x_seq)
    for c, value in enumerate(theta.tolist()):
        alone = neuron.IFNode(value, v_reset=None, step_mode="m")(x_seq[:, :, c])
        assert torch.equal(together[:, :, c], alone)


def test_per_channel_threshold_is_saved_and_a_scalar_is_not():
    assert list(neuron.IFNode(torch.ones(3)).state_dict()) == ["v_threshold"]
    assert list(neuron.IFNode(1.0).state_dict()) == []
    assert list(neuron.IFNode(torch.tensor(1.0)).state_dict()) == []


def test_a_threshold_that_does_not_fit_the_channels_is_an_error_that_gives_both():
    with pytest.raises(ValueError, match=r"3 channels.*\[2, 4\].*\[N, 3, \.\.\.\]"):
        neuron.IFNode(torch.ones(3))(torch.rand(2, 4))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), torch.tensor([1.0, 0.0])], ids=str)
def test_thresholds_must_be_positive(bad):
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        neuron.IFNode(bad)


def test_state_is_not_in_the_state_dict_and_reset_forgets_it():
    node = neuron.IFNode()
    first = node(torch.full((4,), 0.7))
    assert node.state_dict() == {}
    assert node(torch.full((4,), 0.7)).sum() == 4
    functional.reset_net(node)
    assert torch.equal(node(torch.full((4,), 0.7)), first)


def test_a_changed_batch_size_without_reset_says_to_reset():
    for node in (neuron.IFNode(), ConvertedNode(codings.Delta())):
        node(torch.rand(4, 3))
        with pytest.raises(ValueError, match=r"\[4, 3\].*\[5, 3\].*reset_net"):
            node(torch.rand(5, 3))


def test_multi_step_mode_needs_a_time_axis():
    with pytest.raises(ValueError, match=r"\[T, N, \.\.\.\]"):
        neuron.MultiStepIFNode()(torch.rand(4))


def test_step_mode_must_be_s_or_m():
    with pytest.raises(ValueError, match=r"'s'.*'m'"):
        neuron.IFNode(step_mode="x")
    with pytest.raises(ValueError, match=r"'s'.*'m'"):
        neuron.IFNode().step_mode = "multi"


def test_half_precision_input_keeps_a_float32_membrane():
    x_seq = torch.full((64, 1), 1 / 64, dtype=torch.float16)
    node = neuron.MultiStepIFNode(v_reset=None)
    assert node(x_seq).dtype == torch.float16
    assert node.v.dtype == torch.float32


def test_copies_do_not_share_state_and_detach_it():
    node = neuron.IFNode()
    node(torch.full((3,), 0.6, requires_grad=True))
    twin = copy.deepcopy(node)
    assert not twin.v.requires_grad
    twin.reset()
    assert node(torch.full((3,), 0.6)).sum() == 3


def test_state_follows_the_module_to_another_dtype():
    node = neuron.IFNode()
    node(torch.rand(3))
    assert node.double().v.dtype == torch.float64


@pytest.mark.parametrize("v_reset", [0.0, None])
def test_detach_reset_changes_the_gradient_but_not_the_spikes(v_reset):
    results = []
    for detach_reset in (False, True):
        x_seq = torch.full((4, 3), 0.8, dtype=torch.float64, requires_grad=True)
        spikes = neuron.MultiStepIFNode(v_reset=v_reset, detach_reset=detach_reset)(x_seq)
        results.append((spikes.detach(), torch.autograd.grad(spikes.sum(), x_seq)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.allclose(results[0][1], results[1][1])


def test_gradient_of_two_steps_equals_the_chain_rule_by_hand():
    x_seq = torch.tensor([[0.8], [0.5]], dtype=torch.float64, requires_grad=True)
    node = neuron.MultiStepIFNode(v_reset=None, detach_reset=True)
    (actual,) = torch.autograd.grad(node(x_seq)[1].sum(), x_seq)
    slope = surrogate.Sigmoid().gradient(torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(actual, slope.expand(2, 1))


def test_the_time_constant_of_a_parametric_lif_learns():
    node = neuron.MultiStepParametricLIFNode(init_tau=4.0)
    assert torch.sigmoid(node.w).item() == pytest.approx(1 / 4)
    node(torch.rand(5, 8)).sum().backward()
    assert node.w.grad.abs().item() > 0


def test_ann_weights_load_strictly_into_a_network_of_parametric_lif_nodes():
    ann = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    net = nn.Sequential(nn.Linear(3, 3), neuron.ParametricLIFNode(init_tau=3.0))
    with pytest.warns(UserWarning, match="keep their initial values"):
        net.load_state_dict(ann.state_dict(), strict=True)
    assert 1 / torch.sigmoid(net[1].w).item() == pytest.approx(3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(net.state_dict(), strict=True)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: neuron.LIFNode(tau=1.0), "tau must be greater than 1"),
    (lambda: neuron.ParametricLIFNode(init_tau=0.5), "init_tau must be greater than 1"),
    (lambda: codings.Delta(levels=0), "levels must be at least 1"),
    (lambda: codings.Delta(gamma=0.0), "gamma must be in"),
    (lambda: codings.Delta(dead_zone=0.4), "dead_zone must be in"),
    (lambda: neuron.IFNode(torch.ones(2, 2)), r"of shape \[C\]"),
])  # fmt: skip
def test_arguments_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rate_node_sends_its_threshold_and_its_mean_approaches_the_relu():
    theta = torch.tensor([1.0, 2.5])
    x = torch.tensor([[0.3, 2.0], [-1.0, 0.7]], dtype=torch.float64)
    outputs = ConvertedNode(codings.Rate(), theta, step_mode="m")(x.expand(256, 2, 2))
    assert set(outputs[:, :, 1].unique().tolist()) == {0.0, 2.5}
    error = (outputs.mean(0) - x.clamp(min=0)).abs()
    assert (error <= theta / 256 + 1e-12).all()


@pytest.mark.parametrize("levels", [1, 3, 7])
def test_a_delta_node_closes_in_on_the_relu_of_its_accumulated_input(levels):
    x = torch.linspace(-1, 1, 101, dtype=torch.float64).unsqueeze(1)
    gamma = 0.7
    node = ConvertedNode(codings.Delta(levels, gamma), torch.tensor([1 / levels], dtype=torch.float64), step_mode="m")
    z_seq = torch.cat([x.unsqueeze(0), torch.zeros(15, *x.shape, dtype=torch.float64)])
    s = node(z_seq)
    error = (s.cumsum(0) - x.clamp(min=0)).abs().flatten(1).amax(1)
    assert (error <= (1 / levels) * gamma ** torch.arange(16) / 2 + 1e-12).all()
    units = s / ((1 / levels) * gamma ** torch.arange(16, dtype=torch.float64)).view(-1, 1, 1)
    torch.testing.assert_close(units, units.round(), atol=1e-9, rtol=0)
    assert units.abs().max() <= levels + 1e-9


def test_a_delta_node_takes_a_bias_once():
    bias = torch.tensor([0.4], dtype=torch.float64)
    z = torch.tensor([0.2, 0.1, -0.1], dtype=torch.float64).view(3, 1, 1)
    node = ConvertedNode(codings.Delta(50, 1.0), 0.01, bias=bias, step_mode="m")
    decoded = node(z).sum()
    assert decoded.item() == pytest.approx(0.2 + 0.1 - 0.1 + 0.4, abs=0.006)
    assert node.m.item() == pytest.approx(0.6)
