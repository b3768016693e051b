"""The zoo's networks against torchvision's."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet34_Weights

import snnzoo
from helpers import NEURONS, assert_patterns_agree, firing, shake_batch_norm
from snnzoo import functional, neuron
from snnzoo.checkpoints import download
from snnzoo.errors import UsageError
from snnzoo.models import registry

TORCHVISION = [name for name, spec in registry.MODELS.items() if spec.network == "ResNet"]
CIFAR = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]
MODELS = [*TORCHVISION, *CIFAR]
LARGE = ["resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]


def test_the_zoo_has_every_torchvision_resnet():
    theirs = {name for name in torchvision.models.list_models(torchvision.models) if "resne" in name}
    assert set(TORCHVISION) == theirs
    assert len(TORCHVISION) == 10


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dict_equals_torchvisions_in_keys_order_shapes_and_dtypes(name):
    with torch.device("meta"):
        ours, theirs = snnzoo.create_model(name), torchvision.models.get_model(name)

    def layout(net):
        return [(key, value.shape, value.dtype) for key, value in net.state_dict().items()]

    assert layout(ours) == layout(theirs)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("name", TORCHVISION)
def test_with_relu_for_neurons_the_output_equals_torchvisions(name):
    theirs = shake_batch_norm(torchvision.models.get_model(name, num_classes=7)).double().eval()
    ours = snnzoo.create_model(name, neuron=nn.ReLU, num_classes=7).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(ours(x.unsqueeze(0))[0], expected, rtol=1e-10, atol=1e-10)
        functional.set_step_mode(ours, "s")
        torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


def test_initial_weights_equal_torchvisions_for_the_same_seed():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet50().state_dict()
    torch.manual_seed(3)
    ours = snnzoo.create_model("resnet50").state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in MODELS])
def test_step_by_step_equals_layer_by_layer(name):
    size = 32
    sequences = [torch.randn(3, 2, 3, size, size, dtype=torch.float64)]
    sequences.append(sequences[0][0].expand(3, 2, 3, size, size))
    nets = {}
    for kind, make in NEURONS.items():
        net = snnzoo.create_model(name, neuron=make, num_classes=5)
        if nets:
            net.load_state_dict(next(iter(nets.values())).state_dict())
            net.double().eval()
        else:
            firing(net)
        nets[kind] = net
        for x_seq in sequences:
            assert_patterns_agree(net, x_seq)


@pytest.mark.parametrize("option", ["A", "B"])
def test_cifar_resnets_have_the_papers_depth_and_size(option):
    sizes = {"resnet20": 0.27e6, "resnet32": 0.46e6, "resnet44": 0.66e6, "resnet56": 0.85e6, "resnet110": 1.7e6}
    for name, size in sizes.items():
        net = snnzoo.create_model(name, option=option)
        weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.shape[-1] != 1]
        assert len(weighted) == int(name.removeprefix("resnet"))
        assert sum(p.numel() for p in net.parameters()) == pytest.approx(size, rel=0.03)


def test_option_a_shortcut_subsamples_and_pads_with_zeros_and_has_no_weights():
    net = snnzoo.create_model("resnet20", step_mode="s")
    shortcut = net.layer2[0].downsample
    x = torch.randn(2, 16, 8, 8)
    y = shortcut(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() + y[:, 24:].abs().sum() == 0
    assert not list(shortcut.parameters())


def test_a_static_image_passes_the_stem_once():
    net = snnzoo.create_model("resnet18", num_classes=2).eval()
    shapes = []
    net.conv1.register_forward_hook(lambda _m, inputs, _y: shapes.append(inputs[0].shape[0]))
    net.layer1[0].conv1.register_forward_hook(lambda _m, inputs, _y: shapes.append(inputs[0].shape[0]))
    x = torch.rand(2, 3, 32, 32)
    net(x.expand(5, *x.shape))
    assert shapes == [2, 5 * 2]


def test_every_neuron_of_a_network_to_train_gets_gradients():
    net = snnzoo.create_model("resnet20", neuron="plif").train()
    net(torch.rand(4, 2, 3, 32, 32) * 4).mean(0).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.conv1.weight.grad.abs().sum() > 0


def test_create_model_takes_classes_channels_neuron_and_step_mode():
    net = snnzoo.create_model("resnet18", num_classes=4, in_channels=2, neuron="lif", step_mode="s")
    assert isinstance(net.layer4[1].sn2, neuron.LIFNode)
    assert net(torch.rand(2, 2, 32, 32)).shape == (2, 4)


def test_list_models_takes_a_pattern():
    assert snnzoo.list_models("resnext*") == ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]
    assert {*TORCHVISION, *CIFAR} <= set(snnzoo.list_models())


@pytest.mark.parametrize(("call", "message"), [
    (lambda: snnzoo.create_model("resnet19"), "unknown model 'resnet19': did you mean resnet18"),
    (lambda: snnzoo.create_model("resnet18", neuron="liff"), "unknown neuron 'liff'.*if, lif, plif"),
    (lambda: snnzoo.create_model("resnet18", weights="IMAGENET1K_V9"), "called 'IMAGENET1K_V9'.*IMAGENET1K_V1"),
    (lambda: snnzoo.create_model("resnet18", weights="digits", num_classes=3), "10 classes, not 3"),
    (lambda: snnzoo.create_model("resnet18.digits", weights="IMAGENET1K_V1"), "digits.*IMAGENET1K_V1"),
    (lambda: snnzoo.create_model("resnet18", ResNet34_Weights.DEFAULT), "of resnet34, not of resnet18"),
    (lambda: snnzoo.create_model("resnet18", colour="red"), "colour"),
    (lambda: snnzoo.create_model("resnet20", option="C"), "option must be 'A' or 'B'"),
])  # fmt: skip
def test_a_wrong_request_is_a_usage_error_that_says_what_is_known(call, message):
    with pytest.raises((UsageError, ValueError), match=message):
        call()


def test_an_input_without_time_axis_is_an_error_that_says_the_shape():
    with pytest.raises(ValueError, match=r"\[T, N, C, H, W\].*\[2, 3, 32, 32\]"):
        snnzoo.create_model("resnet20")(torch.rand(2, 3, 32, 32))


def cached_checkpoint(tmp_path, monkeypatch, net, filename):
    """Put random weights where a download of the manifest would put its own; their hash is not looked at."""
    monkeypatch.setattr(download, "_check", lambda path, sha256, size: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / filename)


@pytest.mark.parametrize("ask", [
    lambda: snnzoo.create_model("resnet18", weights="IMAGENET1K_V1"),
    lambda: snnzoo.create_model("resnet18.IMAGENET1K_V1"),
    lambda: snnzoo.create_model("resnet18", weights="DEFAULT"),
    lambda: snnzoo.create_model("resnet18", weights=torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
    lambda: snnzoo.create_model("resnet18.IMAGENET1K_V1", neuron="lif"),
], ids=["name", "tag", "default", "enum", "tag and neuron"])  # fmt: skip
def test_weights_load_by_name_tag_default_and_torchvision_enum(tmp_path, monkeypatch, ask):
    theirs = torchvision.models.resnet18()
    cached_checkpoint(tmp_path, monkeypatch, theirs, "resnet18-f37072fd.pth")
    ours = ask().state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())
