"""Habits of classic SpikingJelly code that a neuron must honour, where another answer would be wrong without a word."""

import pytest
import torch
from torch import nn

import snnzoo
from helpers import firing
from snnzoo import base, functional, layer, neuron, ops, surrogate
from snnzoo.errors import UsageError
from snnzoo.ops import memory


class Decaying(neuron.BaseNode):
    """Brings a charge of its own, the classic way."""

    def neuronal_charge(self, x):
        self.v = self.v * 0.5 + x


class Doubled(neuron.LIFNode):
    """Fires twos."""

    def neuronal_fire(self):
        return 2 * super().neuronal_fire()


class Draining(neuron.IFNode):
    """Loses half its potential with a spike."""

    def neuronal_reset(self, spike):
        self.v = self.v - 0.5 * spike * self.v


def by_hand(x_seq, charge, reset, unit=1.0):
    v, outputs = torch.zeros_like(x_seq[0]), []
    for x in x_seq:
        v = charge(v, x)
        s = unit * (v >= 1).to(v)
        v = reset(v, s)
        outputs.append(s)
    return torch.stack(outputs)


@pytest.mark.parametrize(("node", "equations"), [
    (Decaying, (lambda v, x: v * 0.5 + x, lambda v, s: (1 - s) * v)),
    (Doubled, (lambda v, x: v + (x - v) / 2, lambda v, s: (1 - s) * v, 2.0)),
    (Draining, (lambda v, x: v + x, lambda v, s: v - 0.5 * s * v)),
])  # fmt: skip
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_step_that_a_subclass_replaces_is_what_runs(node, equations, step_mode):
    x_seq = torch.rand(8, 4, 5, dtype=torch.float64) * 2
    made = node(step_mode=step_mode)
    actual = made(x_seq) if step_mode == "m" else torch.stack([made(x) for x in x_seq])
    assert torch.equal(actual, by_hand(x_seq, *equations))


def test_a_step_that_an_instance_replaces_is_what_runs():
    node = neuron.IFNode()
    node.neuronal_fire = lambda: torch.ones_like(node.v)
    assert node(torch.zeros(3)).tolist() == [1, 1, 1]


def test_neurons_with_steps_of_their_own_have_no_fast_form_and_say_so():
    net = snnzoo.create_model("resnet20", neuron=Draining)
    with pytest.raises(UsageError, match=r"Draining replaces a step.*charge\(v, x\)"):
        snnzoo.prepare_for_inference(net)


def test_a_neuron_without_a_charge_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="neither a neuronal_charge nor a charge"):
        neuron.BaseNode()(torch.rand(3))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_potential_that_is_assigned_is_where_the_neuron_starts(step_mode):
    x = torch.tensor([[0.2, 0.05]])
    for value in (0.9, torch.tensor(0.9), torch.full((1, 2), 0.9)):
        node = neuron.IFNode(step_mode=step_mode)
        node.v = value
        spikes = node(x) if step_mode == "s" else node(x.unsqueeze(0))[0]
        assert spikes.tolist() == [[1.0, 0.0]]
    node.reset()
    assert node.v == 0.0


def test_the_initial_value_of_a_state_survives_changes_in_place_and_can_be_set():
    class Counter(base.MemoryModule):
        def __init__(self):
            super().__init__()
            self.register_memory("count", torch.zeros(2))
            self.register_memory("seen", [])

    counter = Counter()
    counter.count += 1
    counter.seen.append(1)
    counter.reset()
    assert counter.count.tolist() == [0, 0]
    assert counter.seen == []
    counter.set_reset_value("count", torch.ones(2))
    counter.reset()
    assert dict(counter.named_memories())["count"].tolist() == [1, 1]
    assert counter.double().count.dtype == torch.float64
    counter.reset()
    assert counter.count.dtype == torch.float64


def test_detaching_cuts_the_graph_between_calls():
    node = neuron.LIFNode()
    first, second = (torch.rand(4, requires_grad=True) for _ in range(2))
    node(first)
    node.detach()
    node(second).sum().backward()
    assert first.grad is None
    assert second.grad is not None


@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_neuron_with_an_infinite_threshold_integrates_and_its_potential_learns(node, v_reset, backend):
    x_seq = torch.rand(5, 2, 3, requires_grad=True)
    silent = node(v_threshold=float("inf"), v_reset=v_reset, step_mode="m", store_v_seq=True)
    with ops.use_backend(backend):
        spikes = silent(x_seq)
        silent.v.sum().backward()
    assert not spikes.any()
    leak = 0.0 if node is neuron.IFNode else 0.5
    expected = torch.zeros(2, 3)
    for x in x_seq:
        expected = expected * (1 - leak) + x * (leak or 1)
    torch.testing.assert_close(silent.v, expected)
    torch.testing.assert_close(silent.v_seq[-1], expected)
    slopes = [(leak or 1.0) * (1 - leak) ** (4 - t) for t in range(5)]
    torch.testing.assert_close(x_seq.grad[:, 0, 0], torch.tensor(slopes))


