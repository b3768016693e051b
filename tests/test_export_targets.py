"""NIR graphs for each reader, read by that library itself, against the network they were made of."""

import functools
import json
from pathlib import Path

import nir
import pytest
import torch
from nir_readers import READERS, run_elsewhere
from test_export_nir import IMAGES, SITES, outputs_of, small_net, spikes_of
from torch import nn
from torch.nn import functional as F

import snnzoo
from helpers import shake_batch_norm
from snnzoo import functional, neuron
from snnzoo.conversion.recipes import Recipe
from snnzoo.data.datasets import labelled_data
from snnzoo.data.preprocess import PRESETS
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.export import to_nir, write_nir
from snnzoo.export.check import expected_logits
from snnzoo.export.for_target import check_target, cost_of, recipe_for
from snnzoo.export.host import Host
from snnzoo.export.nir_run import NirNetwork
from snnzoo.export.targets import TARGETS
from snnzoo.graph.operations import INPUT

STEPS = 12
SHAPE = (3, 16, 16)
FEATURES = 16


def chain(width=8):
    """Convolutions, average pools and a hidden layer, one after the other; the logits are what that sends."""

    def block(inputs, outputs, stride=1):
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    readout = nn.Linear(FEATURES, FEATURES)
    nn.init.eye_(readout.weight)
    nn.init.zeros_(readout.bias)
    layers = [*block(3, width), nn.AvgPool2d(2), *block(width, 12, 2), *block(12, 12), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, FEATURES), nn.ReLU(), readout)


@pytest.fixture(scope="module")
def ann():
    torch.manual_seed(0)
    return shake_batch_norm(chain()).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(5))


@functools.cache
def converted(ann, target):
    images = torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(5))
    return snnzoo.convert(ann, images, recipe_for(target), time_steps=STEPS)


@pytest.mark.parametrize("target", READERS)
def test_a_converted_network_fires_there_as_here(target, ann, images, tmp_path):
    net = converted(ann, target)
    x_seq = images[:3].expand(STEPS, 3, *SHAPE)
    _, spikes = spikes_of(net, x_seq, [net.sites[-1].path])
    write_nir(net, tmp_path / "net.nir", SHAPE, target=target)
    graph = nir.read(tmp_path / "net.nir")
    outputs = run_elsewhere(target, graph, x_seq)
    expected = spikes[net.sites[-1].path]
    assert outputs.shape == expected.shape
    assert torch.equal((outputs.abs() > 1e-4).double(), expected)
    assert 0.05 < expected.mean() < 0.95
    own = NirNetwork(graph, TARGETS[target])(x_seq).flatten(2)
    assert_fire_alike(outputs.double(), own)


def assert_fire_alike(outputs, own):
    """In float32, of many spikes at once one may come a step later: few may, and none may be lost."""
    assert ((outputs - own).abs() > 1e-5).double().mean() < 0.01
    torch.testing.assert_close(outputs.sum(0), own.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["snntorch", "spikingjelly"])
def test_a_residual_network_fires_there_as_here(target):
    """Shortcuts scale what they carry by a convolution: these readers know no Scale."""
    torch.manual_seed(0)
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s")).eval()
    images = torch.rand(8, *SHAPE)
    net = snnzoo.convert(ann, images, recipe_for(target), time_steps=6).double()
    x_seq = images[:2].double().expand(6, 2, *SHAPE)
    outputs = run_elsewhere(target, to_nir(net, SHAPE, target=target), x_seq)
    mean = outputs.double().cumsum(0) / torch.arange(1, 7).view(-1, 1, 1)
    torch.testing.assert_close(mean, expected_logits(net, images[:2], 6), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("target", "make"),
    [
        ("spikingjelly", functools.partial(neuron.IFNode, v_threshold=0.8)),
        ("spikingjelly", functools.partial(neuron.LIFNode, tau=3.0, decay_input=False)),
        ("snntorch", functools.partial(neuron.IFNode, v_threshold=0.8)),
        ("snntorch", functools.partial(neuron.LIFNode, tau=1.7, v_threshold=0.6)),
    ],
)
def test_a_trained_residual_network_gives_the_logits_of_each_step(target, make):
    net = small_net(make)
    x_seq = IMAGES.expand(5, *IMAGES.shape)
    expected, _ = spikes_of(net, x_seq, [])
    outputs = run_elsewhere(target, to_nir(net, (2, 8, 8), target=target), x_seq)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-5)


class TrainedChain(snnzoo.models.base.SpikingNet):
    def __init__(self, make_neuron):
        super().__init__()
        self.conv1, self.sn1 = nn.Conv2d(2, 4, 3, padding=1), make_neuron()
        self.conv2, self.sn2 = nn.Conv2d(4, 6, 3, 2, 1), make_neuron()
        self.avgpool, self.readout, self.fc = nn.AvgPool2d(4), nn.Identity(), nn.Linear(6, 3)
        self.initialise("m")

    def stem(self, x):
        return self.sn1(self.stateless(x, self.conv1))

    def forward(self, x):
        x = self.sn2(self.stateless(self.stem(x), self.conv2))
        return self.stateless(self.stateless(x, self.avgpool).flatten(-3), self.fc)


