"""All forms of a converted network give the same logits, in float64 to 1e-9 of the largest.

Its definition is the ANN, run on what signals add up to, with neurons that refine (`accumulated`). Held against
it: layer by layer, step by step, in pieces, prepared for inference, and read from its file.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnzoo
from accumulated import mean_so_far, run_accumulated
from helpers import NETWORKS
from snnzoo.codings import Delta
from snnzoo.conversion.converted_file import load_with_ann, save
from snnzoo.conversion.inputs import network_input
from snnzoo.conversion.neurons import make_node
from snnzoo.conversion.recipes import Recipe
from snnzoo.errors import UsageError
from snnzoo.functional import reset_net, set_step_mode

TABLE = [pytest.param(n, id=n.name, marks=[pytest.mark.slow] if n.slow else []) for n in NETWORKS.values()]
DELTA = {"recipe": "delta", "levels": 7, "gamma": 0.5, "time_steps": 4}


def assert_same(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float64
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def by_definition(net, accumulated):
    """The logits after each step, of what the input adds up to, `[T, N, C, H, W]`."""
    graph, coding = net.graph, net.coding
    neurons = {}
    for node in graph.neurons:
        parameters = {name: getattr(net.neuron(node.path), name) for name in ("v_threshold", "bias")}
        neurons[node.path] = make_node(net.neuron(node.path).coding, node.activation, parameters)
    up_to_readout = graph.with_nodes(graph.nodes, graph.decoded)
    decoded = run_accumulated(up_to_readout, net.tensors(), neurons, coding, accumulated)
    before = torch.cat([torch.zeros_like(decoded[:1]), decoded[:-1]])
    return net.classify(decoded + net.extrapolation * (decoded - before))


def step_by_step(net, x_seq):
    set_step_mode(net, "s")
    y_seq = torch.stack([net(x) for x in x_seq])
    reset_net(net)
    set_step_mode(net, "m")
    return y_seq


def in_pieces(net, x_seq):
    """State is carried from call to call."""
    y_seq = torch.cat([net(x_seq[:1]), net(x_seq[1:])])
    reset_net(net)
    return y_seq


def assert_all_forms_agree(net, x_seq, tmp_path, accumulated=None):
    """Of a network that has not run yet."""
    with torch.no_grad():
        y_seq = net(x_seq)
        reset_net(net)
        assert y_seq.isfinite().all()
        assert (y_seq[0] != y_seq[-1]).any(), "time changes nothing: equality would prove nothing"
        assert_same(by_definition(net, x_seq if accumulated is None else accumulated), y_seq)
        assert_same(step_by_step(net, x_seq), y_seq)
        assert_same(in_pieces(net, x_seq), y_seq)
        fast = snnzoo.prepare_for_inference(net)
        assert_same(fast(x_seq), y_seq)
        assert_same(fast.final(x_seq), y_seq[-1])
        save(net, tmp_path / "net.safetensors")
        loaded, ann = load_with_ann(tmp_path / "net.safetensors")
        assert loaded.graph == net.graph
        assert_same(loaded(x_seq), y_seq)
    return ann


def static(images, time_steps):
    return images.expand(time_steps, *images.shape)


@pytest.mark.parametrize("network", TABLE)
def test_all_forms_of_a_delta_network_agree_and_its_file_holds_the_ann(network, tmp_path):
    module, images = network.build()
    net = snnzoo.convert(module, images, **DELTA)
    ann = assert_all_forms_agree(net, static(images, 4), tmp_path)
    with torch.no_grad():
        expected = module(images)
        assert_same(ann(images), getattr(expected, "logits", expected))
    state = module.state_dict()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())


OTHERS = [
    {"recipe": "rate", "time_steps": 5},
    {"recipe": "signed", "time_steps": 5},
    {"recipe": "differential", "time_steps": 5},
    {"recipe": "delta", "levels": 1, "gamma": 0.7, "time_steps": 3},
]


RELUS = ["torchvision:squeezenet1_1", "transformers:basic", "cifar_resnet18", "mlp", "pyramid"]


@pytest.mark.parametrize("name", RELUS)
@pytest.mark.parametrize("options", OTHERS, ids=lambda o: o["recipe"])
def test_all_forms_of_other_codings_agree(name, options, tmp_path):
    module, images = NETWORKS[name].build()
    images = images[:2]
    net = snnzoo.convert(module, images, **options)
    assert_all_forms_agree(net, static(images, options["time_steps"]), tmp_path)


@pytest.mark.parametrize("recipe", ["rate", "signed"])
def test_codings_that_stand_for_relu_and_its_caps_alone_refuse_any_other_activation(recipe):
    module, images = NETWORKS["torchvision:mobilenet_v3_small"].build()
    with pytest.raises(UsageError, match=r"hardswish.*use --recipe delta"):
        snnzoo.convert(module, images, recipe)


OWN_GAMMAS = ["torchvision:mobilenet_v2", "torchvision:squeezenet1_1", "cifar_resnet18", "pyramid"]


@pytest.mark.parametrize("name", OWN_GAMMAS)
def test_all_forms_agree_where_each_neuron_has_a_gamma_of_its_own(name, tmp_path):
    module, images = NETWORKS[name].build()
    images = images[:2]
    net = snnzoo.convert(module, images, Recipe(Delta(31, 0.4), own_gammas=True), 4)
    assert len({net.neuron(node.path).coding for node in net.sites}) > 1
    assert_all_forms_agree(net, static(images, 4), tmp_path)


FRAMES = [(name, options) for name in ("cifar_resnet18", "pyramid", "lenet") for options in (DELTA, *OTHERS[:3])]


@pytest.mark.parametrize(("name", "options"), [pytest.param(n, o, id=f"{n}-{o['recipe']}") for n, o in FRAMES])
def test_all_forms_agree_on_frames_that_change_from_step_to_step(name, options, tmp_path):
    module, images = NETWORKS[name].build()
    time_steps = options["time_steps"]
    frames = images[:2] + 0.7 * torch.randn(time_steps, *images[:2].shape, dtype=images.dtype)
    net = snnzoo.convert(module, frames, **options)
    samples = frames.transpose(0, 1)
    x_seq = network_input(samples, net.coding, time_steps)
    assert_all_forms_agree(net, x_seq, tmp_path, mean_so_far(frames))


class Odd(nn.Module):
    """Operations that no network of the table has, many constants, and values that no neuron comes before."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.prelu, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8), nn.Linear(8, 10)
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("gain", torch.rand(8, 1, 1) + 0.5)

    def forward(self, x):
        x = self.bn(self.conv(F.max_pool2d(x - self.mean, 2)))
        first, second = x.chunk(2, 1)
        y = self.relu(first * 1.5)
        z = self.relu(self.conv2(torch.cat([x, y, second], 1)[:, :8]) + 1)
        z = 1 - self.relu(self.conv2(self.prelu(z)) * 2 / 3) / self.gain
        z = z * x.sigmoid() + x * z  # a signal times what no neuron comes before
        z = F.leaky_relu(F.pad(z[:, :, ::2, ::2], (0, 0, 1, 1)), 0.1).permute(0, 2, 3, 1).permute(0, 3, 1, 2)
        z = F.elu(F.gelu(F.hardswish(z))).clamp(-0.5, 6)
        z = F.relu(z + z.mean((2, 3), keepdim=True))  # a residual of another shape
        z = F.interpolate(z, scale_factor=2, mode="bilinear") - F.adaptive_max_pool2d(z, 1)
        return self.fc(F.dropout(z.amax((2, 3)) + z.mean((2, 3)), 0.5, self.training))


@pytest.mark.parametrize("recipe", ["delta", "differential"])
def test_all_forms_agree_on_every_other_operation(recipe, tmp_path):
    torch.manual_seed(1)
    module, images = Odd().double().eval(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    net = snnzoo.convert(module, images, recipe, 4)
    assert_all_forms_agree(net, static(images, 4), tmp_path)


QUICK = ["resnet18", "squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x0_5", "mobilenet_v3_small"]
FAST = {*(f"torchvision:{name}" for name in QUICK), "timm:seresnet18", "cifar_resnet18", "pyramid", "lenet", "mlp"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in NETWORKS])
def test_logits_of_a_fine_coding_are_within_a_percent_of_the_anns(name):
    module, images = NETWORKS[name].build()
    net = snnzoo.convert(module, images, "delta", 8, levels=127)
    with torch.no_grad():
        expected = module(images)
        expected = getattr(expected, "logits", expected)
        difference = net(static(images, 8))[-1] - expected
        assert difference.norm() <= 0.01 * expected.norm()
