"""The operator as torch.library sees it: schema, fake and autograd registrations, torch.compile."""

import functools

import pytest
import torch

from snnzoo import codings, neuron, ops, surrogate
from snnzoo.converted_node import ConvertedNode
from snnzoo.ops import operator
from snnzoo.ops.spec import Arguments

CODINGS = {
    "if": codings.IF(None, surrogate=surrogate.Sigmoid()),
    "lif": codings.LIF(-0.25, detach_reset=True, reciprocal_tau=0.3),
    "signed": codings.Signed(),
    "delta": codings.Delta(3, 0.6),
    "differential": codings.Differential(6),
}
NODES = {
    "IFNode": functools.partial(neuron.IFNode, step_mode="m"),
    "LIFNode, soft reset": functools.partial(neuron.LIFNode, v_reset=None, step_mode="m"),
    "ParametricLIFNode": functools.partial(neuron.ParametricLIFNode, step_mode="m"),
    "rate": functools.partial(ConvertedNode, codings.Rate(), torch.tensor([0.5, 1.0, 0.7]), bias=0.1, step_mode="m"),
    "signed": functools.partial(ConvertedNode, codings.Signed(), step_mode="m"),
    "delta": functools.partial(ConvertedNode, codings.Delta(), torch.tensor([0.5, 1.0, 0.7]), step_mode="m"),
    "differential": functools.partial(ConvertedNode, codings.Differential(), step_mode="m"),
}


@pytest.fixture
def op_arguments(monkeypatch):
    """What `operator.call` hands to the operator."""

    def record(*args, **kwargs):
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops.snnzoo, "multi_step_neuron", lambda *given: calls.append(given) or (None,) * 4)
            operator.call(*args, **kwargs)
        return calls[0]

    return record


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("output", ["sequence", "sum", "both"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_registrations_pass_opcheck(op_arguments, coding, output, channels_last):
    coding = CODINGS[coding]
    differentiable = isinstance(coding, codings.IF)
    x_seq = torch.randn(4, 2, 3, 5, 5)
    if channels_last:
        x_seq = x_seq.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x_seq.shape)
    x_seq.requires_grad_(differentiable)
    residual = torch.randn(4, 2, 3, 5, 5, requires_grad=differentiable)
    state = tuple(torch.rand(2, 3, 5, 5, requires_grad=differentiable) for _ in coding.state)
    arguments = Arguments(torch.rand(3) + 0.5, 0.1, residual, state, 2, output, True, torch.float32, True)
    torch.library.opcheck(torch.ops.snnzoo.multi_step_neuron.default, op_arguments(x_seq, coding, arguments))


def test_a_coding_crosses_the_boundary_unchanged():
    for coding in CODINGS.values():
        again = operator.decode(*operator.encode(coding))
        assert type(again) is type(coding)
        assert operator.encode(again) == operator.encode(coding)


@pytest.mark.parametrize("name", NODES)
def test_compiled_nodes_have_no_graph_breaks_and_equal_eager_ones(name):
    torch._dynamo.reset()
    x_seq = torch.randn(5, 2, 3, 4)
    eager, compiled = NODES[name](), NODES[name]()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(run(x_seq), eager(x_seq))
        eager.reset()
        compiled.reset()


def test_compiled_training_equals_eager_training():
    torch._dynamo.reset()
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), neuron.ParametricLIFNode(step_mode="m"))
    x_seq = torch.randn(5, 2, 4)
    gradients = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net[1].reset()
        run(x_seq).sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
        net.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_training_goes_on_behind_neurons_without_a_gradient():
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 3), ConvertedNode(codings.Delta(), step_mode="m"), torch.nn.Linear(3, 2)
    )
    torch.compile(net, fullgraph=True, backend="aot_eager")(torch.randn(5, 2, 4)).sum().backward()
    assert net[2].weight.grad.abs().sum() > 0


def test_custom_surrogates_and_charges_still_work():
    class Leaky(neuron.IFNode):
        def charge(self, v, x):
            return 0.5 * v + x

    x_seq = torch.rand(6, 2, 3)
    expected = neuron.LIFNode(tau=2.0, v_reset=None, decay_input=False, step_mode="m")(x_seq)
    assert torch.equal(Leaky(v_reset=None, step_mode="m")(x_seq), expected)
    x_seq.requires_grad_()
    function = surrogate.ATan()
    outputs = [
        neuron.IFNode(surrogate_function=chosen, step_mode="m")(x_seq) for chosen in (function, lambda x: function(x))
    ]
    one, other = (torch.autograd.grad(output.sum(), x_seq)[0] for output in outputs)
    assert torch.equal(*outputs)
    torch.testing.assert_close(one, other)


def test_learned_thresholds_get_gradients_from_the_reference():
    theta = torch.tensor([0.5, 1.0, 0.7], requires_grad=True)
    ops.multi_step_neuron(torch.rand(4, 2, 3), codings.IF(None), v_threshold=theta).sequence.sum().backward()
    assert theta.grad.abs().min() > 0
