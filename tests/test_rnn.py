"""Recurrent networks that fire, against torch.nn's."""

import itertools

import pytest
import torch
from torch import nn

from snnzoo import functional, rnn, surrogate

KINDS = {
    "vanilla": (rnn.SpikingVanillaRNN, rnn.SpikingVanillaRNNCell, nn.RNN, nn.RNNCell),
    "gru": (rnn.SpikingGRU, rnn.SpikingGRUCell, nn.GRU, nn.GRUCell),
    "lstm": (rnn.SpikingLSTM, rnn.SpikingLSTMCell, nn.LSTM, nn.LSTMCell),
}
ORIGINAL = {
    "vanilla": {"hidden": torch.tanh},
    "gru": {"reset": torch.sigmoid, "update": torch.sigmoid, "new": torch.tanh},
    "lstm": {"input": torch.sigmoid, "forget": torch.sigmoid, "cell": torch.tanh, "output": torch.sigmoid}
    | {"hidden": torch.tanh},
}
SHAPES = list(itertools.product((1, 3), (True, False), (True, False)))  # layers, bias, bidirectional


def assert_equal(actual, expected):
    """Tensors, or nested tuples of them."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_equal(a, b)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def state_of(kind, *shape):
    h, c = torch.randn(2, *shape, dtype=torch.float64).unbind()
    return (h, c) if kind == "lstm" else h


@pytest.mark.parametrize(("layers", "bias", "bidirectional"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_torchs_in_names_order_shapes_and_initial_values(kind, layers, bias, bidirectional):
    ours_class, _, theirs_class, _ = KINDS[kind]
    nets = []
    for make in (ours_class, theirs_class):
        torch.manual_seed(3)
        nets.append(make(5, 7, layers, bias=bias, bidirectional=bidirectional))
    ours, theirs = (net.state_dict() for net in nets)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    nets[0].load_state_dict(theirs, strict=True)
    nets[1].load_state_dict(ours, strict=True)


@pytest.mark.parametrize(("layers", "bias", "bidirectional"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_original_functions_outputs_and_state_equal_torchs(kind, layers, bias, bidirectional):
    ours_class, _, theirs_class, _ = KINDS[kind]
    theirs = theirs_class(5, 7, layers, bias=bias, bidirectional=bidirectional).double()
    ours = ours_class(5, 7, layers, bias=bias, bidirectional=bidirectional, gate_functions=ORIGINAL[kind]).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x_seq = torch.randn(6, 3, 5, dtype=torch.float64)
    assert_equal(ours(x_seq), theirs(x_seq))
    state = state_of(kind, layers * (2 if bidirectional else 1), 3, 7)
    assert_equal(ours(x_seq, state), theirs(x_seq, state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells_equal_torchs_cells(kind, bias):
    _, ours_class, _, theirs_class = KINDS[kind]
    theirs = theirs_class(5, 7, bias=bias).double()
    ours = ours_class(5, 7, bias=bias, gate_functions=ORIGINAL[kind]).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, state = torch.randn(3, 5, dtype=torch.float64), state_of(kind, 3, 7)
    assert_equal(ours(x), theirs(x))
    assert_equal(ours(x, state), theirs(x, state))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_equals_its_cell_step_by_step(kind):
    whole_class, cell_class, _, _ = KINDS[kind]
    whole, cell = whole_class(5, 7).double(), cell_class(5, 7).double()
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in whole.state_dict().items()})
    x_seq = torch.randn(9, 4, 5, dtype=torch.float64)
    output, final = whole(x_seq)
    state, outputs = None, []
    for x in x_seq:
        state = cell(x, state)
        outputs.append(state[0] if kind == "lstm" else state)
    assert torch.equal(output, torch.stack(outputs))
    assert_equal(final, tuple(s.unsqueeze(0) for s in state) if kind == "lstm" else state.unsqueeze(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_two_pieces_equals_it_in_one(kind):
    net = KINDS[kind][0](5, 7, num_layers=2)
    x_seq = torch.randn(8, 4, 5)
    output, final = net(x_seq)
    first, state = net(x_seq[:3])
    second, state = net(x_seq[3:], state)
    assert_equal((torch.cat([first, second]), state), (output, final))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_binary_and_both_values_occur(kind):
    torch.manual_seed(0)
    net = KINDS[kind][0](5, 16, num_layers=2, bidirectional=True)
    output, _ = net(torch.randn(20, 4, 5))
    assert output.shape == (20, 4, 32)
    assert set(output.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_surrogate_gradient(kind):
    torch.manual_seed(0)
    net = KINDS[kind][0](5, 8, num_layers=2, bidirectional=True, dropout=0.2)
    net(torch.randn(12, 4, 5))[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


class Recorded(surrogate.Sigmoid):
    """Counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("kind", KINDS)
