"""The classic propagation tutorial, and what holds for both patterns."""

import pytest
import torch
from torch import nn

from snnzoo import functional, layer, neuron


def test_a_multi_step_container_equals_eight_single_steps():
    x = torch.rand([8, 4])
    node = neuron.IFNode()
    expected = torch.stack([node(x[t]) for t in range(8)])
    container = layer.MultiStepContainer(neuron.IFNode())
    assert torch.equal(container(x), expected)
    assert torch.equal(functional.multi_step_forward(x, neuron.IFNode()), expected)


def test_a_seq_to_ann_container_keeps_time_and_batch():
    x = torch.rand([16, 8, 4])
    container = layer.SeqToANNContainer(nn.Linear(4, 2), nn.Linear(2, 3))
    assert container(x).shape == (16, 8, 3)
    torch.testing.assert_close(container(x)[5], container[1](container[0](x[5])))


PLAIN = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_the_step_by_step_network_has_plain_keys():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), neuron.IFNode())
    assert list(net.state_dict()) == PLAIN


def test_containers_rename_keys():
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)), neuron.MultiStepIFNode()
    )
    assert list(net.state_dict()) == ["0." + key for key in PLAIN]


class NetStepByStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.sn = neuron.IFNode()

    def forward(self, x):
        return self.sn(self.bn(self.conv(x)))


class NetLayerByLayer1(NetStepByStep):
    def forward(self, x_seq):
        x_seq = functional.seq_to_ann_forward(x_seq, [self.conv, self.bn])
        return functional.multi_step_forward(x_seq, self.sn)


class NetLayerByLayer2(NetStepByStep):
    def __init__(self):
        super().__init__()
        del self.sn
        self.sn = neuron.MultiStepIFNode()

    def forward(self, x_seq):
        return self.sn(functional.seq_to_ann_forward(x_seq, (self.conv, self.bn)))


def test_the_three_networks_have_equal_keys_load_each_other_and_agree():
    nets = [NetStepByStep().eval(), NetLayerByLayer1().eval(), NetLayerByLayer2().eval()]
    for net in nets:
        for other in nets:
            assert list(net.state_dict()) == list(other.state_dict())
            net.load_state_dict(other.state_dict(), strict=True)
    x_seq = torch.randn(6, 2, 1, 8, 8, dtype=torch.float64)
    step_by_step = torch.stack([nets[0].double()(x) for x in x_seq])
    assert step_by_step.sum() > 0
    assert torch.equal(nets[1].double()(x_seq), step_by_step)
    assert torch.equal(nets[2].double()(x_seq), step_by_step)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: [m], lambda m: (m,), lambda m: nn.Sequential(m)])
@pytest.mark.parametrize("forward", [functional.seq_to_ann_forward, functional.multi_step_forward])
def test_both_forwards_take_a_module_a_list_a_tuple_or_a_sequential(forward, wrap):
    linear, x_seq = nn.Linear(4, 2), torch.rand(5, 3, 4)
    torch.testing.assert_close(forward(x_seq, wrap(linear)), linear(x_seq))


class Counter(nn.Identity):
    """Counts the samples that pass."""

    samples = 0

    def forward(self, x):
        self.samples += len(x)
        return x


class OwnLayer(nn.Module):
    def forward(self, x):
        return x + 1


ONCE, EVERY_STEP = 3, 7 * 3  # samples of T = 7, N = 3


@pytest.mark.parametrize(("module", "training", "samples"), [
    (nn.Conv2d(2, 2, 3), True, ONCE),
    (nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), True, ONCE),
    (nn.BatchNorm2d(2), False, ONCE),
    (nn.BatchNorm2d(2), True, EVERY_STEP),
    (nn.Dropout(0.5), False, ONCE),
    (nn.Dropout(0.5), True, EVERY_STEP),
    (nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(nn.Dropout2d(0.5))), True, EVERY_STEP),
    (OwnLayer(), False, ONCE),
    (OwnLayer(), True, EVERY_STEP),
], ids=str)  # fmt: skip
def test_a_stride_0_time_axis_is_computed_once_through_deterministic_modules_only(module, training, samples):
    x = torch.rand(3, 2, 6, 6)
    counter = Counter().eval()
    module.train(training)
    y_seq = functional.seq_to_ann_forward(x.expand(7, *x.shape), [counter, module])
    assert counter.samples == samples
    assert y_seq.shape[:2] == (7, 3)
    if samples == ONCE:
        assert y_seq.stride(0) == 0
        torch.testing.assert_close(y_seq[6], module(x))


def test_dropout_in_training_mode_differs_between_steps_of_a_static_input():
    x = torch.ones(2, 100)
    y_seq = functional.seq_to_ann_forward(x.expand(4, *x.shape), nn.Dropout(0.5))
    assert not torch.equal(y_seq[0], y_seq[1])