def test_any_threshold_that_broadcasts_may_be_assigned():
    x_seq = torch.rand(6, 4, 3) * 2
    for theta in (torch.tensor(0.7), torch.rand(4, 3) + 0.5, torch.rand(3) + 0.5):
        node = neuron.IFNode(v_reset=None, step_mode="m")
        node.v_threshold = theta
        alone = neuron.IFNode(v_reset=None)
        expected = torch.zeros(6, 4, 3)
        for n in range(4):
            for c in range(3):
                alone.v_threshold = theta.expand(4, 3)[n, c].item()
                alone.reset()
                expected[:, n, c] = torch.stack([alone(x) for x in x_seq[:, n, c].unsqueeze(1)]).flatten()
        assert torch.equal(node(x_seq), expected)


def test_a_scalar_threshold_learns():
    node = neuron.MultiStepIFNode()
    del node.v_threshold
    node.v_threshold = nn.Parameter(torch.tensor(1.0))
    node(torch.rand(4, 2, 3)).sum().backward()
    assert node.v_threshold.grad.abs() > 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_outputs_may_be_changed_in_place_and_gradients_stay_exact(memory_format, step_mode):
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    grads = []
    for in_place in (True, False):
        node = neuron.LIFNode(step_mode=step_mode)
        y = node(x if step_mode == "s" else x.expand(3, *x.shape))
        if in_place:
            y += x
            y *= 2
            nn.ReLU(inplace=True)(y)
        else:
            y = torch.relu(2 * (y + x))
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 2), (3, 0, 4), (3, 2, 4, 5, 6)])
def test_new_sequences_lie_like_the_input_and_are_no_views(shape):
    for x_seq in (torch.rand(shape), torch.rand(shape).transpose(1, -1)):
        order = memory.memory_order(x_seq)
        out = order.empty(x_seq, torch.float32, 3)
        assert out.shape == x_seq.shape
        assert out._base is None
        if x_seq[0].numel():
            assert memory.memory_order(out).order == order.order
        assert order.empty(x_seq, torch.float32).shape == x_seq.shape[1:]


def test_the_default_surrogate_is_the_classic_one_and_the_second_dropout_drops_half():
    for name in ("IFNode", "LIFNode", "ParametricLIFNode", "MultiStepIFNode", "MultiStepLIFNode"):
        function = getattr(neuron, name)().surrogate_function
        assert isinstance(function, surrogate.Sigmoid)
        assert function.alpha == 4.0
    assert layer.MultiStepDropout2d().p == 0.5
    assert layer.Dropout2d().p == 0.2


class Spy(neuron.IFNode):
    def forward(self, x):
        self.seen = x.shape
        return super().forward(x)


@pytest.mark.parametrize(("name", "first"), [("resnet18", "sn1"), ("vgg11_bn", "features.2.sn")])
@pytest.mark.parametrize("pool_first", [True, False])
def test_pools_run_before_or_behind_the_neuron_in_both_modes_and_in_the_fast_form(name, first, pool_first):
    size = {} if name == "resnet18" else {"hidden_features": 16}
    net = firing(snnzoo.create_model(name, neuron=Spy, num_classes=5, pool_first=pool_first, **size))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_()
    x_seq = torch.randn(3, 2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        logits = net(x_seq)
        pixels = net.get_submodule(first).seen[-1]
        fast = snnzoo.prepare_for_inference(net, dtype=torch.float64)(x_seq)
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        stepped = torch.stack([net(x) for x in x_seq])
    before = 32 if name == "resnet18" else 64
    assert pixels == (before // 2 if pool_first else before)
    assert logits.abs().max() > 0
    torch.testing.assert_close(stepped, logits)
    torch.testing.assert_close(fast, logits)


def test_the_order_of_pools_does_not_change_an_ann_but_does_change_a_spiking_network():
    weights = firing(snnzoo.create_model("resnet18", neuron=nn.ReLU, num_classes=5)).state_dict()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs = {}
    for kind in (nn.ReLU, neuron.IFNode):
        for pool_first in (True, False):
            net = snnzoo.create_model("resnet18", neuron=kind, num_classes=5, pool_first=pool_first).double().eval()
            net.load_state_dict(weights)
            with torch.inference_mode():
                outputs[kind, pool_first] = net(x.expand(4, *x.shape))
    assert torch.equal(outputs[nn.ReLU, True], outputs[nn.ReLU, False])
    assert not torch.allclose(outputs[neuron.IFNode, True], outputs[neuron.IFNode, False], atol=1e-3)


@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, Draining])
def test_potentials_of_all_steps_are_kept_where_asked_for(node):
    x_seq = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    node, single = node(step_mode="m", store_v_seq=True).double(), node().double()
    node(x_seq)
    spikes = node(x_seq)
    potentials = []
    for x in torch.cat([x_seq, x_seq]):
        single(x)
        potentials.append(single.v)
    torch.testing.assert_close(node.v_seq, torch.stack(potentials[6:]))
    assert torch.equal(node.spike_seq, spikes)
    torch.testing.assert_close(node.v, single.v)
    assert torch.autograd.grad(node.v_seq.sum(), x_seq)[0].abs().sum() > 0
    node.reset()
    assert node.v_seq is None


def test_potentials_that_were_not_asked_for_say_how():
    node = neuron.LIFNode(step_mode="m")
    node(torch.rand(3, 2))
    with pytest.raises(UsageError, match="store_v_seq"):
        _ = node.v_seq
    multi = neuron.MultiStepLIFNode()
    multi(torch.rand(3, 2))
    assert multi.v_seq.shape == (3, 2)
