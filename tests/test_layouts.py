"""Key layouts: detection, wrapping, both directions, and what is refused."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn

import snnzoo
from snnzoo import layer, neuron
from snnzoo.checkpoints.layout_rules import LAYOUTS, Rule, is_neuron_key, writable_layout
from snnzoo.checkpoints.layouts import from_torchvision
from snnzoo.errors import CheckpointError, UsageError
from snnzoo.models import factory
from snnzoo.recognition import read_layout

WRITABLE = [name for name, layout in LAYOUTS.items() if layout.writable]


@pytest.fixture(scope="module")
def net():
    return torchvision.models.resnet18(num_classes=10).eval()


@pytest.fixture(scope="module")
def weights(net):
    return net.state_dict()


@pytest.fixture(scope="module")
def cifar():
    return factory.build("resnet20", nn.ReLU, option="B", step_mode="s").state_dict()


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


def assert_same(found, weights):
    assert set(found) == set(weights)
    assert all(found[key] is weights[key] or torch.equal(found[key], weights[key]) for key in weights)


# rules


@pytest.mark.parametrize(
    ("theirs", "ours", "key", "name"),
    [
        ("a.{s-1}.b.{b}", "layer{s}.{b}", "a.0.b.3.weight", "layer1.3.weight"),
        ("linear", "fc", "linear.bias", "fc.bias"),
        ("head.fc{rest}", "fc{rest}", "head.fc.weight", "fc.weight"),
        ("head.fc{rest}", "fc{rest}", "head.fc.0.2.weight", "fc.0.2.weight"),
        ("conv{i-1}.0", "conv{i}", "conv0.0.weight", "conv1.weight"),
    ],
)
def test_a_rule_translates_in_both_directions(theirs, ours, key, name):
    rule = Rule(theirs, ours)
    assert rule.to_torchvision(key) == name
    assert rule.from_torchvision(name) == key


@pytest.mark.parametrize("key", ["linear", "linear.0.weight", "xlinear.weight", "linear.weight.x y", "linearx.weight"])
def test_a_rule_leaves_other_keys_alone(key):
    assert Rule("linear", "fc").to_torchvision(key) is None


@pytest.mark.parametrize("layout", WRITABLE)
def test_every_layout_that_can_be_written_reads_back_the_same(layout, weights, cifar):
    for state_dict in (weights, cifar):
        written = from_torchvision(state_dict, layout)
        assert_same(read_layout(written, "f", layout).state_dict, state_dict)
        found = read_layout(written, "f")
        assert_same(found.state_dict, state_dict)
        assert found.confidence == 1.0


@pytest.mark.parametrize("layout", ["huggingface", "mmpretrain", "akamaster", "container"])
def test_a_layout_with_names_of_its_own_is_detected_by_them(layout, weights):
    found = read_layout(from_torchvision(weights, layout), "f")
    assert found.layout.name == layout
    assert found.summary.startswith(f"layout {layout} (sure: all {len(weights)} keys")


# wrapping


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.",
                                    "backbone.", "0.", "model.module.net._orig_mod."])  # fmt: skip
def test_common_prefixes_are_removed_in_any_nesting(prefix, weights):
    found = read_layout(prefixed(weights, prefix), "f")
    assert_same(found.state_dict, weights)
    assert sorted(found.wrapping) == sorted(f"{part}." for part in prefix.split(".")[:-1])


def test_a_submodule_that_was_compiled_or_parallel_is_found(weights):
    keys = {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", key): value for key, value in weights.items()}
    assert_same(read_layout(keys, "f").state_dict, weights)
    keys = {re.sub(r"^(layer\d)\.", r"\1.module.", key): value for key, value in weights.items()}
    assert_same(read_layout(keys, "f").state_dict, weights)


def test_real_wrapped_modules_are_read(net, weights):
    assert_same(read_layout(nn.DataParallel(net).state_dict(), "f").state_dict, weights)
    assert_same(read_layout(torch.compile(net).state_dict(), "f").state_dict, weights)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    found = read_layout(averaged.state_dict(), "f")
    assert_same(found.state_dict, weights)
    assert found.notes == ("left out n_averaged: not of the network",)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", "model_state_dict", "model_ema", "ema",
                                     "state_dict_ema", "ema_state_dict"])  # fmt: skip
def test_wrapping_dicts_are_opened(wrapper, weights):
    content = {"epoch": 3, wrapper: prefixed(weights, "module."), "optimizer": {"state": {}, "param_groups": []}}
    found = read_layout(content, "f")
    assert_same(found.state_dict, weights)
    assert found.wrapping == (wrapper, "module.")
    assert found.extra["epoch"] == 3


def test_wrapping_dicts_inside_each_other_are_opened(weights):
    content = {"state_dict": {"model": {"net": weights}}}
    assert read_layout(content, "f").wrapping == ("state_dict", "model", "net")


@pytest.mark.parametrize("ema", ["model_ema", "ema", "state_dict_ema", "ema_state_dict"])
def test_plain_weights_are_preferred_to_averaged_ones_and_it_is_said(ema, weights):
    other = {key: value + 1 for key, value in weights.items()}
    found = read_layout({ema: other, "state_dict": weights}, "f")
    assert_same(found.state_dict, weights)
    assert found.notes == (f"took 'state_dict'; the averaged weights in '{ema}' were left out",)


def test_averaged_weights_in_the_same_dict_are_left_out(weights):
    found = read_layout({**prefixed(weights, "model."), **prefixed(weights, "ema_model.")}, "f")
    assert_same(found.state_dict, weights)
    assert "averaged weights" in found.notes[0]


def test_lightning_checkpoints_lose_what_is_not_of_the_network(weights):
    content = {
        "state_dict": {**prefixed(weights, "model."), "criterion.weight": torch.ones(10)},
        "epoch": 1,
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"lr": 0.1},
    }
    found = read_layout(content, "f")
    assert_same(found.state_dict, weights)
    assert found.notes == ("left out criterion.weight: not of the network",)


def test_plain_values_beside_tensors_are_left_out_and_it_is_said(weights):
    found = read_layout({**weights, "epoch": 7, "arch": "resnet18"}, "f")
    assert_same(found.state_dict, weights)
    assert found.notes == ("left out epoch, arch, no tensors",)
    assert found.extra == {"epoch": 7, "arch": "resnet18"}


def recursive():
    content = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds an empty dict, not a state dict"),
        ({"state_dict": {}}, "holds a dict, not a state dict"),
        ({"conv1.weight": [1.0], "fc.weight": torch.ones(1)}, "not a state dict: conv1.weight are not tensors"),
        ({1: torch.ones(1)}, "not a state dict: 1 are not tensors"),
        (recursive(), "not a state dict"),
        (None, "holds a NoneType"),
    ],
)
def test_what_holds_no_state_dict_is_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        read_layout(content, "f")


# containers and positions


class Wrapped(nn.Module):
    """A ResNet block by block inside SeqToANNContainer, as older multi-step libraries write them."""

    def __init__(self, net, together):
        super().__init__()
        for name, child in copy.deepcopy(net).named_children():
            self.add_module(name, child)
        for module in [self.layer1, self.layer2, self.layer3, self.layer4]:
            for block in module:
                for i in "12":
                    conv, bn = getattr(block, f"conv{i}"), getattr(block, f"bn{i}")
                    if together:
                        setattr(block, f"conv{i}", layer.SeqToANNContainer(conv, bn))
                        delattr(block, f"bn{i}")
                    else:
                        setattr(block, f"conv{i}", layer.SeqToANNContainer(conv))
                        setattr(block, f"bn{i}", layer.SeqToANNContainer(bn))
                if block.downsample is not None and together:
                    block.downsample = nn.Sequential(layer.SeqToANNContainer(*block.downsample), nn.ReLU())
                elif block.downsample is not None:
                    block.downsample = nn.Sequential(*(layer.SeqToANNContainer(part) for part in block.downsample))
        self.fc = layer.SeqToANNContainer(self.fc)


@pytest.mark.parametrize("together", [False, True])
def test_networks_of_wrapped_layers_are_read(together, net, weights):
    found = read_layout(Wrapped(net, together).state_dict(), "f")
    assert found.layout.name == "container"
    assert found.confidence == 1.0
    assert_same(found.state_dict, weights)


def sequential(net):
    stem = layer.SeqToANNContainer(net.conv1, net.bn1, net.maxpool)
    return nn.Sequential(stem, neuron.IFNode(), net.layer1, net.layer2, net.layer3, net.layer4, nn.Flatten(), net.fc)


@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "sorted as safetensors does"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_networks_of_numbered_layers_are_read(name, ordered):
    net = torchvision.models.get_model(name, num_classes=10)
    for form in (sequential(net), nn.Sequential(*net.children()), layer.SeqToANNContainer(*net.children())):
        state_dict = form.state_dict()
        state_dict = state_dict if ordered else {key: state_dict[key] for key in sorted(state_dict)}
        found = read_layout(state_dict, "f")
        assert found.layout.name == "sequential"
        assert_same(found.state_dict, net.state_dict())


def test_a_numbered_network_keeps_its_replaced_classifier(weights):
    net = torchvision.models.resnet18()
    classifier = (nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    found = read_layout(nn.Sequential(*list(net.children())[:-1], nn.Flatten(), *classifier).state_dict(), "f")
    assert {key for key in found.state_dict if key.startswith("fc")} == {
        "fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias",
    }  # fmt: skip


def test_numbered_layers_in_another_order_are_refused(weights):
    net = torchvision.models.resnet18()
    shuffled = nn.Sequential(*reversed(list(net.children())))
    with pytest.raises(CheckpointError, match="in no layout known"):
        read_layout(shuffled.state_dict(), "f")


# ambiguity, asking for a layout, refusal


def test_ambiguity_names_the_candidates_and_the_flag(weights):
    both = {**weights, "linear.weight": weights["fc.weight"], "linear.bias": weights["fc.bias"]}
    with pytest.raises(
        CheckpointError, match=r"could be in layout torchvision or .*akamaster.*: say which with --layout"
    ):
        read_layout(both, "f")
    found = read_layout(both, "f", "torchvision")
    assert_same(found.state_dict, weights)
    assert found.notes == ("left out linear.weight, linear.bias: layout torchvision does not know them",)
    assert found.confidence < 1


def test_several_networks_in_one_file_are_refused_by_name(weights):
    with pytest.raises(CheckpointError, match=r"several networks \(student., teacher.\)"):
        read_layout({**prefixed(weights, "student."), **prefixed(weights, "teacher.")}, "f")


def test_keys_of_no_layout_are_refused_with_the_layouts_named():
    with pytest.raises(CheckpointError, match=r"its keys \(a.weight, b.weight\) are in no layout known .*huggingface"):
        read_layout({"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, "f")


def test_a_layout_that_fits_no_key_is_refused(weights):
    with pytest.raises(CheckpointError, match="no key is of layout huggingface"):
        read_layout(weights, "f", "huggingface")


def test_unknown_layouts_are_usage_errors(weights):
    with pytest.raises(UsageError, match="did you mean huggingface"):
        read_layout(weights, "f", "hugging_face")
    with pytest.raises(UsageError, match="layout 'sequential' can only be read"):
        writable_layout("sequential")


def test_a_few_unknown_keys_pass_through_to_be_named_later(weights):
    found = read_layout({**weights, "extra.weight": torch.ones(1)}, "f")
    assert "extra.weight" in found.state_dict
    assert found.summary == "layout torchvision (likely: 122 of 123 keys are its own)"


def test_a_key_without_a_name_in_the_layout_is_an_error(weights):
    with pytest.raises(CheckpointError, match=r"layout huggingface has no name for fc\.0\.weight"):
        from_torchvision({"fc.0.weight": torch.ones(1)}, "huggingface")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("conv1.3.weight", "stem of several convolutions"),
        ("layer1.0.se.fc1.weight", "squeeze-and-excitation"),
        ("layer2.0.downsample.2.weight", "average-pooled shortcuts"),
        ("stem.conv1.weight", "another family"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(key, reason, weights):
    with pytest.raises(CheckpointError, match=f"no torchvision ResNet: it has .*{reason}.*{re.escape(key)}"):
        read_layout({**weights, key: torch.ones(1)}, "f")


def test_group_norm_is_refused():
    net = torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(8, channels))
    with pytest.raises(CheckpointError, match=r"no running_mean and running_var .*GroupNorm"):
        read_layout(net.state_dict(), "f")


# neurons' own parameters

OLD_KEYS = {"sn1.module.surrogate_function.alpha": torch.tensor(2.0), "layer1.0.sn1.module.w": torch.tensor(0.3),
            "layer1.0.sn2.w": torch.tensor(-0.2)}  # fmt: skip


def test_an_ann_checkpoint_loads_strictly_into_parametric_neurons(weights):
    net = factory.build("resnet18", "plif", num_classes=10)
    initial = {key: value.clone() for key, value in net.state_dict().items() if is_neuron_key(key)}
    assert len(initial) == 17
    with pytest.warns(UserWarning, match="neuron parameters that the checkpoint lacks keep their initial values"):
        net.load_state_dict(weights, strict=True)
    own = net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in initial.items())
    assert torch.equal(own["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])


def test_parameters_of_neurons_are_neither_missing_nor_unexpected(weights):
    found = read_layout({**weights, **OLD_KEYS}, "f")
    assert found.layout.name == "spikingjelly"
    assert found.confidence == 1.0
    for kind in ("if", "plif"):
        net = factory.build("resnet18", kind, num_classes=10)
        factory.load_ann_weights(net, found.state_dict, "f")
        if kind == "plif":
            assert net.layer1[0].sn1.w.item() == pytest.approx(0.3)
            assert net.layer1[0].sn2.w.item() == pytest.approx(-0.2)
    factory.load_ann_weights(factory.build("resnet18", nn.ReLU, num_classes=10), found.state_dict, "f")


def test_a_neuron_parameter_of_another_shape_keeps_its_initial_value(weights):
    net = factory.build("resnet18", "plif", num_classes=10)
    factory.load_ann_weights(net, {**weights, "sn1.w": torch.ones(64)}, "f")
    assert net.sn1.w.item() == 0.0


def test_a_surrogate_slope_of_an_older_library_is_no_unexpected_key(weights):
    net = factory.build("resnet18", "lif", num_classes=10)
    old = {**weights, "sn1.module.surrogate_function.alpha": torch.tensor(2.0)}
    net.load_state_dict(old, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected"):
        net.load_state_dict({**old, "sn1.bogus": torch.tensor(2.0)}, strict=True)


@pytest.mark.parametrize("size", [(0, 3, 3, 3), (16, 0, 3, 3), (16, 3, 0, 3)], ids=str)
def test_layers_without_weights_are_refused_before_a_model_is_built(size):
    state_dict = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s").state_dict()
    for key, shape in (("conv1.weight", size), ("layer1.0.bn1.bias", (0,)), ("fc.weight", (0, 64))):
        with pytest.raises(CheckpointError, match=re.escape(f"layers without weights: {key} {list(shape)}; the file")):
            read_layout({**state_dict, key: torch.empty(shape)}, "file.pth")
    beside = read_layout({**state_dict, "queue": torch.empty(0)}, "file.pth")
    assert beside.layout.name == "torchvision"
