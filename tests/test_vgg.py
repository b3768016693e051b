"""Spiking VGGs against torchvision's, and their conversion: no residuals, with or without BN, pools between spikes."""

import copy

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import nn

import snnzoo
from helpers import NEURONS, assert_patterns_agree, neuron_sites, shake_batch_norm
from snnzoo import codings, functional, neuron
from snnzoo.conversion import calibration, capture_ann, load_with_ann
from snnzoo.errors import CheckpointError, SnnzooError, UsageError
from snnzoo.evaluation import evaluate
from snnzoo.graph.shapes import value_shapes
from snnzoo.models import factory, registry
from snnzoo.recognition import architecture, identify

VGGS = [name for name, spec in registry.MODELS.items() if spec.network == "VGG"]
HIDDEN = 48  # neurons of the hidden layers, for speed; torchvision has 4096


def layout(net):
    return [(key, value.shape, value.dtype) for key, value in net.state_dict().items()]


def theirs(name, classes=7, seed=0):
    """torchvision's network with a small classifier, random BN and activations that are alive, in float64."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        net = torchvision.models.get_model(name, num_classes=classes, init_weights=False)
    for place, shape in ((0, (25088, HIDDEN)), (3, (HIDDEN, HIDDEN)), (6, (HIDDEN, classes))):
        net.classifier[place] = nn.Linear(*shape)
    for module in net.features:
        module.to_empty(device="cpu")
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    return shake_batch_norm(net).double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module", params=["vgg11", "vgg11_bn"])
def ann(request):
    return theirs(request.param, classes=4)


@pytest.fixture(scope="module")
def with_bn(images):
    """torchvision's vgg11_bn, and what it is converted to."""
    original = theirs("vgg11_bn", classes=4)
    return original, snnzoo.convert(original, images, levels=7, gamma=0.5)


# -- The networks ------------------------------------------------------------------------------------------------------


def test_the_zoo_has_every_torchvision_vgg():
    assert set(VGGS) == {name for name in torchvision.models.list_models() if name.startswith("vgg")}
    assert len(VGGS) == 8


@pytest.mark.parametrize("name", VGGS)
def test_state_dict_equals_torchvisions_in_keys_order_shapes_and_dtypes(name):
    with torch.device("meta"):
        ours, original = snnzoo.create_model(name), torchvision.models.get_model(name)
    assert layout(ours) == layout(original)
    original.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(original.state_dict(), strict=True)


@pytest.mark.parametrize("name", VGGS)
def test_with_relu_for_neurons_the_output_equals_torchvisions(name):
    original = theirs(name)
    ours = snnzoo.create_model(name, neuron=nn.ReLU, num_classes=7, hidden_features=HIDDEN).double().eval()
    ours.load_state_dict(original.state_dict(), strict=True)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        expected = original(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(x.unsqueeze(0))[0], expected, rtol=1e-10, atol=1e-10)
        functional.set_step_mode(ours, "s")
        torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_with_relu_the_full_vgg16_equals_torchvisions():
    original = torchvision.models.vgg16_bn().double().eval()
    ours = snnzoo.create_model("vgg16_bn", neuron=nn.ReLU).double().eval()
    ours.load_state_dict(original.state_dict(), strict=True)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x.unsqueeze(0))[0], original(x), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_initial_weights_equal_torchvisions_for_the_same_seed():
    torch.manual_seed(3)
    original = torchvision.models.vgg11_bn(num_classes=2).state_dict()
    torch.manual_seed(3)
    ours = snnzoo.create_model("vgg11_bn", num_classes=2).state_dict()
    assert all(torch.equal(ours[key], original[key]) for key in original)


@pytest.mark.parametrize("name", VGGS)
def test_step_by_step_equals_layer_by_layer(name):
    weights = theirs(name, classes=5).state_dict()
    for key, value in weights.items():  # so that every layer fires
        if value.ndim > 1:
            value *= 2
        elif key.endswith("bias"):
            value += 1.5
    x_seq = torch.randn(3, 1, 3, 32, 32, dtype=torch.float64)
    for kind, make in NEURONS.items():
        net = snnzoo.create_model(name, neuron=make, num_classes=5, hidden_features=HIDDEN).double().eval()
        net.load_state_dict(weights, strict=True)
        assert_patterns_agree(net, x_seq)
        if kind == "IF soft":
            assert_patterns_agree(net, x_seq[0].expand(3, 1, 3, 32, 32))


def test_a_static_image_passes_the_first_layers_and_pool_once():
    net = snnzoo.create_model("vgg11", num_classes=2, hidden_features=8).eval()
    shapes = []
    for place in (0, 2, 3):
        net.features[place].register_forward_hook(lambda _m, inputs, _y: shapes.append(inputs[0].shape[0]))
    x = torch.rand(2, 3, 32, 32)
    net(x.expand(5, *x.shape))
    assert shapes == [2, 2, 5 * 2]


