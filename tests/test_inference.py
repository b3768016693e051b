"""The fast form against the network it was made from: float64, random BN statistics, every builder and coding."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnzoo
from helpers import neuron_sites, shake_batch_norm
from snnzoo import codings, functional, neuron, prepare_for_inference
from snnzoo.conversion import capture_ann
from snnzoo.conversion.neurons import install, make_node
from snnzoo.errors import UsageError
from snnzoo.evaluation.activity import ActivityMeter
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.shapes import site_channels
from snnzoo.graph.trained import as_graph
from snnzoo.inference import engine
from snnzoo.inference.neuron import FoldedNeuron
from snnzoo.models.cifar_resnet import CifarResNet
from snnzoo.models.registry import MODELS
from snnzoo.neuron import IFNode, LIFNode
from snnzoo.ops import backends

QUICK = [name for name in MODELS if not re.search(r"101|152|1202|wide", name)]  # the others are among the slow tests
RECIPES = ("delta", "differential", "signed", "rate")


def arguments_of(name):
    return {"num_classes": 5, **({"hidden_features": 16} if name.startswith("vgg") else {})}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(name, kind="if", **kwargs):
    torch.manual_seed(0)
    net = snnzoo.create_model(name, neuron=kind, **{**arguments_of(name), **kwargs})
    return shake_batch_norm(net).double().eval()


def with_random_neurons(net, recipe):
    """Neurons as conversion leaves them, but with thresholds and biases drawn at random; `net` is an ANN."""
    generator = torch.Generator().manual_seed(3)
    ann = capture_ann(net, torch.zeros(1, 3, 32, 32, dtype=next(net.parameters()).dtype))
    dtype = next(net.parameters()).dtype
    parameters = {
        site: {
            "v_threshold": torch.rand(channels, generator=generator, dtype=dtype) + 0.1,
            "bias": torch.randn(channels, generator=generator, dtype=dtype) * 0.1,
        }
        for site, channels in site_channels(ann.graph, ann.tensors(), [3, 32, 32], "net").items()
    }
    return install(ann, codings.CODINGS[recipe](), parameters, extrapolation=0.3 if recipe == "delta" else 0.0)


def converted(name, recipe="delta", **kwargs):
    torch.manual_seed(0)
    net = snnzoo.create_model(name, neuron=nn.ReLU, **{**arguments_of(name), **kwargs})
    return with_random_neurons(shake_batch_norm(net).double().eval(), recipe)


def expected(net, x_seq):
    functional.reset_net(net)
    with torch.inference_mode():
        logits = net(x_seq)
    functional.reset_net(net)
    return logits


def assert_equals(net, x_seq):
    """The fast form's logits, and that they are no trivial ones."""
    want, fast = expected(net, x_seq), prepare_for_inference(net)
    torch.testing.assert_close(fast(x_seq), want, rtol=1e-9, atol=1e-9)
    last = want[-1] if isinstance(net, SpikingNetwork) else want.mean(0)
    torch.testing.assert_close(fast.final(x_seq), last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", QUICK)
def test_builders_give_the_logits_of_the_network(name):
    x = images(1, 3, 32, 32)
    assert_equals(trained(name), x.expand(2, *x.shape))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "vgg11_bn"])
def test_every_coding_gives_the_logits_of_the_network(name, recipe):
    net, x = converted(name, recipe), images(2, 3, 32, 32)
    assert_equals(net, x.expand(3, *x.shape))
    assert_equals(net, images(3, 2, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.convertible])
