"""The error of each layer against the decoded outputs, computed the long way."""

import pytest
import torch
import torchvision

import snnzoo
from helpers import shake_batch_norm
from snnzoo import functional
from snnzoo.evaluation.layer_errors import layer_errors
from snnzoo.models.factory import build_ann


@pytest.mark.parametrize("recipe", ["delta", "rate"])
def test_errors_are_those_of_the_decoded_outputs(recipe):
    torch.manual_seed(0)
    weights = shake_batch_norm(torchvision.models.resnet18(num_classes=3)).double().state_dict()
    ann = build_ann("resnet18", weights, "weights", num_classes=3).double()
    images = torch.randn(6, 3, 32, 32).double()
    net = snnzoo.convert(ann, images, recipe, time_steps=4)
    errors = layer_errors(net, images[:3], [2, 4])
    assert list(errors) == [node.path for node in net.graph.neurons]

    outputs, activations = {}, {}
    for site in errors:  # the modules of the ANN itself
        ann.get_submodule(site).register_forward_hook(lambda _m, _x, y, site=site: activations.update({site: y}))
    with torch.inference_mode():
        ann(images[:3])
        functional.reset_net(net)
        net.run(images[:3].expand(4, 3, 3, 32, 32), lambda node, _x, y: outputs.update({node.path: y}))
    for site, by_steps in errors.items():
        for t, error in zip([2, 4], by_steps, strict=True):
            total = outputs[site][:t].sum(0)
            decoded = total if recipe == "delta" else total / t
            by_hand = (activations[site] - decoded).square().sum() / activations[site].square().sum()
            assert error == pytest.approx(by_hand.item(), rel=1e-9)
    assert errors["sn1"][1] < errors["sn1"][0]
