import pytest
import torch

from snnzoo import encoding


def test_a_poisson_encoder_fires_at_the_rate_of_its_input():
    x = torch.tensor([0.0, 0.25, 1.0])
    rates = torch.stack([encoding.PoissonEncoder()(x) for _ in range(2000)]).mean(0)
    assert rates[0] == 0
    assert rates[2] == 1
    assert rates[1].item() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(("function", "times"), [("linear", [8, 4, 0]), ("log", [8, 1, 0])])
def test_a_latency_encoder_fires_once_a_period_and_the_larger_the_earlier(function, times):
    encoder = encoding.LatencyEncoder(9, function)
    x = torch.tensor([0.0, 0.5, 1.0])
    period = torch.stack([encoder(x) for _ in range(9)])
    assert period.sum(0).tolist() == [1, 1, 1]
    assert period.argmax(0).tolist() == times
    assert torch.equal(torch.stack([encoder() for _ in range(9)]), period)


def test_a_weighted_phase_encoder_sends_binary_digits():
    encoder = encoding.WeightedPhaseEncoder(4)
    x = torch.tensor([0.0, 0.5, 0.6875, 1 - 1 / 16])
    digits = torch.stack([encoder(x) for _ in range(4)])
    assert torch.equal((digits * torch.tensor([0.5, 0.25, 0.125, 0.0625]).unsqueeze(1)).sum(0), x)
    encoder.reset()
    with pytest.raises(ValueError, match=r"\[0, 1 - 2\^-4\]"):
        encoder(torch.ones(1))


def test_a_periodic_encoder_goes_on_and_starts_anew_after_a_reset():
    spikes = torch.tensor([[1.0], [0.0], [0.0]])
    encoder = encoding.PeriodicEncoder(spikes)
    assert [encoder().item() for _ in range(4)] == [1, 0, 0, 1]
    encoder.reset()
    assert [encoder().item() for _ in range(3)] == [1, 0, 0]


def test_arguments_out_of_range_are_errors():
    with pytest.raises(ValueError, match="T must be at least 1"):
        encoding.LatencyEncoder(0)
    with pytest.raises(ValueError, match="'linear' or 'log'"):
        encoding.LatencyEncoder(4, "cosine")
    with pytest.raises(ValueError, match="nothing to send"):
        encoding.LatencyEncoder(4)()