@pytest.mark.parametrize("decay_input", [True, False])
def test_norse_runs_leaky_neurons_whose_input_decays_and_others(decay_input):
    torch.manual_seed(0)
    net = TrainedChain(functools.partial(neuron.LIFNode, tau=2.0, v_threshold=0.3, decay_input=decay_input)).eval()
    x_seq = IMAGES.float().expand(5, *IMAGES.shape)
    expected, spikes = spikes_of(net, x_seq, ["sn2"])
    outputs = run_elsewhere("norse", to_nir(net, (2, 8, 8), target="norse"), x_seq)
    assert 0 < spikes["sn2"].mean() < 1
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


def test_the_own_executor_runs_a_generic_graph_as_nirtorch_does():
    net = small_net(functools.partial(neuron.LIFNode, tau=2.5, v_reset=None, v_threshold=0.6))
    x_seq = IMAGES.expand(6, *IMAGES.shape)
    graph = to_nir(net, (2, 8, 8))
    expected, spikes = outputs_of(graph, x_seq, SITES)
    reader = NirNetwork(graph)
    torch.testing.assert_close(reader(x_seq, record=SITES), expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(reader.recorded[name], spikes[name]) for name in SITES)


def test_spinnaker2_is_given_spikes_and_gives_spikes(ann, images):
    net = converted(ann, "spinnaker2").double()
    graph = to_nir(net, SHAPE, target="spinnaker2")
    kinds = {type(node) for node in graph.nodes.values()}
    assert kinds <= {nir.Input, nir.Output, nir.Conv2d, nir.IF, nir.SumPool2d}
    first, last = net.sites[0], net.sites[-1]
    host = Host(net, first.name, last.name)
    spikes = host.inputs(images[:2].double(), STEPS)
    assert set(spikes.round(decimals=9).unique().tolist()) == {0.0, 1.0}
    outputs = NirNetwork(graph, TARGETS["spinnaker2"])(spikes)
    assert set(outputs.unique().tolist()) == {0.0, 1.0}
    expected = expected_logits(net, images[:2], STEPS)
    torch.testing.assert_close(host.logits(outputs), expected, rtol=1e-6, atol=1e-6)
    net.float()


CANNOT = [
    ("sinabs", "layer1.0 adds a shortcut, which --target sinabs cannot express: take a network without"),
    ("norse", "layer1.0 adds a shortcut"),
    ("spyx", "layer1.0 adds a shortcut"),
    ("spinnaker2", "layer1.0 adds a shortcut"),
]


@pytest.mark.parametrize(("target", "message"), CANNOT)
def test_a_network_that_no_conversion_makes_fit_is_refused_before_it_is_converted(target, message):
    ann = snnzoo.conversion.capture_ann(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"), None)
    with pytest.raises(SnnzooError, match=message):
        check_target(ann, target)
    check_target(ann, "spikingjelly")


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "generic"])
def test_rate_coding_is_refused_with_what_to_convert_for(target, ann, images):
    net = snnzoo.convert(ann, images, "rate", time_steps=4)
    with pytest.raises(
        SnnzooError, match=rf"^\d starts from 0\.5 .* --target {target} .* --for {target} when you conv"
    ):
        to_nir(net, SHAPE, target=target)


@pytest.mark.parametrize(
    ("make", "target", "message"),
    [
        (functools.partial(neuron.IFNode, v_reset=None), "norse", "sn1 resets by subtraction"),
        (neuron.IFNode, "sinabs", "sn1 resets to a value, .* v_reset=None"),
        (functools.partial(neuron.LIFNode, v_reset=None), "sinabs", "sn1 is a LIF neuron, .* take IF neurons"),
    ],
)
def test_a_neuron_that_a_target_has_not_is_named(make, target, message):
    with pytest.raises(SnnzooError, match=message):
        to_nir(TrainedChain(make), (2, 8, 8), target=target)


def test_a_network_made_for_one_target_is_not_written_for_another(ann):
    with pytest.raises(SnnzooError, match=r"is a neuron of plain.*--for spyx when you convert"):
        to_nir(converted(ann, "sinabs"), SHAPE, target="spyx")
    with pytest.raises(UsageError, match=r"unknown target .sinab.: did you mean sinabs"):
        to_nir(converted(ann, "sinabs"), SHAPE, target="sinab")


def test_neurons_that_only_start_from_zero_are_written_for_any_reader(ann, images):
    for to_zero in (False, True):
        net = snnzoo.convert(ann, images, "plain", time_steps=4, to_zero=to_zero).double()
        x_seq = images[:2].double().expand(4, 2, *SHAPE)
        outputs = NirNetwork(to_nir(net, SHAPE))(x_seq)
        mean = outputs.cumsum(0) / torch.arange(1, 5).view(-1, 1, 1)
        torch.testing.assert_close(mean, expected_logits(net, images[:2], 4), rtol=1e-6, atol=1e-6)


