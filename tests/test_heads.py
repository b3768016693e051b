"""Classifiers of several layers: described, built, inferred from keys, and refused when malformed."""

import json

import pytest
import torch
import torchvision
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.errors import CheckpointError, UsageError
from snnzoo.models import factory, heads
from snnzoo.recognition import identify, read_layout
from snnzoo.recognition.head import infer_head

MODULES = {
    "linear": nn.Linear(8, 4),
    "without bias": nn.Linear(8, 4, bias=False),
    "usual": nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4)),
    "dropout first": nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4)),
    "nested": nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 6), nn.GELU()), nn.Linear(6, 4)),
    "named": nn.Sequential(),
    "norms": nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.LayerNorm(6), nn.Linear(6, 4)),
    "others": nn.Sequential(
        nn.Linear(8, 6), nn.LeakyReLU(0.1), nn.Tanh(), nn.Sigmoid(), nn.Identity(), nn.ELU(), nn.Linear(6, 4)
    ),
}
for _name, _part in (("fc1", nn.Linear(8, 6)), ("relu", nn.ReLU()), ("fc2", nn.Linear(6, 4))):
    MODULES["named"].add_module(_name, _part)


@pytest.mark.parametrize("name", MODULES)
def test_a_described_classifier_is_built_the_same(name):
    module = MODULES[name].eval()
    description = heads.describe(module)
    built = heads.build(json.loads(json.dumps(description))).eval()
    assert heads.describe(built) == description
    built.load_state_dict(module.state_dict(), strict=True)
    x = torch.randn(3, 8)
    assert torch.equal(built(x), module(x))
    assert heads.features(description) == (8, 4)


class Custom(nn.Module):
    pass


@pytest.mark.parametrize("module", [Custom(), nn.Sequential(nn.Linear(2, 2), Custom()), nn.Conv2d(1, 1, 1),
                                    nn.Sequential(nn.Flatten(0)), nn.LayerNorm((2, 2)), nn.PReLU(),
                                    nn.BatchNorm1d(2, track_running_stats=False)])  # fmt: skip
def test_what_a_description_cannot_express_has_none(module):
    assert heads.describe(module) is None


INFERRED = {
    "usual": (
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4)),
        [["Linear", 8, 6, True], ["ReLU"], ["Identity"], ["Linear", 6, 4, True]],
        "classifier fc.*: assumed a ReLU at fc.1, dropout or nothing at fc.2; what has no weights leaves no keys",
    ),
    "dropout first": (
        nn.Sequential(nn.Dropout(), nn.Linear(8, 4)),
        [["Identity"], ["Linear", 8, 4, True]],
        "classifier fc.*: assumed dropout or nothing at fc.0; what has no weights leaves no keys",
    ),
    "no gap": (
        nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)),
        [["Linear", 8, 6, True], ["Linear", 6, 4, True]],
        None,
    ),
    "batch norm": (
        nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4)),
        [["Linear", 8, 6, False], ["BatchNorm1d", 6, 1e-5, True], ["ReLU"], ["Identity"], ["Linear", 6, 4, True]],
        "classifier fc.*: assumed a ReLU at fc.2, dropout or nothing at fc.3; what has no weights leaves no keys",
    ),
    "named": (
        MODULES["named"],
        {"fc1": ["Linear", 8, 6, True], "relu_before_fc2": ["ReLU"], "fc2": ["Linear", 6, 4, True]},
        "classifier fc.*: assumed a ReLU before fc.fc2; what has no weights leaves no keys",
    ),
    "without bias": (nn.Linear(8, 4, bias=False), ["Linear", 8, 4, False], None),
    "plain": (nn.Linear(8, 4), None, None),
}


@pytest.mark.parametrize("name", INFERRED)
def test_a_classifier_is_inferred_from_its_keys(name):
    module, description, note = INFERRED[name]
    shake_batch_norm(module.eval())
    state_dict = {f"fc.{key}": value for key, value in module.state_dict().items()}
    assert infer_head(state_dict) == (description, note)
    if description is not None:
        built = heads.build(description).eval()
        built.load_state_dict(module.state_dict(), strict=True)
        x = torch.randn(3, 8)
        assert torch.equal(built(x), module(x))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fc.0.weight": torch.ones(4, 4, 3, 3)}, r"no kind of layer known has fc.0.weight \[4, 4, 3, 3\]"),
        ({"fc.0.weight": torch.ones(4, 8), "fc.2.weight": torch.ones(2, 5)}, "takes 5 features after a layer of 4"),
        ({"fc.999999.weight": torch.ones(4, 8)}, "position 999999 is implausible"),
        ({"fc.0.weight": torch.ones(4)}, "no kind of layer known"),
        ({"fc.0.weight": torch.ones(4), "fc.0.bias": torch.ones(4)}, "no Linear layer"),
        ({"fc.0.weight": torch.ones(4, 8), "fc.a.weight": torch.ones(4, 4)}, "order of its layers 0, a is not known"),
    ],
)
def test_a_classifier_of_unknown_layers_is_refused(tensors, message):
    with pytest.raises(CheckpointError, match=message):
        infer_head(tensors)


