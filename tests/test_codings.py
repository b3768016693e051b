"""Codings as data, and what a coding or a surrogate from outside the package gets: every way to run, equal spikes."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import codings, functional, neuron, ops, surrogate
from snnzoo.codings import activations
from snnzoo.conversion.recipes import Recipe, make_recipe
from snnzoo.converted_node import ConvertedNode
from snnzoo.errors import CheckpointError, UsageError

ACTIVATIONS = {
    activations.ReLU(): torch.relu,
    activations.Clamp(0.0, 6.0): nn.ReLU6(),
    activations.Clamp(-1.0, 1.0): nn.Hardtanh(),
    activations.LeakyReLU(0.2): nn.LeakyReLU(0.2),
    activations.SiLU(): nn.SiLU(),
    activations.Hardswish(): nn.Hardswish(),
    activations.Sigmoid(): nn.Sigmoid(),
    activations.Hardsigmoid(): nn.Hardsigmoid(),
    activations.GELU(): nn.GELU(),
    activations.GELU("tanh"): nn.GELU("tanh"),
    activations.ELU(0.7): nn.ELU(0.7),
}


@dataclasses.dataclass(frozen=True)
class Floor(codings.Coding):
    """From outside: integrate-and-fire with soft reset from v = `start` * theta."""

    start: float = 0.25

    name = "floor"
    state = ("v",)
    signed = False
    differentiable = False

    def initial(self, theta):
        return self.start * theta

    def step(self, x, state, theta, t, activation):
        v = state[0] + x
        spikes = (v >= theta).to(v.dtype)
        return spikes, spikes * theta, (v - spikes * theta,)


@pytest.fixture
def floor(monkeypatch):
    monkeypatch.setitem(codings.CODINGS, "floor", Floor)
    return Floor()


def test_a_coding_from_outside_converts_saves_loads_and_runs_equally_in_every_way(floor, tmp_path):
    torch.manual_seed(0)
    ann = (
        shake_batch_norm(snnzoo.create_model("resnet20", num_classes=4, neuron=nn.ReLU, step_mode="s")).double().eval()
    )
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64)
    net = snnzoo.convert(ann, images, Recipe(floor, threshold="max"), time_steps=4)
    x_seq = torch.rand(4, 2, 3, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        expected = net(x_seq)
        assert expected.std() > 0
        snnzoo.save(net, tmp_path / "net.safetensors")
        loaded = snnzoo.load(tmp_path / "net.safetensors").double()
        assert loaded.conversion.coding == floor
        assert torch.equal(loaded(x_seq), expected)
        functional.reset_net(loaded)
        functional.set_step_mode(loaded, "s")
        step_by_step = torch.stack([loaded(x) for x in x_seq])  # convolutions of fewer images may round differently
        for y_seq in (step_by_step, snnzoo.prepare_for_inference(net)(x_seq)):
            torch.testing.assert_close(y_seq, expected, rtol=1e-9, atol=1e-9)
        functional.reset_net(net)
    node, compiled = (ConvertedNode(floor, torch.tensor([0.5, 0.7, 1.0]), 0.1, step_mode="m") for _ in range(2))
    torch._dynamo.reset()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x_seq), node(x_seq))


def test_a_recipe_knows_a_coding_from_outside_by_its_name(floor):
    assert make_recipe("floor", start=0.5).coding == Floor(0.5)
    with pytest.raises(UsageError, match="no option 'levels', only start, threshold"):
        make_recipe("floor", levels=3)


class Flat(surrogate.SurrogateFunctionBase):
    """From outside: a gradient of `alpha` everywhere."""

    @staticmethod
    def gradient_function(x, alpha):
        return torch.full_like(x, alpha)


def test_a_surrogate_from_outside_gives_equal_spikes_and_its_gradient_in_every_way():
    x_seq, results = torch.randn(5, 2, 3) + 0.3, []

    def run(forward, name=None):
        x = x_seq.clone().requires_grad_()
        if name is None:
            spikes = forward(x)
        else:
            with ops.use_backend(name):
                spikes = forward(x)
        results.append((spikes.detach(), torch.autograd.grad(spikes.sum(), x)[0]))

    def node(mode="m"):
        return neuron.LIFNode(surrogate_function=Flat(0.3), step_mode=mode)

    single = node("s")
    torch._dynamo.reset()
    run(node())
    run(node(), "reference")
    run(node(), "cpu")
    run(lambda x: torch.stack([single(part) for part in x]))
    run(torch.compile(node(), fullgraph=True, backend="aot_eager"))
    assert results[0][1].count_nonzero() > 0
    for spikes, gradient in results[1:]:
        assert torch.equal(spikes, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize("coding", [
    codings.Rate(), codings.Signed(), codings.Delta(7, 0.3), codings.Differential(5),
], ids=str)  # fmt: skip
def test_codings_come_back_from_json_and_from_numbers(coding):
    assert codings.coding_from_dict(json.loads(json.dumps(coding.to_dict())), "file") == coding
    assert type(coding).from_numbers(coding.numbers()).numbers() == coding.numbers()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, activations.LeakyReLU((0.1, 0.5, 2.0))], ids=str)
def test_activations_come_back_from_json(activation):
    assert codings.activation_from_dict(json.loads(json.dumps(activation.to_dict())), "file") == activation


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_are_those_of_torch_in_place_and_not(activation):
    x = torch.randn(2, 3, 5, dtype=torch.float64) * 4
    expected = ACTIVATIONS[activation](x)
    assert torch.equal(activation(x), expected)
    assert torch.equal(activation(x, out=torch.empty_like(x)), expected)
    assert type(activation).from_numbers(activation.numbers()) == activation


def test_a_slope_for_each_channel_is_that_of_prelu():
    x, prelu = torch.randn(2, 3, 5), nn.PReLU(3)
    prelu.weight.data = torch.tensor([0.1, 0.5, 2.0])
    with torch.no_grad():
        assert torch.equal(activations.LeakyReLU(prelu.weight)(x), prelu(x))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("coding", [codings.Delta(7, 0.5), codings.Differential(8)], ids=str)
def test_refining_codings_close_in_on_any_activation(coding, activation):
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).view(-1, 1)
    z_seq = torch.cat([x.unsqueeze(0), torch.zeros(15, *x.shape, dtype=torch.float64)])
    node = ConvertedNode(coding, 0.5, activation=activation, step_mode="m")
    assert (node(z_seq).sum(0) - activation(x)).abs().max() < 0.01


@pytest.mark.parametrize(("fields", "message"), [
    ({"name": "dleta"}, "unknown coding 'dleta': did you mean delta"),
    ({"name": "delta", "levels": "3"}, "levels must be a int, got '3'"),
    ({"name": "delta", "levels": True}, "levels must be a int"),
    ({"name": "delta", "gamma": float("nan")}, "gamma must be a float"),
    ({"name": "delta", "levels": 0}, "levels must be at least 1"),
    ({"name": "rate", "surrogate": 1}, "no setting 'surrogate'"),
    ({"name": "signed", "levels": 1}, "no setting 'levels', only none"),
])  # fmt: skip
def test_a_damaged_coding_of_a_file_is_an_error_that_names_it(fields, message):
    with pytest.raises(CheckpointError, match=f"net.safetensors: .*{message}"):
        codings.coding_from_dict(fields, "net.safetensors")


def test_a_cap_bounds_what_neurons_that_know_none_may_send():
    cap = activations.Clamp(0.0, 1.0)
    assert ConvertedNode(codings.Rate(), 1.0, activation=cap).v_threshold == 1.0
    with pytest.raises(ValueError, match="above the activation's cap of 1, got"):
        ConvertedNode(codings.Rate(), 1.5, activation=cap)
    with pytest.raises(UsageError, match=r"Signed stands for the relu and its caps only, not for silu"):
        ConvertedNode(codings.Signed(), 1.0, activation=activations.SiLU())


PLAIN = {
    "by subtraction": codings.Plain(),
    "to zero": codings.Plain(to_zero=True),
    "several at once, clipped": codings.Plain(most=7, clipped=True),
    "late": codings.Plain(late=True),
}


def plain_by_hand(coding, inputs, theta):
    """One neuron of the coding, in plain Python."""
    v, sent = 0.0, []
    for x in inputs:
        if coding.late:
            s = 1 if v >= theta else 0
            v = v - s * theta + x
        else:
            v += x
            s = 0
            while v >= theta and s < coding.most:
                s += 1
                v = 0.0 if coding.to_zero else v - theta
        if coding.clipped:
            v = max(v, -theta)
        sent.append(s * theta)
    return sent


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_neurons_are_those_of_their_equations(kind):
    coding, theta = PLAIN[kind], 0.75
    x_seq = torch.randint(-12, 20, (15, 40), generator=torch.Generator().manual_seed(1)).double() / 16  # sums are exact
    node = ConvertedNode(coding, theta, step_mode="m")
    expected = [plain_by_hand(coding, column.tolist(), theta) for column in x_seq.T]
    assert node(x_seq).T.tolist() == expected
    assert coding.from_settings(coding.settings()) == coding == type(coding).from_numbers(coding.numbers())


def test_half_a_threshold_is_spread_over_the_steps_of_neurons_that_start_from_zero():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64)
    for to_zero, share in ((False, 0.5), (True, 0.0)):
        net = snnzoo.convert(ann, images, "plain", time_steps=10, to_zero=to_zero, bias_correction=False)
        neuron = net.neuron(net.sites[0].path)
        torch.testing.assert_close(neuron.bias, neuron.v_threshold * share / 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"most": 0}, "most must be from 1 to 127"), ({"most": 2, "to_zero": True}, "send at most one spike a step")],
)
def test_plain_neurons_that_there_are_not_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        codings.Plain(**settings)
