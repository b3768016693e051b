"""Real models of the libraries that own a layout: their weights give equal outputs in our ANN form."""

import pytest
import torch
import torchvision
from torch import nn

from helpers import shake_batch_norm
from snnzoo.checkpoints.layouts import from_torchvision
from snnzoo.errors import CheckpointError
from snnzoo.models import factory
from snnzoo.recognition import identify, read_layout

TOLERANCE = 1e-9


def our_ann(content, layout=None, neuron=nn.ReLU):
    """Our network with the weights of a checkpoint, float64, and what was detected."""
    found = read_layout(content, "checkpoint", layout)
    name, kwargs = identify(found.state_dict, "checkpoint")
    net = factory.build(name, neuron=neuron, step_mode="s", **kwargs).double()
    factory.load_ann_weights(net, found.state_dict, "checkpoint")
    return net.eval(), found


@torch.inference_mode()
def difference(theirs, ours, in_channels=3, size=33):
    x = torch.randn(2, in_channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, actual = theirs(x), ours(x)
    assert expected.std() > 1e-3, "outputs that could not differ prove nothing"
    return float((expected - actual).abs().max())


def prepared(net):
    return shake_batch_norm(net).double().eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvision_weights_give_equal_outputs(name):
    theirs = prepared(torchvision.models.get_model(name, num_classes=10))
    ours, found = our_ann(theirs.state_dict())
    assert ours.model_name == name
    assert (found.layout.name, found.confidence, found.notes) == ("torchvision", 1.0, ())
    assert difference(theirs, ours) <= TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_timm_weights_give_equal_outputs(name):
    timm = pytest.importorskip("timm")
    theirs = prepared(timm.create_model(name, num_classes=10, in_chans=1))
    ours, found = our_ann(theirs.state_dict(), "timm")
    assert ours.model_name == name
    assert found.notes == ()
    assert difference(theirs, ours, in_channels=1) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "resnet18d", "resnet50c", "resnet10t", "resnet50d", "seresnet18", "ecaresnet50t", "resnet50_gn", "skresnet18",
        "resnest14d", "res2net50_26w_4s", "resnetv2_18", "resnet33ts", "resnet26", "resnext101_32x4d",
        "legacy_seresnet18", "resnetrs50", "resnet50_clip", "tresnet_m", "nf_resnet26", "test_resnet", "resnet200",
    ],
)  # fmt: skip
def test_timm_networks_of_other_architectures_are_refused(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state_dict = timm.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match="checkpoint: "):
        identify(read_layout(state_dict, "checkpoint").state_dict, "checkpoint")


HUGGING_FACE = {
    "resnet18": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "resnet34": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [3, 4, 6, 3]},
    "resnet50": {},
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_transformers_weights_give_equal_outputs(name):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(num_labels=10, **HUGGING_FACE[name])
    theirs = prepared(transformers.ResNetForImageClassification(config))
    ours, found = our_ann(theirs.state_dict())
    assert ours.model_name == name
    assert (found.layout.name, found.confidence) == ("huggingface", 1.0)
    assert difference(lambda x: theirs(x).logits, ours) <= TOLERANCE
    theirs.load_state_dict(from_torchvision(found.state_dict, "huggingface"), strict=True)


def test_torchvision_weights_in_transformers_layout_load_there_with_equal_outputs():
    transformers = pytest.importorskip("transformers")
    ours = prepared(torchvision.models.resnet50(num_classes=10))
    theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10)).double().eval()
    theirs.load_state_dict(from_torchvision(ours.state_dict(), "huggingface"), strict=True)
    assert difference(lambda x: theirs(x).logits, ours) <= TOLERANCE


def spikingjelly_net(family, name, **kwargs):
    model = pytest.importorskip(f"spikingjelly.activation_based.model.{family}")
    if family == "sew_resnet":
        kwargs["cnf"] = "ADD"
    return getattr(model, name)(num_classes=10, **kwargs)


@pytest.mark.parametrize("name", ["spiking_resnet18", "spiking_resnet50", "spiking_resnext50_32x4d"])
def test_spikingjelly_weights_give_equal_outputs_with_relu(name):
    theirs = prepared(spikingjelly_net("spiking_resnet", name, spiking_neuron=nn.ReLU))
    ours, _ = our_ann(theirs.state_dict())
    assert difference(theirs, ours) <= TOLERANCE


@pytest.mark.parametrize("name", ["sew_resnet18", "sew_resnet50"])
def test_sew_weights_reach_the_right_layers(name):
    """A SEW block adds after its last neuron: only without neurons are the two networks one function."""
    theirs = prepared(spikingjelly_net("sew_resnet", name, spiking_neuron=nn.Identity))
    ours, _ = our_ann(theirs.state_dict(), "sew_resnet", neuron=nn.Identity)
    assert difference(theirs, ours) <= TOLERANCE


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("family", ["spiking_resnet", "sew_resnet"])
def test_spikingjelly_neuron_parameters_are_no_weights(family, step_mode):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    theirs = spikingjelly_net(family, f"{family}18", spiking_neuron=neuron.ParametricLIFNode)
    functional.set_step_mode(theirs, step_mode)
    ours, found = our_ann(theirs.state_dict())
    assert found.layout.name == {"spiking_resnet": "spikingjelly", "sew_resnet": "sew_resnet"}[family]
    assert found.confidence == 1.0
    assert ours.model_name == "resnet18"
    if family == "sew_resnet":
        assert any("join the shortcut after the last neuron" in note for note in found.notes)


def test_spikingjelly_time_constants_are_loaded_into_parametric_neurons():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    theirs = spikingjelly_net("spiking_resnet", "spiking_resnet18", spiking_neuron=neuron.ParametricLIFNode)
    nn.init.constant_(theirs.layer1[0].sn1.w, 0.75)
    net = factory.build("resnet18", "plif", num_classes=10)
    factory.load_ann_weights(net, read_layout(theirs.state_dict(), "checkpoint").state_dict, "checkpoint")
    assert net.layer1[0].sn1.w.item() == 0.75