def test_dropout_holds_one_mask_over_time_until_reset():
    net = snnzoo.create_model("vgg11", num_classes=2, hidden_features=256, neuron=nn.ReLU)
    masks = []
    net.classifier[2].register_forward_hook(lambda module, _x, y: masks.append((module.mask, y)))
    x = torch.rand(1, 3, 32, 32)
    net(x.expand(4, *x.shape))
    mask, y_seq = masks[0]
    assert mask.shape == (1, 256)
    assert all(torch.equal((y != 0), (y_seq[0] != 0)) for y in y_seq)
    net(x.expand(4, *x.shape))
    assert torch.equal(masks[1][0], mask)
    functional.reset_net(net)
    net(x.expand(4, *x.shape))
    assert not torch.equal(masks[2][0], mask)


def test_every_neuron_of_a_network_to_train_gets_gradients():
    net = snnzoo.create_model("vgg11_bn", neuron="plif", num_classes=3, hidden_features=16, in_channels=2).train()
    assert isinstance(net.features[2].sn, neuron.ParametricLIFNode)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.2)
    net(torch.rand(4, 2, 2, 32, 32) * 4).mean(0).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.features[0].weight.grad.abs().sum() > 0


# -- Identification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VGGS)
def test_a_vgg_is_known_by_its_weights(name):
    with torch.device("meta"):
        weights = factory.build(name, nn.ReLU, num_classes=7, in_channels=1, hidden_features=32).state_dict()
    assert identify(weights, "f") == (name, {"num_classes": 7, "in_channels": 1, "hidden_features": 32})
    found = architecture(weights)
    assert (found.depth, found.block) == (int(name.removeprefix("vgg").removesuffix("_bn")), "plain")


@pytest.mark.parametrize(("lost", "message"), [
    ("features.0.", r"not a VGG in torchvision's keys: features\.0\.weight is missing"),
    ("classifier.6.", r"classifier\.6\.weight is missing"),
    ("features.8.", "no model of the zoo has its keys and shapes"),
])  # fmt: skip
def test_incomplete_weights_are_refused_with_what_is_missing(lost, message):
    with torch.device("meta"):
        weights = factory.build("vgg11", nn.ReLU, hidden_features=32).state_dict()
    with pytest.raises(CheckpointError, match=message):
        identify({key: value for key, value in weights.items() if not key.startswith(lost)}, "f")


# -- Conversion --------------------------------------------------------------------------------------------------------


def test_neurons_stand_where_torchvision_has_relus_behind_the_pools(with_bn):
    ann, net = with_bn
    sites = neuron_sites(net)
    assert set(sites) == {name for name, module in ann.named_modules() if isinstance(module, nn.ReLU)}
    assert all(isinstance(net.neuron(site).coding, codings.Delta) for site in sites)
    pools = [node for node in net.graph if node.operation == "max_pool2d"]
    assert len(pools) == 5
    assert not any(net.graph[pool.inputs[0]].is_activation for pool in pools)
    extra = {key for key in net.state_dict() if key not in ann.state_dict()}
    assert extra == {f"{site}.{name}" for site in sites for name in ("v_threshold", "bias")}


@pytest.mark.parametrize(("recipe", "options", "time_steps", "tolerance"), [
    ("delta", {"levels": 7, "gamma": 0.4}, 8, 0.1),
    ("differential", {}, 12, 0.1),
    ("signed", {"time_steps": 8}, 32, 0.5),
])  # fmt: skip
def test_the_logits_come_close_to_the_anns(ann, images, recipe, options, time_steps, tolerance):
    net = snnzoo.convert(ann, images, recipe, **options)
    x_seq = images[:2].expand(time_steps, *images[:2].shape)
    with torch.inference_mode():
        expected = ann(images[:2])
        error = (net(x_seq)[-1] - expected).abs().mean() / expected.std()
    assert error < tolerance


def test_images_that_do_not_fit_at_the_front_join_where_activations_are_smaller(with_bn, images, monkeypatch):
    ann = with_bn[0]
    monkeypatch.setattr(calibration, "FEWEST_IMAGES", 1)
    monkeypatch.setattr(calibration, "KEPT_BYTES", 64 * 16 * 16 * 8 * 4)  # one image behind the first pool, T = 2
    own = capture_ann(ann, images)
    shapes = value_shapes(own.graph, own.tensors(), own.input_shape, "VGG")
    fits = calibration.images_that_fit(own.graph, shapes, torch.float64, len(images), 2)
    counts = list(fits.values())
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 4)
    calls = []
    options = {"threshold": "max", "bias_correction": False, "time_steps": 2, "batch_size": 3}
    net = snnzoo.convert(ann, images, "rate", **options, progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1]
    peaks = {}
    for place in ("features.2", "classifier.4"):
        ann.get_submodule(place).register_forward_hook(lambda _m, _x, y, place=place: peaks.update({place: y}))
    with torch.inference_mode():
        ann(images)
    seen = {node.path: fits[node.name] for node in own.graph.neurons}
    first, last = peaks["features.2"][: seen["features.2"]].amax((0, 2, 3)), peaks["classifier.4"].amax(0)
    assert seen["features.2"] < 4
    torch.testing.assert_close(net.neuron("features.2").v_threshold[first > 0], first[first > 0])
    torch.testing.assert_close(net.neuron("classifier.4").v_threshold[last > 0], last[last > 0])