def test_the_cost_of_a_target_is_that_of_its_neurons(ann, images):
    net = converted(ann, "norse")
    net.conversion.recipe["for"] = "norse"
    own = snnzoo.conversion.capture_ann(ann, images)
    cost = cost_of(net, own, images)
    with torch.no_grad():
        expected = ann(images).argmax(1)
    found = expected_logits(net, images, STEPS)[-1].argmax(1)
    assert cost.agreement == (found == expected).double().mean().item()
    assert (cost.target, cost.time_steps, cost.images, cost.held_back) == ("norse", STEPS, 16, False)
    assert "its neurons cost" in str(cost)


def test_a_file_says_how_it_is_read_and_that_it_was(ann, images, tmp_path):
    found = write_nir(converted(ann, "spyx"), tmp_path / "net.nir", SHAPE, target="spyx", images=images)
    facts = nir.read(tmp_path / "net.nir").metadata
    assert (facts["target"], facts["read"]) == ("spyx", TARGETS["spyx"].read)
    assert json.loads(facts["verified"])["agreement"] == found.agreement == 1.0
    assert found.difference < 1e-3


# -- Real images -------------------------------------------------------------------------------------------------------


def cifar_chain(width=16):
    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(3, width), nn.AvgPool2d(2), *block(width, 2 * width), nn.AvgPool2d(2)]
    return nn.Sequential(
        *layers, *block(2 * width, 4 * width), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * width, 10)
    )


def read(folder):
    data = labelled_data(str(folder), PRESETS["cifar10"], None, 10)
    samples, labels = zip(*(data[i] for i in range(len(data))), strict=True)
    return torch.stack(samples), torch.tensor(labels)


@pytest.fixture(scope="module")
def cifar(cifar_folder):
    """A network trained for a minute on CIFAR-10, images to calibrate on, and 200 others."""
    samples, labels = read(cifar_folder / "train")
    torch.manual_seed(0)
    net = cifar_chain()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(3):
        for chosen in torch.randperm(len(samples)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(samples[chosen]), labels[chosen]).backward()
            optimizer.step()
    others, _ = read(cifar_folder / "test")
    assert len(others) == 200
    return net.eval(), samples[torch.randperm(len(samples))[:128]], others


@pytest.mark.slow
@pytest.mark.parametrize("target", READERS)
def test_real_images_are_told_there_as_here(target, cifar):
    ann, few, images = cifar
    net = snnzoo.convert(ann, few, Recipe(TARGETS[target].coding()), time_steps=32)
    graph = to_nir(net, (3, 32, 32), target=target)
    outputs = run_elsewhere(target, graph, images.expand(32, *images.shape))
    classes = outputs.mean(0).argmax(1)
    assert (classes == expected_logits(net, images, 32)[-1].argmax(1)).double().mean() >= 0.99
    with torch.no_grad():
        agreement = (classes == ann(images).argmax(1)).double().mean()
    assert agreement > (0.6 if TARGETS[target].coding().to_zero else 0.85)
    functional.reset_net(net)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["snntorch", "spikingjelly"])
def test_real_images_are_told_there_as_here_by_a_real_checkpoint(target, resnet20_checkpoint, cifar_folder):
    ann = snnzoo.load_ann("resnet20", checkpoint=resnet20_checkpoint, option="A")
    few, _ = read(cifar_folder / "train")
    few = few[torch.randperm(len(few), generator=torch.Generator().manual_seed(0))[:128]]
    images, _ = read(cifar_folder / "test")
    net = snnzoo.convert(ann, few, recipe_for(target), time_steps=16)
    outputs = run_elsewhere(target, to_nir(net, (3, 32, 32), target=target), images.expand(16, *images.shape))
    same = outputs.mean(0).argmax(1) == expected_logits(net, images, 16)[-1].argmax(1)
    assert same.double().mean() >= 0.97


def test_the_input_of_a_whole_graph_is_the_image(ann, images):
    net = converted(ann, "spikingjelly")
    assert torch.equal(Host(net, INPUT, net.graph.output).inputs(images, 2), images.expand(2, *images.shape))


def test_the_docs_say_what_every_reader_takes_for_granted():
    page = (Path(__file__).resolve().parents[1] / "docs" / "export.md").read_text("utf-8")
    for target in TARGETS.values():
        assert f"| `{target.name}` | {target.assumes}. |" in page


def test_a_dilation_that_a_reader_does_not_look_at_is_refused():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, dilation=2), nn.ReLU(), nn.AvgPool2d(12), nn.Flatten(), nn.Linear(4, 5)
    ann = snnzoo.conversion.capture_ann(nn.Sequential(*layers).eval(), torch.rand(2, *SHAPE))
    with pytest.raises(SnnzooError, match="0 is dilated, which --target spyx cannot express: take another target"):
        check_target(ann, "spyx")
    check_target(ann, "sinabs")
