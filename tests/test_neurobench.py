"""NeuroBench's metrics, against those that its own harness gives the same networks, run step by step."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import snnzoo
from snnzoo.evaluation import evaluate
from snnzoo.graph.operations import INPUT
from snnzoo.graph.run import run_node
from snnzoo.inference.network import FoldedNetwork

snntorch = pytest.importorskip("snntorch", reason="snntorch, of which NeuroBench knows the neurons, is not installed")
benchmark = pytest.importorskip("neurobench.benchmarks", reason="neurobench is not installed (pip install neurobench)")
from neurobench.metrics import static, workload  # noqa: E402
from neurobench.models import NeuroBenchModel  # noqa: E402

IMAGES = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(3)).double() + 0.1
STATIC = [static.Footprint, static.ConnectionSparsity, static.ParameterCount]
WORKLOAD = [workload.ActivationSparsity, workload.SynapticOperations, workload.MembraneUpdates]


class Small(nn.Module):
    """A residual network with a grouped and a strided convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.down, self.wide = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.relu, self.pool, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.relu(self.down(self.relu(self.bn(self.stem(x)))))
        x = self.relu(self.wide(x) + x)
        return self.fc(self.pool(x).flatten(1))


class Neuron(snntorch.SpikingNeuron):
    """One step of a neuron by the coding's own equation: whole units go out, as NeuroBench sees spikes."""

    def __init__(self, neuron):
        super().__init__(init_hidden=True)
        self._buffers.clear()  # of snntorch's own parameters, which these neurons have not
        self._parameters.clear()
        self.neuron = [neuron]
        self.register_buffer("theta", neuron.v_threshold)
        self.register_buffer("bias", neuron.bias)
        self.mem = torch.zeros(())  # before the first step; its value is not looked at
        self.start()

    def start(self):
        self.t, self.state = 0, None

    def forward(self, x):
        (neuron,) = self.neuron
        theta, bias = (value.view(-1, 1, 1) for value in (self.theta, self.bias))
        coding, zeros = neuron.coding, torch.zeros_like(x)
        if self.state is None:
            self.state = (zeros + coding.initial(theta), *(zeros for _ in coding.state[1:]))
        if coding.bias_once and neuron.absolute:
            self.state = (zeros, *self.state[1:])
        if self.t == 0 or not coding.bias_once or neuron.absolute:
            x = x + bias
        units, self.values, self.state = coding.step(x, self.state, theta, self.t, neuron.activation)
        self.mem = self.state[0]
        self.t += 1
        return units