def test_every_builder_and_coding_gives_the_logits_of_the_network(name, recipe):
    net, x = converted(name, recipe), images(2, 3, 32, 32)
    assert_equals(net, x.expand(3, *x.shape))
    assert_equals(net, images(3, 2, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["if", "lif", "plif"])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_builder_and_classic_neuron_gives_the_logits_of_the_network(name, kind):
    assert_equals(trained(name, kind), images(3, 2, 3, 32, 32))


def per_channel_soft_reset():
    return neuron.IFNode(torch.rand(64).add(0.3), v_reset=None)


class HalvedNode(neuron.IFNode):
    def charge(self, v, x):
        return v + 0.5 * x


NEURONS = {
    "lif": "lif",
    "plif": "plif",
    "soft reset": lambda: neuron.IFNode(v_reset=None),
    "lif at rest elsewhere": lambda: neuron.LIFNode(3.0, decay_input=False, v_reset=-0.2, v_threshold=0.7),
    "a charge of one's own": HalvedNode,
}


@pytest.mark.parametrize("kind", list(NEURONS))
def test_classic_neurons_give_the_logits_of_the_network(kind):
    assert_equals(trained("resnet20", NEURONS[kind]), images(3, 2, 3, 32, 32))


@pytest.mark.parametrize("connect", ["AND", "IAND"])
def test_spikes_are_joined_as_in_the_network(connect):
    assert_equals(trained("sew_resnet18", connect=connect), images(3, 2, 3, 32, 32))


def test_shortcuts_of_option_b_give_the_logits_of_the_network():
    assert_equals(converted("resnet20", option="B"), images(3, 2, 3, 32, 32))


HEAD = [["Linear", 64, 6, True], ["ReLU"], ["Dropout", 0.5], ["Linear", 6, 5, False]]


@pytest.mark.parametrize("make", [trained, converted])
def test_a_head_of_several_layers_gives_the_logits_of_the_network(make):
    kwargs = {"head": HEAD}
    assert_equals(make("resnet20", **kwargs), images(3, 2, 3, 32, 32))


@pytest.mark.parametrize("make", [trained, converted])
def test_a_sequence_longer_than_a_piece_is_read_out_as_one(make):
    x = images(2, 3, 32, 32)
    assert_equals(make("resnet20"), x.expand(2 * engine.STEPS_AT_ONCE + 1, *x.shape))
    assert_equals(make("vgg11_bn"), images(engine.STEPS_AT_ONCE + 1, 1, 3, 32, 32))


@pytest.mark.parametrize("make", [trained, converted])
def test_a_batch_of_values_larger_than_a_cache_is_run_in_equal_parts_and_read_out_as_one(make, monkeypatch):
    monkeypatch.setattr(engine, "KEPT_BYTES", 6 * 2 * 16 * 32 * 32 * 8)  # six images, T = 2
    net, x_seq, sizes = make("resnet20"), images(2, 7, 3, 32, 32), []
    assert_equals(net, x_seq)
    x = x_seq[0]
    assert_equals(net, x.expand(2, *x.shape))
    prepare_for_inference(net)(x_seq, lambda node, inputs, value: sizes.append(value.shape[1]))
    assert set(sizes) == {4, 3}


def test_each_call_starts_anew_and_leaves_no_state():
    fast, x_seq = prepare_for_inference(converted("resnet20")), images(3, 2, 3, 32, 32)
    first = fast(x_seq)
    fast.final(images(2, 1, 3, 32, 32))
    assert torch.equal(fast(x_seq), first)
    sites = [fast.network.get_submodule(site) for site in neuron_sites(fast.network)]
    assert all(site.state is None and site.t == 0 for site in sites)


@pytest.mark.parametrize("recipe", [codings.IF(), codings.Signed(), codings.Delta(), codings.Differential()])
def test_neurons_that_are_given_other_parameters_forget_what_was_kept_of_the_old_ones(recipe):
    """As a search does, which fits the same network again and again."""

    def node(theta):
        return make_node(recipe, codings.RELU, {"v_threshold": torch.full((4,), theta), "bias": torch.zeros(4)})

    x = torch.rand(3, 2, 4, 5, 5)
    refitted = FoldedNeuron(node(0.3), torch.zeros(4)).float()
    refitted(x.clone())
    refitted.reset()
    refitted.set_parameters(torch.full((4,), 0.7), torch.full((4,), 0.1))
    assert torch.equal(refitted(x.clone()), FoldedNeuron(node(0.7), torch.full((4,), 0.1)).float()(x.clone()))


def test_a_call_that_fails_leaves_no_state():
    fast = prepare_for_inference(trained("resnet20"))
    with pytest.raises(RuntimeError):
        fast(images(2, 1, 4, 32, 32))
    want = expected(trained("resnet20"), images(2, 1, 3, 32, 32))
    torch.testing.assert_close(fast(images(2, 1, 3, 32, 32)), want)


def test_the_network_is_not_changed():
    net, x_seq = converted("vgg11_bn"), images(3, 2, 3, 32, 32)
    net(x_seq)  # leaves state
    state, held = copy.deepcopy(net.state_dict()), net.neuron("features.2.sn").m.clone()
    fast = prepare_for_inference(net, dtype=torch.float32)
    fast(x_seq)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(net.neuron("features.2.sn").m, held)
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in fast.network.parameters()}