def test_each_gate_may_have_a_surrogate_of_its_own(kind):
    for gate in ORIGINAL[kind]:
        own, common = Recorded(), Recorded()
        net = KINDS[kind][0](5, 7, surrogate_function=common, gate_functions={gate: own})
        net(torch.randn(6, 2, 5))
        assert own.calls == 6
        assert common.calls == 6 * (len(ORIGINAL[kind]) - 1)
        assert not [key for key in net.state_dict() if "function" in key]


def test_dropout_lies_between_layers_and_holds_for_all_steps():
    identity = {"hidden": torch.nn.Identity()}
    net = rnn.SpikingVanillaRNN(2, 64, num_layers=2, dropout=0.5, gate_functions=identity)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.zero_()
            if name == "bias_ih_l0":
                parameter.fill_(1.0)
            if name == "weight_ih_l1":
                parameter.copy_(torch.eye(64))
    x_seq = torch.zeros(5, 3, 2)
    first, again = net(x_seq)[0], net(x_seq)[0]
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert all(torch.equal(step, first[0]) for step in first)
    assert not torch.equal(first, again)
    assert torch.equal(net.eval()(x_seq)[0], torch.ones(5, 3, 64))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: rnn.SpikingGRU(4, 8)(torch.rand(5, 4)), r"SpikingGRU needs x_seq of shape \[T, N, 4\], got \[5, 4\]"),
    (lambda: rnn.SpikingGRU(4, 8)(torch.rand(5, 2, 3)), r"\[T, N, 4\], got \[5, 2, 3\]"),
    (lambda: rnn.SpikingGRUCell(4, 8)(torch.rand(4)), r"SpikingGRUCell needs x of shape \[N, 4\], got \[4\]"),
    (lambda: rnn.SpikingGRU(4, 8)(torch.rand(5, 2, 4), torch.rand(1, 3, 8)), r"initial h must have shape \[1, 2, 8\]"),
    (lambda: rnn.SpikingLSTM(4, 8)(torch.rand(5, 2, 4), (torch.rand(1, 2, 8), torch.rand(2, 8))), "initial c must"),
    (lambda: rnn.SpikingGRU(4, 8, gate_functions={"forget": torch.sigmoid}), "no gate 'forget', only reset, update"),
    (lambda: rnn.SpikingGRU(4, 0), "hidden_size must be at least 1"),
    (lambda: rnn.SpikingGRU(4, 8, num_layers=0), "num_layers must be at least 1"),
    (lambda: rnn.SpikingGRU(4, 8, dropout=1.0), r"dropout must be in \[0, 1\)"),
])  # fmt: skip
def test_what_does_not_fit_is_an_error_that_says_what_would(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_wrong_step_mode_is_an_error_that_names_the_other_class():
    whole, cell = rnn.SpikingLSTM(4, 8), rnn.SpikingLSTMCell(4, 8)
    functional.set_step_mode(whole, "s")
    functional.set_step_mode(cell, "m")
    with pytest.raises(ValueError, match="use SpikingLSTMCell for single steps"):
        whole(torch.rand(3, 2, 4))
    with pytest.raises(ValueError, match=r"takes single steps.*use SpikingLSTM"):
        cell(torch.rand(2, 4))


def test_training_learns_to_remember_the_first_step():
    torch.manual_seed(0)
    net, read = rnn.SpikingLSTM(1, 24), nn.Linear(24, 2)
    optimizer = torch.optim.Adam([*net.parameters(), *read.parameters()], lr=1e-2)
    x_seq = torch.randn(6, 64, 1)
    labels = (x_seq[0, :, 0] > 0).long()
    losses = []
    for _ in range(80):
        loss = nn.functional.cross_entropy(read(net(x_seq)[0][-1]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