class Units(nn.Module):
    """A folded network with modules, whose thresholds are in the weights behind them."""

    def __init__(self, net, time_steps):
        super().__init__()
        self.graph, self.tensors, self.time_steps = net.graph, net.tensors(), time_steps
        self.coding, self.extrapolation = net.coding, net.extrapolation
        self.sites = {node.name: Neuron(net.neuron(node.path)) for node in net.sites}
        self.layers = {node.name: self.layer(node) for node in net.graph if node.row.weighted}
        self.neurons, self.weighted = nn.ModuleList(self.sites.values()), nn.ModuleList(self.layers.values())

    def layer(self, node):
        weight, settings = self.tensors[node.parameters["weight"]].clone(), node.settings
        if node.inputs[0] in self.sites:
            group = weight.shape[1]
            theta = self.sites[node.inputs[0]].theta.view(-1, group)  # [groups, C / groups]
            weight *= theta.repeat_interleave(len(weight) // len(theta), 0).view(len(weight), group, 1, 1)
        if node.operation == "linear":
            module = nn.Linear(weight.shape[1], weight.shape[0])
            module.bias.data = self.tensors[node.parameters["bias"]].clone()
        else:
            names = ("stride", "padding", "dilation", "groups")
            sizes = {name: tuple(v) if isinstance(v := settings[name], list) else v for name in names}
            channels = weight.shape[1] * sizes["groups"]
            module = nn.Conv2d(channels, weight.shape[0], tuple(weight.shape[2:]), bias=False, **sizes)
        module.weight.data = weight
        return module

    def forward(self, images):
        for neuron in self.neurons:
            neuron.start()
        static, outputs = {INPUT: images}, []
        for t in range(self.time_steps):
            values, units = dict(static), {}
            for node in self.graph:
                if node.name in self.graph.behind_readout or node.name in values:
                    continue
                inputs = [values[name] for name in node.inputs]
                if node.name in self.sites:
                    units[node.name] = self.sites[node.name](sum(inputs))
                    values[node.name] = self.sites[node.name].values
                elif node.name in self.layers and node.inputs[0] in units:
                    share = self.coding.spike_value(t, images.dtype)
                    values[node.name] = self.layers[node.name](units[node.inputs[0]]) * share
                elif node.name in self.layers:
                    values[node.name] = static[node.name] = self.layers[node.name](inputs[0])
                else:
                    values[node.name] = run_node(node, self.tensors, inputs)
            outputs.append(values[self.graph.decoded])
        value = torch.stack(outputs).sum(0) + self.extrapolation * outputs[-1]
        value = value if self.coding.readout == "sum" else value / self.time_steps
        values = {self.graph.decoded: value}
        for node in self.graph:
            if node.name in self.graph.behind_readout:
                inputs = [values[name] for name in node.inputs]
                layer = self.layers.get(node.name)
                values[node.name] = layer(*inputs) if layer else run_node(node, self.tensors, inputs)
        return values[self.graph.output]


class Harnessed(NeuroBenchModel):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.add_activation_module(snntorch.SpikingNeuron)

    def __call__(self, batch):
        return self.net(batch)

    def __net__(self):
        return self.net


def harness(net, time_steps):
    """What NeuroBench itself measures, and the logits that it has seen."""
    units = Units(FoldedNetwork(net), time_steps).eval()
    seen = []
    with torch.no_grad():
        loader = DataLoader(TensorDataset(IMAGES, torch.zeros(len(IMAGES))), batch_size=3)
        runner = benchmark.Benchmark(Harnessed(units), loader, [], [lambda logits: seen.append(logits) or logits],
                                     [STATIC, WORKLOAD])  # fmt: skip
        return runner.run(quiet=True), torch.cat(seen)


@pytest.mark.parametrize(("recipe", "options", "time_steps"), [
    ("rate", {}, 5), ("signed", {}, 6), ("delta", {"levels": 1, "gamma": 0.6}, 4),
    ("delta", {"levels": 3, "gamma": 0.5, "dead_zone": 0.7}, 3), ("differential", {"levels": 4}, 3),
], ids=["binary", "signed", "ternary", "graded", "powers of two"])  # fmt: skip
def test_metrics_are_those_of_the_harness(recipe, options, time_steps):
    torch.manual_seed(0)
    ann = Small().double().eval()
    net = snnzoo.convert(ann, IMAGES, recipe, time_steps, check_fit=False, **options)
    wanted, logits = harness(net, time_steps)
    x_seq = IMAGES.expand(time_steps, *IMAGES.shape)
    with torch.no_grad():
        torch.testing.assert_close(net(x_seq)[-1], logits, rtol=1e-4, atol=1e-4)  # it is the same network
    data = (IMAGES, torch.zeros(len(IMAGES), dtype=torch.long))
    found = evaluate(net, ann, data, [time_steps], neurobench=True, check_fit=False, dtype=torch.float64).neurobench
    assert set(found) == set(wanted)
    ours, theirs = found.pop("SynapticOperations"), wanted.pop("SynapticOperations")
    assert found == pytest.approx(wanted, rel=1e-6)
    assert ours["Dense"] == theirs["Dense"]
    total = ours["Effective_MACs"] + ours["Effective_ACs"]
    assert total == pytest.approx(theirs["Effective_MACs"] + theirs["Effective_ACs"])
    if net.coding.largest_unit == 1:  # of others, the harness tells by what a batch holds at a step
        assert ours == pytest.approx(theirs)
        assert ours["Effective_ACs"] > 0
    else:
        assert ours["Effective_ACs"] == 0


def test_metrics_are_left_out_unless_asked_for():
    ann = Small().double().eval()
    net = snnzoo.convert(ann, IMAGES, "delta", 2, check_fit=False, gamma=0.5)
    result = evaluate(net, ann, (IMAGES, torch.zeros(6, dtype=torch.long)), [2], check_fit=False)
    assert result.neurobench is None
    assert "neurobench" not in result.to_dict()
