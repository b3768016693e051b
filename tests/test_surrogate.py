import pytest
import torch

from snnzoo import surrogate

SURROGATES = [surrogate.ATan(), surrogate.ATan(0.5), surrogate.Sigmoid(), surrogate.PiecewiseQuadratic()]


@pytest.mark.parametrize("spike", SURROGATES, ids=repr)
def test_forward_is_one_at_and_above_zero(spike):
    x = torch.tensor([-1.0, -1e-6, 0.0, 1e-6, 1.0])
    assert spike(x).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("spike", SURROGATES, ids=repr)
def test_gradient_is_the_derivative_of_the_primitive(spike):
    x = torch.linspace(-3.05, 3.05, 200, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(spike.primitive(x).sum(), x)
    torch.testing.assert_close(spike.gradient(x.detach()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spike", SURROGATES, ids=repr)
def test_backward_uses_the_gradient_and_scales_it(spike):
    x = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad((3 * spike(x)).sum(), x)
    torch.testing.assert_close(actual, 3 * spike.gradient(x.detach()))


@pytest.mark.parametrize("spike", SURROGATES, ids=repr)
def test_primitive_rises_from_zero_to_one_through_a_half(spike):
    y = spike.primitive(torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64))
    torch.testing.assert_close(y, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), atol=1e-5, rtol=0)


def test_defaults_are_the_classic_ones():
    assert surrogate.ATan().alpha == 2.0
    assert surrogate.Sigmoid().alpha == 4.0


def test_alpha_must_be_positive():
    with pytest.raises(ValueError, match="alpha must be positive"):
        surrogate.ATan(0)
