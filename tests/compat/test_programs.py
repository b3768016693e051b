"""Short programs in the vocabulary of public code, each run with the library's names and with ours.

A program gets the namespace that its imports would give it (`neuron`, `layer`, `functional`, `surrogate` ...), and
returns tensors: outputs and gradients, equal in float64.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnzoo.model.sew_resnet
import snnzoo.model.spiking_resnet
import snnzoo.model.spiking_vgg
from snnzoo import base, encoding, functional, layer, monitor, neuron, surrogate

OURS = SimpleNamespace(
    base=base,
    encoding=encoding,
    functional=functional,
    layer=layer,
    model=snnzoo.model,
    monitor=monitor,
    neuron=neuron,
    surrogate=surrogate,
)
PROGRAMS = []


def program(function):
    PROGRAMS.append(function)
    return function


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(net, loss):
    """The loss and all gradients."""
    net.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def small_cnn(sj, **settings):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), sj.neuron.LIFNode(**settings), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * 4 * 4, 5), sj.neuron.LIFNode(**settings),
    ).double()  # fmt: skip


@program
def a_rate_counter_over_time(sj):
    net = small_cnn(sj)
    for t in range(4):
        if t == 0:
            counter = net(images(2, 1, 8, 8))
        else:
            counter += net(images(2, 1, 8, 8, seed=t))
    result = learned(net, F.mse_loss(counter / 4, torch.full((2, 5), 0.5, dtype=torch.float64)))
    sj.functional.reset_net(net)
    return [*result, net(images(2, 1, 8, 8))]


@program
def a_counter_that_begins_at_zero(sj):
    net, counter = small_cnn(sj, v_reset=None), 0.0
    for t in range(4):
        counter += net(images(2, 1, 8, 8, seed=t))
    return learned(net, F.cross_entropy(counter / 4, torch.tensor([0, 3])))


@program
def a_block_of_a_spiking_transformer(sj):
    class Attention(nn.Module):
        def __init__(self, dim=8, heads=2):
            super().__init__()
            self.heads, self.scale = heads, 0.25
            lif = {"tau": 2.0, "detach_reset": True, "backend": "torch"}
            for name in "qkv":
                setattr(self, f"{name}_linear", nn.Linear(dim, dim))
                setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
                setattr(self, f"{name}_lif", sj.neuron.MultiStepLIFNode(**lif))
            self.attn_lif = sj.neuron.MultiStepLIFNode(v_threshold=0.5, **lif)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x):
            T, B, N, C = x.shape
            parts = []
            for name in "qkv":
                y = getattr(self, f"{name}_linear")(x.flatten(0, 1))
                y = getattr(self, f"{name}_bn")(y.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
                y = getattr(self, f"{name}_lif")(y)
                heads = y.reshape(T, B, N, self.heads, C // self.heads)
                parts.append(heads.permute(0, 1, 3, 2, 4).contiguous())
            q, k, v = parts
            attn = (q @ k.transpose(-2, -1)) @ v * self.scale
            return x + self.proj(self.attn_lif(attn.transpose(2, 3).reshape(T, B, N, C).contiguous()))

    net = Attention().double()
    return learned(net, net(images(4, 2, 6, 8)).square().mean())


@program
def a_stem_that_asks_for_another_backend(sj):
    backend = "cupy" if sj is OURS else "torch"  # the library asserts that CuPy is there
    stem = sj.layer.SeqToANNContainer(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double()
    lif = sj.neuron.MultiStepLIFNode(tau=2.0, detach_reset=True, backend=backend)
    x = images(2, 3, 8, 8).unsqueeze(0).repeat(4, 1, 1, 1, 1)
    out = lif(stem(x)).flatten(0, 1).contiguous()
    return learned(stem, F.max_pool2d(out, 3, 2, 1).reshape(4, 2, 4, 4, 4).contiguous().mean().square())


@program
def a_residual_block_that_adds_in_place(sj):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = sj.layer.SeqToANNContainer(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.sn1 = sj.neuron.MultiStepIFNode(surrogate_function=sj.surrogate.ATan())
            self.conv2 = sj.layer.SeqToANNContainer(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.sn2 = sj.neuron.MultiStepIFNode(surrogate_function=sj.surrogate.ATan())

        def forward(self, x):
            out = self.sn2(self.conv2(self.sn1(self.conv1(x))))
            out += x
            return out

    net = nn.Sequential(Block(), Block()).double()
    return learned(net, net(images(3, 2, 4, 5, 5)).square().mean())


@program
def a_relu_in_place_behind_a_neuron(sj):
    net = nn.Sequential(nn.Linear(6, 6), sj.neuron.IFNode(), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
    return learned(net, sum(net(images(4, 6, seed=t)).square().mean() for t in range(3)))


@program
def time_constants_that_learn(sj):
    net = nn.Sequential(
        nn.Linear(6, 8),
        sj.neuron.ParametricLIFNode(init_tau=2.0, v_reset=None, detach_reset=True),
        nn.Linear(8, 3),
        sj.neuron.ParametricLIFNode(init_tau=4.0, decay_input=False),
    ).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(3):
        loss = (sum(net(images(4, 6, seed=t)) for t in range(5)) / 5 - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sj.functional.reset_net(net)
    return [loss.detach(), net[1].w.detach(), net[3].w.detach(), *net.state_dict().values()]


@program
def a_voltage_readout_in_single_steps(sj):
    net = nn.Sequential(
        nn.Linear(6, 8), sj.neuron.LIFNode(), nn.Linear(8, 3), sj.neuron.LIFNode(tau=3.0, v_threshold=float("inf"))
    ).double()
    for t in range(5):
        net(images(4, 6, seed=t))
    return learned(net, F.cross_entropy(net[-1].v, torch.tensor([0, 1, 2, 0])))


@program
def a_voltage_readout_over_all_steps(sj):
    net = nn.Sequential(
        nn.Linear(6, 8), sj.neuron.MultiStepLIFNode(), nn.Linear(8, 3),
        sj.neuron.MultiStepLIFNode(v_threshold=float("inf")),
    ).double()  # fmt: skip
    net(images(5, 4, 6))
    return learned(net, F.cross_entropy(net[-1].v_seq.mean(0), torch.tensor([0, 1, 2, 0])))


@program
def a_neuron_with_a_charge_of_its_own(sj):
    class Quadratic(sj.neuron.BaseNode):
        def __init__(self, tau=2.0, **kwargs):
            super().__init__(**kwargs)
            self.tau = tau

        def neuronal_charge(self, x):
            self.v = self.v + (x + (self.v - 0.1) * (self.v - 0.8)) / self.tau

    net = nn.Sequential(nn.Linear(6, 5), Quadratic(v_reset=-0.1, surrogate_function=sj.surrogate.ATan())).double()
    return learned(net, sum(net(2 * images(4, 6, seed=t)).mean() for t in range(4)))


@program
def a_multi_step_neuron_that_loops_over_its_own_steps(sj):
    class Leaky(sj.neuron.BaseNode):
        def neuronal_charge(self, x):
            self.v = 0.7 * self.v + x

    class MultiStepLeaky(Leaky):
        def forward(self, x_seq):
            return torch.cat([super(MultiStepLeaky, self).forward(x).unsqueeze(0) for x in x_seq], 0)

    net = nn.Sequential(nn.Linear(6, 5), MultiStepLeaky(v_reset=None)).double()
    return learned(net, net(images(4, 2, 6)).mean(0).square().sum())


@program
def a_threshold_that_adapts(sj):
    class Adaptive(sj.neuron.LIFNode):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_memory("height", 0.0)

        def neuronal_fire(self):
            return self.surrogate_function(self.v - self.v_threshold - self.height)

        def neuronal_reset(self, spike):
            super().neuronal_reset(spike)
            self.height = 0.8 * self.height + 0.3 * spike.detach()

    net = nn.Sequential(nn.Linear(6, 5), Adaptive(v_threshold=0.3)).double()
    outputs = torch.stack([net(images(4, 6, seed=t)) for t in range(6)])
    result = learned(net, outputs.mean())
    sj.functional.reset_net(net)
    return [outputs.detach(), *result, net(images(4, 6))]


@program
def a_neuron_that_fires_by_a_surrogate_of_its_own(sj):
    class Rectangle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, width):
            ctx.save_for_backward(x)
            ctx.width = width
            return sj.surrogate.heaviside(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0].abs() < ctx.width) / (2 * ctx.width), None

    class Boxcar(sj.surrogate.SurrogateFunctionBase):
        def __init__(self, alpha=0.6, spiking=True):
            super().__init__(alpha, spiking)

        @staticmethod
        def spiking_function(x, alpha):
            return Rectangle.apply(x, alpha)

        @staticmethod
        def primitive_function(x, alpha):
            return (x / (2 * alpha) + 0.5).clamp(0, 1)

    spiking = nn.Sequential(nn.Linear(6, 5), sj.neuron.MultiStepLIFNode(surrogate_function=Boxcar())).double()
    smooth = sj.neuron.MultiStepIFNode(surrogate_function=Boxcar(spiking=False))
    return [*learned(spiking, spiking(images(4, 2, 6)).mean()), smooth(images(4, 2, 6))]


@program
def a_network_without_spikes(sj):
    net = nn.Sequential(nn.Linear(6, 5), sj.neuron.LIFNode(surrogate_function=sj.surrogate.Sigmoid(spiking=False)))
    net = net.double()
    smooth = torch.stack([net(images(4, 6, seed=t)) for t in range(3)])
    result = learned(net, smooth.mean())
    net[1].surrogate_function.set_spiking_mode(True)
    return [*result, net(images(4, 6))]


@program
def functions_of_surrogates_called_directly(sj):
    x = images(20).requires_grad_()
    spikes = [sj.surrogate.sigmoid.apply(x, 4.0), sj.surrogate.atan.apply(x, 2.0), sj.surrogate.erf.apply(x, 2.0)]
    (grad,) = torch.autograd.grad(sum(s.sum() for s in spikes), x)
    return [*(s.detach() for s in spikes), grad, sj.surrogate.ATan.primitive_function(x, 2.0).detach()]


@program
def poisson_images_and_a_monitor(sj):
    torch.manual_seed(0)
    encoder, net = sj.encoding.PoissonEncoder(), nn.Sequential(nn.Flatten(), nn.Linear(16, 8), sj.neuron.LIFNode())
    net = net.double()
    watch = sj.monitor.Monitor(net, device="cpu", backend="torch")
    watch.enable()
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        rate = sum(net(encoder(x)) for _ in range(6)) / 6
    return [rate, torch.tensor(float(watch.get_avg_firing_rate())), torch.tensor(float(watch.get_nonfire_ratio()))]


@program
def latency_coded_inputs(sj):
    encoder, net = (
        sj.encoding.LatencyEncoder(6),
        nn.Sequential(nn.Linear(8, 4), sj.neuron.IFNode(v_threshold=0.2)).double(),
    )
    x = images(3, 8).sigmoid()
    out = sum(net(encoder(x)) for _ in range(6))
    return learned(net, (out - 1).square().mean())


@program
def weighted_phases(sj):
    encoder = sj.encoding.WeightedPhaseEncoder(4)
    x = images(3, 8).sigmoid() * 0.9
    return [torch.stack([encoder(x) for _ in range(8)]).double()]


@program
def seq_to_ann_by_keyword(sj):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()
    lif = sj.neuron.LIFNode()
    y = sj.functional.seq_to_ann_forward(x_seq=images(4, 2, 2, 6, 6), stateless_module=net)
    spikes = sj.functional.multi_step_forward(x_seq=y, single_step_module=lif)
    return learned(net, spikes.mean())


@program
def containers_with_dropout_that_holds_still(sj):
    torch.manual_seed(0)
    net = nn.Sequential(
        sj.layer.SeqToANNContainer(nn.Linear(6, 8)), sj.neuron.MultiStepIFNode(), sj.layer.MultiStepDropout(0.5),
        sj.layer.SeqToANNContainer(nn.Linear(8, 4)), sj.layer.MultiStepContainer(sj.neuron.IFNode()),
    ).double()  # fmt: skip
    return [*learned(net, net(images(5, 3, 6)).mean()), *net.state_dict().values()]


@program
def two_dimensional_dropout_with_its_default(sj):
    torch.manual_seed(0)
    dropout = sj.layer.MultiStepDropout2d()
    first = dropout(images(3, 2, 8, 4, 4))
    dropout.reset()
    return [first, dropout(images(3, 2, 8, 4, 4)), dropout.eval()(images(3, 2, 8, 4, 4))]


@program
def truncated_backpropagation(sj):
    net, total = nn.Sequential(nn.Linear(6, 5), sj.neuron.LIFNode()).double(), []
    for chunk in range(3):
        loss = sum(net(images(4, 6, seed=10 * chunk + t)).mean() for t in range(2))
        total += learned(net, loss)
        for module in net.modules():
            if isinstance(module, sj.base.MemoryModule):
                module.detach()
    return total


@program
def potentials_that_start_elsewhere(sj):
    node = sj.neuron.IFNode(v_threshold=1.0, v_reset=None)
    node.v = 0.9
    first = node(torch.full((3,), 0.2, dtype=torch.float64))
    node.reset()
    node.v = torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64)
    return [first, node(torch.full((3,), 0.2, dtype=torch.float64)), node.v]


@program
def a_module_with_memory_of_its_own(sj):
    class Trace(sj.base.MemoryModule):
        def __init__(self):
            super().__init__()
            self.register_memory("trace", torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            self.trace *= 0.5
            self.trace += x
            return self.trace.clone()

    trace, x = Trace(), torch.ones(3, dtype=torch.float64)
    first = [trace(x), trace(x)]
    trace.reset()
    again = trace(x)
    trace.set_reset_value("trace", 2 * x)
    sj.functional.reset_net(trace)
    return [*first, again, trace(x), *trace.memories()]


@program
def lateral_inhibition_between_outputs(sj):
    net = nn.Sequential(nn.Linear(6, 4), sj.neuron.LIFNode(tau=5.0, v_threshold=0.2)).double()
    outputs = []
    with torch.no_grad():
        for t in range(5):
            spikes = net(images(2, 6, seed=t))
            net[1].v = net[1].v - 0.1 * (spikes.sum(1, keepdim=True) - spikes)
            outputs.append(spikes)
    return [torch.stack(outputs), net[1].v]


@program
def thresholds_by_label(sj):
    net, labels = nn.Sequential(nn.Linear(6, 3), sj.neuron.IFNode()).double(), torch.eye(3)[[0, 1, 2, 0]]
    net[1].v_threshold = torch.where(labels == 1, 1.1, 0.9).double()
    return learned(net, sum(net(images(4, 6, seed=t)) for t in range(4)).square().mean())


@program
def a_threshold_that_learns(sj):
    class Learned(sj.neuron.LIFNode):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor(0.4))

        def neuronal_fire(self):
            return self.surrogate_function(self.v - self.theta)

    net = nn.Sequential(nn.Linear(6, 5), Learned()).double()
    return learned(net, sum(net(images(4, 6, seed=t)).mean() for t in range(3)))


@program
def a_spiking_resnet_on_small_images(sj):
    net = sj.model.spiking_resnet.multi_step_spiking_resnet18(
        T=2, multi_step_neuron=sj.neuron.MultiStepLIFNode, num_classes=4, detach_reset=True, tau=2.5
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(images(*parameter.shape) * (0.05 if parameter.ndim > 1 else 1.0))
    return [net.eval()(images(2, 3, 32, 32)).detach()]


@program
def a_fine_tuned_classifier(sj):
    net = sj.model.sew_resnet.sew_resnet18(cnf="ADD", single_step_neuron=sj.neuron.IFNode).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(images(*parameter.shape) * (0.05 if parameter.ndim > 1 else 1.0))
    net.requires_grad_(False)
    net.fc = nn.Linear(net.fc.in_features, 3).double()
    with torch.no_grad():
        net.fc.weight.copy_(images(3, 512))
        net.fc.bias.zero_()
    return learned(net.eval(), sum(net(images(2, 3, 32, 32, seed=t)) for t in range(2)).square().mean())


@program
def checkpoints_between_single_and_multi_step(sj):
    single = nn.Sequential(nn.Linear(6, 5), sj.neuron.ParametricLIFNode(), nn.Linear(5, 3)).double()
    multi = nn.Sequential(nn.Linear(6, 5), sj.neuron.MultiStepParametricLIFNode(), nn.Linear(5, 3)).double()
    multi.load_state_dict(single.state_dict())
    x_seq = images(4, 2, 6)
    return [torch.stack([single(x) for x in x_seq]).detach(), multi(x_seq).detach()]


@program
def the_propagation_patterns_of_the_tutorial(sj):
    T, x_seq = 4, images(4, 2, 3, 8, 8)
    layers = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)]
    step_by_step = nn.Sequential(*layers, sj.neuron.IFNode()).double().eval()
    layer_by_layer = nn.Sequential(sj.layer.SeqToANNContainer(*layers), sj.layer.MultiStepContainer(sj.neuron.IFNode()))
    fused = nn.Sequential(sj.layer.SeqToANNContainer(*layers), sj.neuron.MultiStepIFNode())

    class Wrapped(nn.Sequential):
        def forward(self, x_seq):
            x_seq = sj.functional.seq_to_ann_forward(x_seq, [self[0], self[1]])
            return sj.functional.multi_step_forward(x_seq, self[2])

    wrapped = Wrapped(*layers, sj.neuron.IFNode()).double().eval()
    assert list(wrapped.state_dict()) == list(step_by_step.state_dict())
    assert next(iter(fused.state_dict())) == "0.0.weight"
    with torch.no_grad():
        outputs = [torch.stack([step_by_step(x_seq[t]) for t in range(T)])]
        outputs += [net.double().eval()(x_seq) for net in (layer_by_layer, fused, wrapped)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    return outputs


@program
def losses_of_every_step(sj):
    net = nn.Sequential(
        sj.layer.SeqToANNContainer(nn.Linear(6, 8)), sj.neuron.MultiStepLIFNode(detach_reset=True),
        sj.layer.SeqToANNContainer(nn.Linear(8, 3)),
    ).double()  # fmt: skip
    logits = net(images(4, 5, 6))
    labels = torch.tensor([0, 1, 2, 0, 1])
    return learned(net, sum(F.cross_entropy(step, labels) for step in logits) / 4)


def run(function, sj):
    torch.manual_seed(3)
    return function(sj)


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore:backend=")
def test_a_program_gives_the_same_outputs_and_gradients(classic, function):
    theirs, ours = run(function, classic), run(function, OURS)
    assert len(theirs) == len(ours)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
    assert any(tensor.abs().sum() > 0 for tensor in theirs)


def test_there_are_thirty_programs():
    assert len(PROGRAMS) >= 30