def test_the_input_is_not_changed():
    x_seq = images(2, 1, 3, 32, 32)
    before = x_seq.clone()
    prepare_for_inference(trained("resnet20"))(x_seq)
    assert torch.equal(x_seq, before)


def test_biases_and_residuals_are_left_to_the_neurons():
    network = prepare_for_inference(converted("resnet18")).network
    operations = [node.operation for node in network.graph]
    assert not {"batch_norm", "add", "shift", "scale"} & set(operations)
    assert all("bias" not in node.parameters for node in network.graph if node.operation == "conv2d")
    assert sum(len(node.inputs) == 2 for node in network.graph.neurons) == 8  # those that end a block


class PreActivation(nn.Module):
    """Normalisation before the neurons, and convolutions behind them, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.conv0, self.norm, self.conv = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        self.norm2, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 10)

    def forward(self, x):
        x = self.conv0(x)
        y = self.conv(F.relu(self.norm(x)))
        return self.fc(F.relu(self.norm2(torch.cat([x, y], 1))).mean((2, 3)))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("padding", "shifts"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_constant_passes_a_convolution_without_padding(recipe, padding, shifts, groups):
    torch.manual_seed(0)
    bottleneck = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, padding=padding, groups=groups)]
    ann = nn.Sequential(*bottleneck, nn.ReLU(), nn.Flatten(), nn.Linear(6 * (30 + 2 * padding) ** 2, 5)).double()
    net = with_random_neurons(ann, recipe)
    fast, x_seq = prepare_for_inference(net), images(4, 2, 3, 32, 32)
    assert sum(node.operation == "shift" for node in fast.network.graph) == shifts
    with torch.no_grad():
        torch.testing.assert_close(fast(x_seq), net(x_seq))


@pytest.mark.parametrize(("lowest", "scales"), [(0.5, 1), (-0.5, 2)])
def test_a_positive_scale_before_a_neuron_goes_into_its_threshold_and_the_weights_behind(lowest, scales):
    torch.manual_seed(0)
    net = shake_batch_norm(PreActivation().double().eval())
    nn.init.uniform_(net.norm.weight, lowest, 2)
    net.norm.weight.data[0] = lowest
    x = images(6, 3, 16, 16)
    for recipe in ("delta", "rate", "signed", "differential"):
        snn = snnzoo.convert(net, x, recipe, 3)
        assert_equals(snn, x[:2].expand(3, 2, 3, 16, 16))
        nodes = [node.operation for node in prepare_for_inference(snn).network.graph]
        assert nodes.count("scale") == scales


def test_a_static_image_passes_the_stem_once():
    network = prepare_for_inference(trained("resnet18")).network
    strides = []

    def watch(node, inputs, value):
        if node.path == "conv1":
            strides.append(value.stride(0))

    x = images(2, 3, 32, 32)
    network.run(x.expand(4, *x.shape), watch)
    functional.reset_net(network)
    network.run(x.repeat(4, 1, 1, 1, 1), watch)
    assert strides[0] == 0 < strides[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_neurons_and_classifier_stay_float32(dtype):
    fast = prepare_for_inference(converted("resnet20"), dtype=dtype)
    seen = {}
    with torch.inference_mode():
        fast.network.run(
            images(2, 1, 3, 32, 32).to(dtype), lambda node, x, y: seen.update({node.path: (x[0].dtype, y.dtype)})
        )
    functional.reset_net(fast.network)
    assert seen["layer1.0.conv1"] == (dtype, dtype)
    assert seen["fc"] == (torch.float32, torch.float32)
    logits = fast(images(2, 1, 3, 32, 32))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    first = fast.network.neuron("sn1")
    assert {first.v_threshold.dtype, first.bias.dtype} == {torch.float32}


@pytest.mark.parametrize("make", [trained, converted])
def test_activity_of_the_fast_form_equals_that_of_the_network(make):
    net, x_seq = as_graph(make("resnet18")), images(3, 2, 3, 32, 32)
    fast = prepare_for_inference(net)
    meters = ActivityMeter(net), ActivityMeter(fast.network)
    with torch.inference_mode(), meters[0]:
        net.run(x_seq, meters[0].watch)
    with meters[1]:
        fast(x_seq, meters[1].watch)
    want, got = (meter.activity for meter in meters)
    assert got.events == want.events
    assert got.operations == want.operations
    assert got.neurons == want.neurons
    assert got.dense == want.dense


def test_what_has_no_fast_form_is_named():
    with pytest.raises(UsageError, match="no spiking neurons: run the network itself"):
        prepare_for_inference(snnzoo.create_model("resnet20", neuron=nn.ReLU))
    with pytest.raises(ValueError, match=r"\[T, N, C, H, W\], got \[1, 3, 32, 32\]"):
        prepare_for_inference(trained("resnet20"))(images(1, 3, 32, 32))


def test_a_network_of_ones_own_has_a_fast_form():
    class OtherNet(type(trained("resnet20"))):
        pass

    torch.manual_seed(0)
    net = shake_batch_norm(OtherNet(3, neuron=neuron.IFNode)).double().eval()
    net.layer1[0] = nn.Identity()
    assert_equals(net, images(3, 2, 3, 32, 32))


def test_a_trained_network_as_a_graph_gives_its_logits():
    net, x_seq = trained("sew_resnet18"), images(3, 2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(as_graph(net)(x_seq), expected(net, x_seq), rtol=1e-9, atol=1e-9)


SMALL = {"if": IFNode, "lif": LIFNode, "delta": "delta", "differential": "differential", "signed": "signed"}


@pytest.mark.skipif(backends.named("triton").unavailable() is not None, reason="no Triton here")
@pytest.mark.parametrize("kind", list(SMALL))
def test_with_the_kernels_of_a_gpu_logits_are_those_of_the_network(kind):
    """Under Triton's interpreter where there is no GPU: static stem, residual, sums and pieces of time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    node = SMALL[kind] if not isinstance(SMALL[kind], str) else nn.ReLU
    net = shake_batch_norm(CifarResNet(1, neuron=node, num_classes=3)).eval()
    if isinstance(SMALL[kind], str):
        net = with_random_neurons(net, SMALL[kind])
    x = images(1, 3, 8, 8).float()
    with snnzoo.ops.use_backend("reference"):
        fast = prepare_for_inference(net, device=device)
        want = [(fast(x_seq), fast.final(x_seq)) for x_seq in (x.expand(9, *x.shape), images(2, 1, 3, 8, 8).float())]
    with snnzoo.ops.use_backend("triton"):
        got = [(fast(x_seq), fast.final(x_seq)) for x_seq in (x.expand(9, *x.shape), images(2, 1, 3, 8, 8).float())]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [trained, converted])
def test_compiled_logits_are_those_of_the_network(make):
    net, x = make("resnet20").float(), images(2, 3, 32, 32).float()
    plain, compiled = prepare_for_inference(net), prepare_for_inference(net, compile=True)
    for x_seq in (x.expand(3, *x.shape), x.expand(10, *x.shape), images(2, 1, 3, 32, 32).float()):
        torch.testing.assert_close(compiled(x_seq), plain(x_seq), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled.final(x_seq), plain.final(x_seq), rtol=1e-4, atol=1e-4)
