"""NIR graphs, read back and run by other tools, against the networks they were made of."""

from functools import partial

import nir
import nirtorch
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import functional, neuron
from snnzoo.errors import SnnzooError
from snnzoo.export import to_nir, write_nir
from snnzoo.export.nir import DT
from snnzoo.models.base import SpikingNet
from snnzoo.models.resnet import BasicBlock, conv3x3, make_stage, projection


class Stateful(nn.Module):
    """A NIR neuron in discrete time, written from NIR's equations alone: `(x, state) -> (y, state)`."""

    def __init__(self, node):
        super().__init__()
        self.kind = type(node).__name__
        for name in ("r", "tau", "v_leak", "v_threshold", "v_reset"):
            if hasattr(node, name):
                self.register_buffer(name, torch.from_numpy(np.asarray(getattr(node, name))))

    def forward(self, x, state=None):
        v = torch.zeros_like(x) if state is None else state
        if self.kind in ("IF", "I"):
            v = v + DT * self.r * x
        else:
            v = v + DT / self.tau * (self.v_leak - v + self.r * x)
        if self.kind in ("I", "LI"):
            return v, v
        spikes = (v > self.v_threshold).to(v.dtype)
        return spikes, torch.where(spikes > 0, self.v_reset, v)


class Function(nn.Module):
    def __init__(self, function, value):
        super().__init__()
        self.function = function
        self.register_buffer("value", torch.from_numpy(value))

    def forward(self, x):
        return self.function(x, self.value)


def affine(node):
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


NODE_MAP = {
    **dict.fromkeys((nir.IF, nir.LIF, nir.I, nir.LI), Stateful),
    nir.Affine: affine,  # nirtorch 2.6 forgets the bias
    nir.Threshold: lambda node: Function(lambda x, value: (x > value).to(x.dtype), node.threshold),
    nir.Scale: lambda node: Function(torch.mul, node.scale),
    nir.Flatten: lambda node: nn.Flatten(node.start_dim + 1, -1),
}


def outputs_of(graph, x_seq, spikes=()):
    """The graph's outputs step by step, run by nirtorch, and the spikes of some of its nodes."""
    module = nirtorch.nir_to_torch(graph, NODE_MAP).double()
    seen = {name: [] for name in spikes}
    for name in spikes:
        found = module.get_submodule(name.replace(".", "_"))
        found.register_forward_hook(lambda _m, _i, y, name=name: seen[name].append(y[0] if isinstance(y, tuple) else y))
    outputs, state = [], None
    for x in x_seq:
        y, state = module(x, state)
        outputs.append(y)
    return torch.stack(outputs), {name: torch.stack(steps) for name, steps in seen.items()}


def spikes_of(net, x_seq, names):
    seen = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda _m, _i, y, name=name: seen.update({name: y}))
    functional.reset_net(net)
    with torch.no_grad():
        logits = net(x_seq)
    return logits, {name: (y != 0).double() for name, y in seen.items()}


class SmallNet(SpikingNet):
    """A stem and three blocks, one with a projection; pooling by halves before the classifier."""

    def __init__(self, make_neuron):
        super().__init__()
        self.conv1, self.bn1, self.sn1 = conv3x3(2, 4), nn.BatchNorm2d(4), make_neuron()
        self.layer1 = make_stage(lambda *a: BasicBlock(*a, make_neuron), 4, 4, 4, 2, 1)
        self.layer2 = make_stage(lambda *a: BasicBlock(*a, make_neuron), 4, 6, 6, 1, 2, projection)
        self.avgpool, self.readout, self.fc = nn.AvgPool2d(2), nn.Identity(), nn.Linear(24, 3)
        self.initialise("m")

    def stem(self, x):
        return self.sn1(self.stateless(x, self.conv1, self.bn1))


def small_net(make_neuron, seed=0):
    torch.manual_seed(seed)
    return shake_batch_norm(SmallNet(make_neuron)).double().eval()


IMAGES = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
SITES = ["sn1", "layer1.0.sn1", "layer1.0.sn2", "layer1.1.sn2", "layer2.0.sn1", "layer2.0.sn2"]

