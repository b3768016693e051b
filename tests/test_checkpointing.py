"""Gradient checkpointing of blocks with neurons: `torch.utils.checkpoint` calls them again in the backward pass."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnzoo import functional, layer, neuron

NODES = {
    "if": lambda mode: neuron.IFNode(v_reset=None, step_mode=mode),
    "plif": lambda mode: neuron.ParametricLIFNode(step_mode=mode),
    "stores v_seq": lambda mode: neuron.LIFNode(store_v_seq=True, step_mode=mode),
}
X_SEQ = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def block(kind, mode="m", dropout=True):
    torch.manual_seed(0)
    between = layer.Dropout(0.2) if dropout else nn.Identity()
    return nn.Sequential(nn.Linear(6, 6), NODES[kind](mode), between, nn.Linear(6, 6), NODES[kind](mode)).double()


def gradients(net, run, calls):
    """Of parameters and the input, after `calls` sequences of their own, one backward pass for all; and the state."""
    x_seq, loss = X_SEQ.clone().requires_grad_(), 0
    torch.manual_seed(1)
    for call in range(1, calls + 1):
        functional.reset_net(net)
        loss = loss + (run(net, x_seq * call) * torch.arange(1, 7)).sum()
    state = [net[1].v.clone(), net[4].v.clone()]
    loss.backward()
    assert torch.equal(net[1].v, state[0])
    assert torch.equal(net[4].v, state[1])
    return [x_seq.grad, *(p.grad for p in net.parameters()), *state]


@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("calls", [1, 2])
def test_gradients_and_state_are_those_without_it(kind, use_reentrant, calls):
    dropout = calls == 1  # a reset forgets its mask
    want = gradients(block(kind, dropout=dropout), lambda net, x_seq: net(x_seq), calls)
    net = block(kind, dropout=dropout)
    for _ in range(2):
        net.zero_grad()
        got = gradients(net, lambda net, x_seq: checkpoint(net, x_seq, use_reentrant=use_reentrant), calls)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_sequence_in_several_calls_is_refused(use_reentrant):
    net = block("if")
    functional.reset_net(net)
    outputs = [checkpoint(net, x.requires_grad_(), use_reentrant=use_reentrant) for x in X_SEQ.clone().split(2)]
    functional.reset_net(net)
    with pytest.raises(RuntimeError, match=r"IFNode again.*all time steps in one call.*reset_net"):
        outputs[-1].sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_steps_one_by_one_are_refused(use_reentrant):
    net = block("plif", "s")

    def loop(x_seq):
        return functional.multi_step_forward(x_seq, net)

    y_seq = checkpoint(loop, X_SEQ.clone().requires_grad_(), use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match="ParametricLIFNode again"):
        y_seq.sum().backward()


def test_a_network_that_was_run_step_by_step_may_be_checkpointed_later():
    net = block("if")
    functional.set_step_mode(net, "s")
    net(X_SEQ[0])
    net(X_SEQ[1])
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    checkpoint(net, X_SEQ.clone().requires_grad_(), use_reentrant=False).sum().backward()
    assert net[0].weight.grad.abs().sum() > 0