def test_batch_statistics_are_those_of_the_whole_sequence():
    bn, x = nn.BatchNorm1d(5), torch.randn(3, 5)
    reference = nn.BatchNorm1d(5)
    functional.seq_to_ann_forward(x.expand(4, *x.shape), bn)
    reference(x.repeat(4, 1))
    torch.testing.assert_close(bn.running_var, reference.running_var)


def test_gradients_through_a_static_input_are_those_of_the_repeated_one():
    linear, x = nn.Linear(4, 2).double(), torch.rand(3, 4, dtype=torch.float64)
    weights = torch.rand(5, 3, 2, dtype=torch.float64)
    grads = []
    for x_seq in (x.expand(5, *x.shape), x.repeat(5, 1, 1)):
        loss = (functional.seq_to_ann_forward(x_seq, linear) * weights).sum()
        grads.append(torch.autograd.grad(loss, linear.weight)[0])
    torch.testing.assert_close(*grads)


def test_set_step_mode_reaches_neurons_but_not_the_inside_of_containers():
    net = nn.Sequential(neuron.IFNode(), nn.Sequential(layer.Dropout()), layer.MultiStepContainer(neuron.IFNode()))
    functional.set_step_mode(net, "m")
    assert (net[0].step_mode, net[1][0].step_mode, net[2][0].step_mode) == ("m", "m", "s")
    x_seq = torch.rand(4, 2, 3)
    assert net(x_seq).shape == x_seq.shape


def test_reset_net_resets_every_stateful_module():
    net = nn.Sequential(neuron.IFNode(), neuron.LIFNode(), layer.Dropout())
    net(torch.rand(2, 3))
    functional.reset_net(net)
    assert (net[0].v, net[1].v, net[2].mask) == (0.0, 0.0, None)


def test_a_sequence_without_batch_axis_is_an_error_that_shows_the_shape():
    with pytest.raises(ValueError, match=r"\[T, N, \.\.\.\].*\[4\]"):
        functional.seq_to_ann_forward(torch.rand(4), nn.Identity())


@pytest.mark.parametrize("dropout", [layer.Dropout(0.5), layer.Dropout2d(0.5)])
def test_dropout_holds_one_scaled_mask_until_reset(dropout):
    x = torch.ones(8, 64, 2, 2)
    first = dropout(x)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropout(x), first)
    dropout.reset()
    assert not torch.equal(dropout(x), first)


@pytest.mark.parametrize("dropout", [layer.MultiStepDropout(), layer.MultiStepDropout2d(0.5)])
def test_multi_step_dropout_holds_its_mask_over_time(dropout):
    y_seq = dropout(torch.ones(5, 8, 32, 2, 2))
    assert all(torch.equal(y, y_seq[0]) for y in y_seq)
    assert (y_seq == 0).any()


def test_dropout2d_drops_whole_channels():
    y = layer.Dropout2d(0.5)(torch.ones(4, 16, 3, 3))
    assert torch.equal(y.amin((2, 3)), y.amax((2, 3)))


def test_dropout_is_the_identity_in_eval_mode():
    x = torch.rand(4, 4)
    assert layer.Dropout().eval()(x) is x


def test_dropout_says_to_reset_when_the_batch_size_changes():
    dropout = layer.Dropout()
    dropout(torch.rand(4, 4))
    with pytest.raises(ValueError, match="reset_net"):
        dropout(torch.rand(5, 4))


def test_classic_dropout_probabilities():
    assert (layer.Dropout().p, layer.Dropout2d().p, layer.MultiStepDropout().p) == (0.5, 0.2, 0.5)


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_readout_gives_the_mean_or_sum_so_far_also_across_calls_and_step_by_step(kind):
    x_seq = torch.rand(6, 2, 3, dtype=torch.float64)
    steps = torch.arange(1, 7, dtype=torch.float64).view(6, 1, 1)
    expected = x_seq.cumsum(0) / (steps if kind == "mean" else 1)
    multi, single = layer.Readout(kind, "m"), layer.Readout(kind)
    torch.testing.assert_close(torch.cat([multi(x_seq[:2]), multi(x_seq[2:])]), expected)
    torch.testing.assert_close(torch.stack([single(x) for x in x_seq]), expected)


def test_readout_with_a_lead_adds_the_step_itself_once_more():
    x_seq = torch.rand(6, 2, 3, dtype=torch.float64)
    expected = x_seq.cumsum(0) + 0.4 * x_seq
    multi, single = layer.Readout("sum", "m", extrapolation=0.4), layer.Readout("sum", extrapolation=0.4)
    torch.testing.assert_close(torch.cat([multi(x_seq[:2]), multi(x_seq[2:])]), expected)
    torch.testing.assert_close(torch.stack([single(x) for x in x_seq]), expected)
    with pytest.raises(ValueError, match="only a sum is extrapolated"):
        layer.Readout("mean", extrapolation=0.4)