NEURONS = {
    "IF, hard reset": partial(neuron.IFNode, v_threshold=0.8),
    "IF, reset below rest": partial(neuron.IFNode, v_threshold=0.8, v_reset=-0.25),
    "IF, soft reset": partial(neuron.IFNode, v_reset=None),
    "LIF, hard reset": partial(neuron.LIFNode, tau=1.7, v_threshold=0.6),
    "LIF, input not decaying": partial(neuron.LIFNode, tau=3.0, decay_input=False),
    "LIF, soft reset": partial(neuron.LIFNode, tau=2.5, v_reset=None, v_threshold=0.6),
    "LIF, soft reset, input not decaying": partial(neuron.LIFNode, tau=2.5, v_reset=None, decay_input=False),
    "PLIF": partial(neuron.ParametricLIFNode, init_tau=2.2, v_threshold=0.4),
    "IF, a threshold a channel": None,
}


@pytest.mark.parametrize("kind", NEURONS)
def test_a_graph_read_back_fires_as_the_network(kind, tmp_path):
    make_neuron = NEURONS[kind] or neuron.IFNode
    net = small_net(make_neuron)
    if NEURONS[kind] is None:
        for module in net.modules():
            if isinstance(module, (SmallNet, BasicBlock)):
                for name in [name for name, _ in module.named_children() if name.startswith("sn")]:
                    bn = getattr(module, name.replace("sn", "bn"))
                    theta = torch.rand(bn.num_features).double() + 0.5
                    setattr(module, name, neuron.IFNode(theta, v_reset=None, step_mode="m"))
    x_seq = IMAGES.expand(6, *IMAGES.shape)
    expected, spikes = spikes_of(net, x_seq, SITES)
    write_nir(net, tmp_path / "net.nir", (2, 8, 8))
    outputs, found = outputs_of(nir.read(tmp_path / "net.nir"), x_seq, SITES)
    for name in SITES:
        assert torch.equal(found[name], spikes[name]), name
        assert 0 < spikes[name].mean() < 1
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", ["A", "B"])
def test_a_rate_coded_resnet20_gives_the_same_spikes_and_logits(option, tmp_path):
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", option=option)).eval()
    images = torch.rand(8, 3, 32, 32)
    net = snnzoo.convert(ann, images, "rate", time_steps=5).double()
    x_seq = images[:2].double().expand(5, 2, 3, 32, 32)
    sites = ["sn1", "layer1.2.sn2", "layer2.0.sn1", "layer3.2.sn2"]
    expected, spikes = spikes_of(net, x_seq, sites)
    write_nir(net, tmp_path / "net.nir", (3, 32, 32))
    outputs, found = outputs_of(nir.read(tmp_path / "net.nir"), x_seq, sites)
    for site in sites:
        assert set(found[site].unique().tolist()) == {0.0, 1.0}
        assert torch.equal(found[site], spikes[site]), site
    decoded = outputs.cumsum(0) / torch.arange(1, 6).view(5, 1, 1)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)


def test_a_torchvision_resnet_is_exported_without_its_stem():
    torch.manual_seed(0)
    ann = shake_batch_norm(torchvision.models.resnet18(num_classes=5))
    images = torch.rand(4, 3, 32, 32)
    net = snnzoo.convert(ann, images, "rate", time_steps=4).double()
    with pytest.raises(
        SnnzooError, match=r"^maxpool is max pooling, which NIR has not: --without-stem .* --format onnx"
    ):
        to_nir(net, (3, 32, 32))
    graph = to_nir(net, (3, 32, 32), stem=False)
    x_seq = images.double().expand(4, 4, 3, 32, 32)
    expected, spikes = spikes_of(net, x_seq, ["relu", "layer4.1.relu_1"])
    own = ann.double().eval()
    with torch.no_grad():
        current = own.maxpool(own.bn1(own.conv1(images.double())))
    assert graph.input_type["input"].tolist() == list(current.shape[1:])
    outputs, found = outputs_of(graph, current.expand(4, *current.shape), ["relu", "layer4.1.relu_1"])
    assert torch.equal(found["relu"], spikes["relu"])
    assert torch.equal(found["layer4.1.relu_1"], spikes["layer4.1.relu_1"])
    torch.testing.assert_close(outputs.mean(0), expected[-1], rtol=1e-4, atol=1e-4)


