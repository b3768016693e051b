"""SEW ResNets against their definition, SpikingJelly's, and torchvision's keys."""

import functools

import pytest
import torch
import torchvision

import snnzoo
from helpers import NEURONS, assert_patterns_agree, firing
from snnzoo import functional, neuron
from snnzoo.errors import UsageError
from snnzoo.models import registry
from snnzoo.models.sew_resnet import CONNECT, SEWBasicBlock, SEWBottleneck
from snnzoo.recognition import identify

SEW = [name for name, spec in registry.MODELS.items() if spec.network == "SEWResNet"]


def layout(net):
    return [(key, value.shape, value.dtype) for key, value in net.state_dict().items()]


@pytest.mark.parametrize("name", SEW)
def test_state_dict_equals_torchvisions_in_keys_order_shapes_and_dtypes(name):
    with torch.device("meta"):
        ours, theirs = snnzoo.create_model(name), torchvision.models.get_model(name.removeprefix("sew_"))
    assert layout(ours) == layout(theirs)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_the_zoo_has_five():
    assert [f"sew_resnet{depth}" for depth in (18, 34, 50, 101, 152)] == SEW


def test_connections_are_those_of_the_paper():
    out, identity = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    tables = {"ADD": [0, 1, 1, 2], "AND": [0, 0, 0, 1], "IAND": [0, 1, 0, 0]}
    assert {name: connect(out, identity).tolist() for name, connect in CONNECT.items()} == tables


@pytest.mark.parametrize("connect", CONNECT)
@pytest.mark.parametrize("name", SEW)
def test_step_by_step_equals_layer_by_layer(name, connect):
    if connect != "ADD" and name not in ("sew_resnet18", "sew_resnet50"):
        pytest.skip("the connection is the same in deeper networks")
    x_seq = torch.randn(3, 1, 3, 32, 32, dtype=torch.float64)
    weights = None
    deep = name in ("sew_resnet101", "sew_resnet152")
    for kind, make in list(NEURONS.items())[:: 3 if deep else 1]:  # of the deep ones, IF hard and LIF soft
        net = snnzoo.create_model(name, neuron=make, num_classes=5, connect=connect)
        if weights is None:
            weights = firing(net).state_dict()
        net.double().eval().load_state_dict(weights)
        assert_patterns_agree(net, x_seq)
        if kind == "IF soft":
            assert_patterns_agree(net, x_seq[0].expand(3, *x_seq[0].shape))


@pytest.mark.parametrize("block", [SEWBasicBlock, SEWBottleneck])
@pytest.mark.parametrize("connect", CONNECT)
def test_a_block_joins_the_last_neurons_spikes_with_the_shortcuts(block, connect):
    name = {SEWBasicBlock: "sew_resnet18", SEWBottleneck: "sew_resnet50"}[block]
    net = firing(snnzoo.create_model(name, connect=connect, num_classes=2))
    caught = {}
    for place, part in ((net.layer2[0], "first"), (net.layer2[1], "second")):
        last = place.sn2 if block is SEWBasicBlock else place.sn3
        last.register_forward_hook(lambda _m, _x, y, part=part: caught.update({f"{part} out": y}))
        place.register_forward_hook(lambda _m, x, y, part=part: caught.update({f"{part} x": x[0], part: y}))
    net.layer2[0].downsample_sn.register_forward_hook(lambda _m, _x, y: caught.update(projected=y))
    with torch.inference_mode():
        net(torch.randn(3, 2, 3, 64, 64, dtype=torch.float64))
    assert torch.equal(caught["first"], CONNECT[connect](caught["first out"], caught["projected"]))
    assert torch.equal(caught["second"], CONNECT[connect](caught["second out"], caught["second x"]))
    assert set(caught["projected"].unique().tolist()) == {0.0, 1.0}
    binary = connect != "ADD"
    assert (caught["second"].max() <= 1) == binary


@pytest.mark.parametrize("connect", CONNECT)
@pytest.mark.parametrize("depth", [18, 50])
def test_output_equals_spikingjellys(depth, connect):
    pytest.importorskip("spikingjelly")
    if (depth, connect) == (50, "IAND"):
        pytest.skip("their bottleneck has out and identity the other way round than their basic block and the paper")
    from spikingjelly.activation_based import functional as sj_functional
    from spikingjelly.activation_based import neuron as sj_neuron
    from spikingjelly.activation_based.model import sew_resnet

    make = getattr(sew_resnet, f"sew_resnet{depth}")
    theirs = make(cnf=connect, spiking_neuron=sj_neuron.IFNode, num_classes=5)
    ours = firing(snnzoo.create_model(f"sew_resnet{depth}", connect=connect, num_classes=5))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.double().eval()
    sj_functional.set_step_mode(theirs, "m")
    x_seq = torch.randn(4, 2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x_seq), theirs(x_seq), rtol=1e-10, atol=1e-10)


def test_a_network_to_train_takes_two_channels_and_gets_gradients():
    net = snnzoo.create_model("sew_resnet18", neuron="plif", in_channels=2, num_classes=3).train()
    net(torch.rand(4, 2, 2, 32, 32) * 4).mean(0).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.conv1.weight.grad.abs().sum() > 0


def test_weights_of_a_resnet_load_and_are_still_known_as_a_resnets():
    net = snnzoo.create_model("sew_resnet18", num_classes=3, neuron=functools.partial(neuron.IFNode, v_reset=None))
    net.load_state_dict(torchvision.models.resnet18(num_classes=3).state_dict(), strict=True)
    functional.reset_net(net)
    assert identify(net.state_dict(), "f")[0] == "resnet18"


def test_converting_a_sew_resnet_is_an_error_that_says_why():
    with pytest.raises(UsageError, match=r"sew_resnet18 is a network to train.*resnet18"):
        snnzoo.convert(snnzoo.create_model("sew_resnet18", num_classes=2), torch.rand(2, 3, 32, 32))


def test_another_connection_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="connect must be one of ADD, AND, IAND, got 'XOR'"):
        snnzoo.create_model("sew_resnet18", connect="XOR")
