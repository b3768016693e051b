"""The multi-step operator: what its arguments mean, whatever implementation runs."""

import subprocess
import sys

import pytest
import torch

from snnzoo import codings, ops, surrogate

CODINGS = {
    "if, hard reset": codings.IF(),
    "if, soft reset, half start": codings.IF(None, v_init=0.5),
    "lif": codings.LIF(-0.25, reciprocal_tau=0.3),
    "lif, input does not decay": codings.LIF(None, reciprocal_tau=0.3, decay_input=False),
    "signed": codings.Signed(),
    "delta": codings.Delta(3, 0.6),
    "delta that waits": codings.Delta(1, 0.7, 0.65),
    "differential": codings.Differential(6),
}
THETA = torch.tensor([0.5, 1.0, 0.3])
BIAS = torch.tensor([0.1, -0.05, 0.2])


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.3


@pytest.fixture(params=CODINGS)
def coding(request):
    return CODINGS[request.param]


def test_a_residual_is_a_second_input(coding):
    x_seq, residual = noise(6, 2, 3, 4), noise(6, 2, 3, 4, seed=1)
    together = ops.multi_step_neuron(x_seq, coding, residual=residual)
    summed = ops.multi_step_neuron(x_seq + residual, coding)
    assert torch.equal(together.sequence, summed.sequence)


def test_a_bias_enters_every_step_or_once_where_signals_are_differential(coding):
    x_seq = noise(6, 2, 3, 4)
    added = BIAS.double().view(3, 1).expand(6, 2, 3, 4).clone()
    if coding.bias_once:
        added[1:] = 0
    actual = ops.multi_step_neuron(x_seq, coding, bias=BIAS)
    assert torch.equal(actual.sequence, ops.multi_step_neuron(x_seq + added, coding).sequence)


def test_per_channel_arguments_equal_scalar_ones_channel_by_channel(coding):
    x_seq, theta = noise(6, 2, 3, 4), THETA.double()
    together = ops.multi_step_neuron(x_seq, coding, v_threshold=theta, bias=BIAS, scaled=True)
    for c in range(3):
        arguments = {"v_threshold": theta[c].item(), "bias": BIAS[c].item(), "scaled": True}
        alone = ops.multi_step_neuron(x_seq[:, :, c : c + 1], coding, **arguments)
        assert torch.equal(together.sequence[:, :, c : c + 1], alone.sequence)


def test_the_sum_is_that_of_the_sequence(coding):
    x_seq = noise(6, 2, 3, 4)
    both = ops.multi_step_neuron(x_seq, coding, v_threshold=THETA, scaled=True, output="both")
    total = ops.multi_step_neuron(x_seq, coding, v_threshold=THETA, scaled=True, output="sum")
    torch.testing.assert_close(both.total, both.sequence.sum(0), rtol=1e-12, atol=1e-12)
    assert total.sequence is None
    assert torch.equal(total.total, both.total)


def test_int8_holds_whole_units_and_scaled_outputs_what_they_are_worth(coding):
    x_seq = noise(6, 2, 3, 4)
    units = ops.multi_step_neuron(x_seq, coding, v_threshold=THETA, out_dtype=torch.int8).sequence
    values = ops.multi_step_neuron(x_seq, coding, v_threshold=THETA, scaled=True).sequence
    unit = THETA.double().view(3, 1).expand(6, 2, 3, 4).clone()
    unit *= torch.tensor([coding.spike_value(t, torch.float64) for t in range(6)], dtype=torch.float64).view(6, 1, 1, 1)
    assert units.dtype == torch.int8
    torch.testing.assert_close(units * unit, values, rtol=1e-12, atol=1e-12)
    assert units.unique().numel() > 1


def test_a_sequence_may_be_cut_anywhere(coding):
    x_seq = noise(7, 2, 3, 4)
    arguments = {"v_threshold": THETA, "bias": BIAS, "scaled": True}
    whole = ops.multi_step_neuron(x_seq, coding, **arguments)
    for cut in range(1, 7):
        first = ops.multi_step_neuron(x_seq[:cut], coding, **arguments)
        second = ops.multi_step_neuron(x_seq[cut:], coding, state=first.state, t=cut, **arguments)
        assert torch.equal(torch.cat([first.sequence, second.sequence]), whole.sequence)
        assert all(map(torch.equal, second.state, whole.state))


def test_levels_stay_above_zero_however_many_steps_there_are():
    x_seq = torch.full((1, 1, 1), 0.7).expand(1024, 1, 1)
    sequence = ops.multi_step_neuron(x_seq, codings.Delta(3, 0.25), scaled=True, absolute=True).sequence
    assert sequence.isfinite().all()
    assert sequence.sum().item() == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("function", [surrogate.ATan(), surrogate.Sigmoid(), surrogate.PiecewiseQuadratic()], ids=repr)
@pytest.mark.parametrize("v_reset", [None, -0.25])
@pytest.mark.parametrize("decay_input", [False, True])
def test_the_reference_is_differentiated_rightly_where_spikes_are_smooth(function, v_reset, decay_input):
    def run(x_seq, residual, v, reciprocal_tau):
        coding = codings.LIF(
            v_reset, surrogate=function.primitive, reciprocal_tau=reciprocal_tau, decay_input=decay_input
        )  # fmt: skip
        result = ops.multi_step_neuron(
            x_seq, coding, v_threshold=THETA.double(), residual=residual, state=(v,), output="both", scaled=True
        )
        return result.sequence, result.total, *result.state

    inputs = noise(4, 2, 3), noise(4, 2, 3, seed=1) * 0.3, noise(2, 3, seed=2), torch.tensor(0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"v_threshold": torch.ones(4)}, r"4 channels.*\[2, 3, 4\]"),
    ({"residual": torch.ones(5, 2, 3)}, r"residual has shape \[5, 2, 3\], x_seq \[5, 2, 3, 4\]"),
    ({"state": (torch.ones(2, 3),)}, r"state of IF is v, each of shape \[2, 3, 4\], got \[\[2, 3\]\]"),
    ({"output": "mean"}, "output must be one of sequence, sum, both"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.multi_step_neuron(torch.ones(5, 2, 3, 4), codings.IF(), **arguments)


@pytest.mark.parametrize("coding", [codings.Delta(128), codings.Differential(8)], ids=repr)
def test_levels_that_do_not_fit_an_int8_are_an_error(coding):
    with pytest.raises(ValueError, match="int8"):
        ops.multi_step_neuron(torch.ones(5, 2, 3), coding, out_dtype=torch.int8)


def test_no_steps_are_an_error():
    with pytest.raises(ValueError, match="T >= 1"):
        ops.multi_step_neuron(torch.ones(0, 2, 3), codings.IF())


def test_an_unknown_backend_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="one of compiled, cpu, triton, reference"), ops.use_backend("cuda"):
        pass


def test_importing_the_neurons_imports_no_triton():
    code = "import sys, snnzoo.neuron, snnzoo.conversion; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