def test_spikingjellys_reader_agrees():
    """A reader written by others; it takes hard resets."""
    nir_exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    x_seq = IMAGES.expand(5, *IMAGES.shape)
    for make_neuron in (NEURONS["IF, hard reset"], NEURONS["LIF, input not decaying"], NEURONS["LIF, hard reset"]):
        net = small_net(make_neuron)
        expected, _ = spikes_of(net, x_seq, [])
        theirs = nir_exchange.import_from_nir(to_nir(net, (2, 8, 8)), dtype=torch.float64)
        outputs, state = [], None
        for x in x_seq:
            y, state = theirs(x, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs), expected, rtol=1e-5, atol=1e-6)


def test_snntorchs_reader_agrees():
    """It takes LIF neurons whose input does not decay, and resets to zero."""
    import_nir = pytest.importorskip("snntorch.import_nir")
    torch.manual_seed(0)
    net = small_net(partial(neuron.LIFNode, tau=3.0, decay_input=False)).float()
    x_seq = IMAGES[:1].float().expand(5, 1, 2, 8, 8)  # its Flatten takes the batch as well
    expected, _ = spikes_of(net, x_seq, [])
    theirs = import_nir.import_from_nir(to_nir(net, (2, 8, 8)))
    outputs, state = [], None
    with torch.no_grad():
        for x in x_seq:
            y, state = theirs(x, state)
            outputs.append(y.view(1, -1))
    torch.testing.assert_close(torch.stack(outputs), expected, rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_come_back_from_a_file(tmp_path):
    """NIR's own reader refuses them, so they are written without groups."""
    torch.manual_seed(0)
    net = SmallNet(partial(neuron.IFNode, v_reset=None))
    net.layer1[0].conv1 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    net = shake_batch_norm(net).double().eval()
    x_seq = IMAGES.expand(4, *IMAGES.shape)
    expected, spikes = spikes_of(net, x_seq, SITES)
    write_nir(net, tmp_path / "net.nir", (2, 8, 8))
    outputs, found = outputs_of(nir.read(tmp_path / "net.nir"), x_seq, SITES)
    assert all(torch.equal(found[name], spikes[name]) for name in SITES)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", ["delta", "differential", "signed"])
def test_what_nir_cannot_express_names_the_layer_and_the_alternative(recipe):
    torch.manual_seed(0)
    ann = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")
    net = snnzoo.convert(ann, torch.rand(4, 3, 32, 32), recipe, time_steps=2)
    with pytest.raises(
        SnnzooError, match=r"^sn1 is a neuron of .* coding, which .* --recipe rate, or .* --format onnx"
    ):
        to_nir(net, (3, 32, 32))


def test_max_pools_behind_a_neuron_are_refused_with_the_only_alternative():
    for net, shape in (
        (snnzoo.create_model("sew_resnet18", num_classes=3), (3, 32, 32)),
        (snnzoo.create_model("vgg11", num_classes=3, hidden_features=8), (3, 32, 32)),
    ):
        with pytest.raises(
            SnnzooError, match=r"max pooling behind a neuron, which NIR has not: export with --format onnx"
        ):
            to_nir(net, shape, stem=False)


def test_an_ann_is_no_spiking_network():
    with pytest.raises(SnnzooError, match="no spiking neurons"):
        to_nir(snnzoo.create_model("resnet20", neuron=nn.ReLU), (3, 32, 32))


def test_exporting_leaves_the_network_as_it_was():
    net = small_net(NEURONS["IF, soft reset"])
    x_seq = IMAGES.expand(3, *IMAGES.shape)
    before = net(x_seq)
    to_nir(net, (2, 8, 8))
    functional.reset_net(net)
    assert torch.equal(net(x_seq), before)
    assert net.step_mode == "m"
