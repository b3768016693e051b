"""The classic constructors of networks. tests/compat holds them against the library's."""

import pytest
import torch
import torchvision
from torch import nn

from snnzoo import neuron
from snnzoo.errors import UsageError
from snnzoo.model import classic, sew_resnet, spiking_resnet, spiking_vgg


@pytest.mark.parametrize(("constructor", "ann"), [
    (spiking_resnet.spiking_resnet18, "resnet18"),
    (sew_resnet.multi_step_sew_resnext50_32x4d, "resnext50_32x4d"),
])  # fmt: skip
def test_pretrained_weights_are_those_of_the_ann_with_these_shapes(monkeypatch, constructor, ann):
    weights = getattr(torchvision.models, ann)().state_dict()
    asked = []
    monkeypatch.setattr(classic.factory, "weights_of", lambda entry: asked.append(entry.tag) or weights)
    settings = {"single_step_neuron": neuron.ParametricLIFNode}
    if "sew" in constructor.__name__:
        settings = {"cnf": "ADD", "multi_step_neuron": neuron.MultiStepParametricLIFNode}
    net = constructor(pretrained=True, **settings)
    assert asked == [f"{ann}.IMAGENET1K_V1"]
    own = net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in weights.items())


def test_mistakes_are_told_in_words():
    with pytest.raises(UsageError, match=r"give single_step_neuron=neuron\.IFNode"):
        spiking_resnet.spiking_resnet18()
    with pytest.raises(UsageError, match="dilated"):
        spiking_resnet.spiking_resnet18(
            single_step_neuron=neuron.IFNode, replace_stride_with_dilation=[False, False, True]
        )
    with pytest.raises(ValueError, match="connect must be one of ADD, AND, IAND"):
        sew_resnet.sew_resnet18(single_step_neuron=neuron.IFNode)
    with pytest.raises(ValueError, match=r"\[T, N, C, H, W\]"):
        spiking_resnet.multi_step_spiking_resnet18(multi_step_neuron=neuron.MultiStepIFNode)(torch.rand(1, 3, 32, 32))


def test_a_neuron_that_goes_through_time_by_itself_keeps_its_own_way():
    class Looped(neuron.IFNode):
        def forward(self, x_seq):
            return torch.stack([super(Looped, self).forward(x) for x in x_seq])

    torch.manual_seed(0)
    looped = spiking_resnet.multi_step_spiking_resnet18(multi_step_neuron=Looped, T=3, num_classes=4).eval()
    fused = spiking_resnet.multi_step_spiking_resnet18(multi_step_neuron=neuron.IFNode, T=3, num_classes=4).eval()
    for module in looped.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.7
    fused.load_state_dict(looped.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        logits = fused(images)
        assert torch.equal(looped(images), logits)
    assert logits.std() > 0


def test_the_parameters_of_a_vggs_neurons_have_classic_keys_which_load_back():
    net = spiking_vgg.spiking_vgg11_bn(single_step_neuron=neuron.ParametricLIFNode, num_classes=3)
    keys = [key for key in net.state_dict() if key.endswith(".w")]
    assert keys[0] == "features.2.w"
    assert keys[-1] == "classifier.4.w"
    state = {key: value + 1 for key, value in net.state_dict().items()}
    outer = nn.Sequential(net)
    outer.load_state_dict({f"0.{key}": value for key, value in state.items()}, strict=True)
    assert torch.equal(net.features[2].sn.w, state["features.2.w"])
    assert next(key for key in outer.state_dict() if key.endswith(".w")) == "0.features.2.w"