def nested(depth):
    description = [["Linear", 512, 10, True]]
    for _ in range(depth):
        description = [description]
    return description


@pytest.mark.parametrize(
    "description",
    [
        None, 3, "Linear", {}, [], [[]], ["os.system", "ls"], [["Linear"]], [["Linear", 512]],
        [["Linear", "512", 10, True]], [["Linear", 512.0, 10, True]], [["Linear", True, 10, True]],
        [["Linear", 512, 0, True]], [["Linear", 512, -1, True]], [["Linear", 512, 10**12, True]],
        [["Linear", 512, 1 << 20, True], ["Linear", 1 << 20, 10, True]], [["Linear", 512, 10, "yes"]],
        [["Linear", 512, 10, True, None]], [["ReLU", 1], ["Linear", 512, 10, True]], [["ReLU"]] * 3,
        [["ReLU"]] * 65 + [["Linear", 512, 10, True]], nested(5000), nested(20), [["Dropout", 7], ["Linear", 512, 10]],
        [["Linear", 512, 10, True], ["BatchNorm1d", 11, 1e-5, True]], {"a.b": ["Linear", 512, 10, True]},
        {"": ["Linear", 512, 10, True]}, [["GELU", "eval"], ["Linear", 512, 10, True]], [[["Linear"], 512, 10]],
        [["Dropout", float("nan")], ["Linear", 512, 10, True]], {"forward": ["Linear", 512, 10, True]},
        {"training": ["Linear", 512, 10, True]}, [["Linear", 256, 10, True]],
    ],
)  # fmt: skip
def test_a_malformed_description_is_a_usage_error(description):
    with pytest.raises(UsageError):
        factory.build("resnet18", head=description) if description is not None else heads.build(description)


def replaced(*layers):
    net = torchvision.models.resnet18()
    net.fc = nn.Sequential(*layers)
    return shake_batch_norm(net).eval()


def test_a_fine_tuned_resnet_with_a_replaced_classifier_gives_equal_outputs():
    theirs = replaced(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 7)).double()
    found = read_layout(theirs.state_dict(), "f")
    assert found.confidence == 1.0
    assert any("assumed a ReLU at fc.1" in note for note in found.notes)
    name, kwargs = identify(found.state_dict, "f")
    assert (name, kwargs["num_classes"]) == ("resnet18", 7)
    ours = factory.build(name, nn.ReLU, step_mode="s", **kwargs).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert (theirs(x) - ours(x)).abs().max() <= 1e-9
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_a_network_remembers_its_classifier_for_the_file():
    head = [["Linear", 512, 16, True], ["Tanh"], ["Linear", 16, 3, True]]
    net = snnzoo.create_model("resnet18", head=head)
    assert net.model_kwargs == {"num_classes": 3, "head": head}
    again = factory.build("resnet18", **json.loads(json.dumps(net.model_kwargs)))
    assert heads.describe(again.fc) == head
    assert net.eval()(torch.randn(2, 1, 3, 32, 32)).shape == (2, 1, 3)


def test_a_classifier_with_other_classes_names_the_flag():
    with pytest.raises(UsageError, match="has 3 classes, not 5: give --num-classes 3"):
        factory.build("resnet18", head=[["Linear", 512, 3, True]], num_classes=5)


def test_a_classifier_that_does_not_fit_the_network_is_a_usage_error():
    with pytest.raises(UsageError, match="resnet50: the head takes 512 features, but the network has 2048"):
        factory.build("resnet50", head=[["Linear", 512, 3, True]])


@pytest.mark.parametrize("recipe", ["delta", "rate"])
def test_a_converted_network_keeps_its_classifier_analog(recipe, tmp_path):
    head = [["Linear", 64, 32, True], ["ReLU"], ["Dropout", 0.2], ["Linear", 32, 7, True]]
    ann = shake_batch_norm(factory.build("resnet20", nn.ReLU, step_mode="s", head=head)).eval()
    images = torch.randn(4, 3, 16, 16)
    snn = snnzoo.convert(ann, images, recipe=recipe, time_steps=4)
    snnzoo.save(snn, tmp_path / "snn.safetensors")
    loaded = snnzoo.load(tmp_path / "snn.safetensors")
    assert [node.path for node in loaded.graph if node.is_activation][-1] == "fc.1"
    assert "fc.1" not in [node.path for node in loaded.sites]
    snnzoo.functional.reset_net(snn)
    x_seq = images.expand(4, *images.shape)
    with torch.inference_mode():
        expected, logits, decoded = snn(x_seq), loaded(x_seq), ann(images)
    assert logits.shape == (4, 4, 7)
    assert torch.equal(logits, expected)
    if recipe == "delta":
        assert (logits[-1] - decoded).abs().mean() < 0.5 * (logits[0] - decoded).abs().mean()