def test_a_file_rebuilds_the_network_and_its_ann_exactly(with_bn, images, tmp_path):
    ann, net = with_bn
    functional.reset_net(net)
    snnzoo.save(net, tmp_path / "net.safetensors")
    loaded, loaded_ann = load_with_ann(tmp_path / "net.safetensors")
    x_seq = images.expand(3, *images.shape)
    with torch.inference_mode():
        assert torch.equal(loaded.double()(x_seq), net(x_seq))
        torch.testing.assert_close(loaded_ann.double()(images), ann(images))
    assert loaded.conversion == net.conversion
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        for key, value in ann.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)
        assert file.get_tensor("classifier.1.v_threshold").shape == (HIDDEN,)


def test_a_file_with_parameters_of_a_wrong_shape_is_refused(with_bn, tmp_path):
    from snnzoo.checkpoints.files import read_safetensors, write_safetensors

    path = tmp_path / "net.safetensors"
    snnzoo.save(with_bn[1], path)
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, {**tensors, "classifier.4.bias": torch.ones(3)}, metadata)
    with pytest.raises(CheckpointError, match=rf"classifier\.4\.bias has shape \[3\] instead of \[{HIDDEN}\]"):
        snnzoo.load(path)


def test_an_evaluation_agrees_with_the_logits_and_has_every_layer(with_bn, images):
    ann, net = with_bn
    own = capture_ann(ann, images).float()
    result = evaluate(copy.deepcopy(net), own, (images.float(), torch.arange(4)), [1, 4], batch_size=2)
    with torch.inference_mode():
        functional.reset_net(net)
        logits = net(images.expand(4, *images.shape))[-1]
        expected = ann(images)
    agreement = (logits.argmax(1) == expected.argmax(1)).double().mean().item()
    assert result.results[1].agreement == agreement
    assert {layer.site for layer in result.layers} == set(neuron_sites(net))
    assert all(0 < rate < 1 for layer in result.layers for rate in layer.event_rates)


def test_without_images_the_error_asks_for_them(ann):
    with pytest.raises(UsageError, match=r"no BN.*images"):
        snnzoo.convert(ann)


def test_nan_weights_are_reported_with_the_layer(ann, images):
    broken = copy.deepcopy(ann)
    places = [place for place, module in enumerate(ann.features) if isinstance(module, nn.Conv2d)]
    broken.features[places[1]].weight.data[0] = float("nan")
    with pytest.raises(SnnzooError, match=rf"features\.{places[1]}\.weight"):
        snnzoo.convert(broken, images, gamma=0.5)


class AveragePooled(nn.Module):
    """A VGG of one's own: its pools are averages."""

    def __init__(self, net):
        super().__init__()
        self.features, self.classifier = copy.deepcopy(net.features), net.classifier
        for place, module in enumerate(self.features):
            if isinstance(module, nn.MaxPool2d):
                self.features[place] = nn.AvgPool2d(2)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 7)
        return self.classifier(x.flatten(1))


def test_a_vgg_of_ones_own_is_converted_as_what_it_computes(ann, images):
    own = AveragePooled(ann).eval()
    net = snnzoo.convert(own, images, levels=7, gamma=0.4, time_steps=8)
    with torch.inference_mode():
        expected, found = own(images), net(images.expand(8, *images.shape))[-1]
    assert (found - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_a_head_in_place_of_a_vggs_classifier_has_neurons_and_sees_as_many_pixels_as_it_takes(pool):
    head = [["Dropout", 0.5], ["Linear", 4 * 512, 16, True], ["ReLU"], ["Linear", 16, 2, True]]
    net = snnzoo.create_model("vgg11_bn", head=head, pool=pool).eval()
    assert net.avgpool.output_size == 2
    assert isinstance(net.classifier[2].sn, neuron.IFNode)
    assert net(torch.rand(3, 1, 3, 64, 64)).shape == (3, 1, 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"head": ["Linear", 4, 2, True]}, "vgg11: the head takes 4 features, expected 512 times"),
        ({"head": ["Linear", 2 * 512, 2, True]}, "512 times the pixels of a square"),
        ({"pool": "median"}, "pool must be one of max, avg"),
    ],
)
def test_what_no_vgg_has_is_a_usage_error(kwargs, message):
    with pytest.raises(UsageError, match=message):
        snnzoo.create_model("vgg11", **kwargs)
