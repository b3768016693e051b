"""What training scripts and libraries put around, beside and into the weights of a ResNet: read right, or refused."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from snnzoo.checkpoints.files import read_checkpoint
from snnzoo.checkpoints.stored_in_parts import put_together
from snnzoo.errors import CheckpointError
from snnzoo.recognition import identify
from snnzoo.recognition.reading import read_layout


def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


NET = resnet18()
WEIGHTS = NET.state_dict()
BODY = {key: value for key, value in WEIGHTS.items() if not key.startswith("fc.")}
OTHER = {key: value + 1 for key, value in WEIGHTS.items()}


def prefixed(prefix, weights=WEIGHTS):
    return {prefix + key: value for key, value in weights.items()}


def classifier(name):
    return {f"{name}.weight": WEIGHTS["fc.weight"], f"{name}.bias": WEIGHTS["fc.bias"]}


def read_back(content, path):
    """What is read of a file that torch.save writes."""
    torch.save(content, path)
    return read_layout(read_checkpoint(Path(path)), str(path))


READ = {
    "state": {"state": WEIGHTS, "epoch": 3},
    "params": {"params": WEIGHTS},
    "model_state": {"model_state": WEIGHTS, "optimizer_state": torch.optim.SGD(NET.parameters(), 0.1).state_dict()},
    "best_state_dict": {"best_state_dict": WEIGHTS, "best_acc": 0.9},
    "student, with its teacher": {"student": WEIGHTS, "teacher": OTHER},
    "Composer": {"state": {"model": prefixed("module."), "optimizers": {}}, "rng": [torch.get_rng_state()]},
    "a single key of any name": {"resnet_final": WEIGHTS, "epoch": 3, "args": {"lr": 0.1}},
    "a tuple, the weights first": (WEIGHTS, {"state": {}, "param_groups": []}),
    "a list of one": [WEIGHTS],
    "a tuple in a wrapper's place": ({"state_dict": prefixed("module.")}, 3),
    "last_linear": {**BODY, **classifier("last_linear")},
    "head": {**BODY, **classifier("head")},
    "backbone and head": {**prefixed("backbone.", BODY), **classifier("head")},
    "backbone and classifier": {**prefixed("backbone.", BODY), **classifier("classifier")},
    "backbone and fc, in a module": prefixed("model.", {**prefixed("backbone.", BODY), **classifier("fc")}),
    "thop's counts": {**WEIGHTS, "total_ops": torch.zeros(1), "layer1.0.conv1.total_ops": torch.zeros(1),
                      "layer1.0.conv1.total_params": torch.zeros(1)},
    "class weights of Lightning": {"state_dict": {**prefixed("model."), "class_weights": torch.ones(10),
                                                  "train_acc.confmat": torch.ones(10, 10)}},
    "state beside the weights": {**WEIGHTS, "layer1._extra_state": {"scale": 1}},
    "fastai, one Linear layer": {"model": nn.Sequential(nn.Sequential(*list(copy.deepcopy(NET).children())[:-2]),
                                 nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(NET.fc))
                                 ).state_dict(), "opt": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_weights_are_found_in_common_wrappers_and_under_common_names(name, tmp_path):
    found = read_back(READ[name], tmp_path / "file.pth")
    assert set(found.state_dict) == set(WEIGHTS)
    assert all(torch.equal(found.state_dict[key], value) for key, value in WEIGHTS.items())
    assert identify(found.state_dict, "file") == ("resnet18", {"num_classes": 10, "in_channels": 3})


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("student, with its teacher", "took 'student'; 'teacher' was left out"),
        ("thop's counts", "left out total_ops, layer1.0.conv1.total_ops, layer1.0.conv1.total_params: counts of"),
        ("class weights of Lightning", "left out class_weights: not of the network"),
        ("state beside the weights", "left out layer1._extra_state, no tensors"),
    ],
)
def test_what_is_left_out_is_said(name, note, tmp_path):
    assert any(line.startswith(note) for line in read_back(READ[name], tmp_path / "file.pth").notes)


def fastai(pool, features):
    body = nn.Sequential(*list(resnet18().children())[:-2])
    head = nn.Sequential(
        pool, nn.Flatten(), nn.BatchNorm1d(features), nn.Dropout(0.25), nn.Linear(features, 512, bias=False),
        nn.ReLU(), nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, 10, bias=False),
    )  # fmt: skip
    return {"model": nn.Sequential(body, head).state_dict(), "opt": {}}


REFUSED = {
    "several state dicts": ({"first": WEIGHTS, "second": OTHER}, r"several state dicts \(first, second\)"),
    "two networks": ({**prefixed("a."), **prefixed("b.")}, r"several networks \(a\., b\.\)"),
    "named_parameters": (dict(NET.named_parameters()), "saved from named_parameters"),
    "a network for videos": ({"stem.0.weight": torch.ones(8, 3, 3, 7, 7)}, "convolutions in three dimensions"),
    "segmentation": ({**prefixed("backbone.", BODY), "classifier.0.weight": torch.ones(8, 512, 3, 3)},
                     "a head of convolutions"),
    "self-supervised": (
        {**prefixed("backbone.", nn.Sequential(*list(resnet18().children())[:-1]).state_dict()),
         "projection_head.0.weight": torch.ones(512, 512), "projection_head.2.weight": torch.ones(128, 512)},
        "a projection head",
    ),
    "fastai's concatenated pools": (fastai(nn.AdaptiveAvgPool2d(1), 1024), "concat_pool=False"),
    "an optimizer alone": (torch.optim.SGD(NET.parameters(), 0.1, momentum=0.9).state_dict(), "not a state dict"),
    "a tensor alone": (torch.ones(3), "holds a Tensor, not a state dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_network_of_the_zoo_is_refused_by_what_it_is(name, tmp_path):
    content, text = REFUSED[name]
    with pytest.raises(CheckpointError, match=text):
        read_back(content, tmp_path / "file.pth")


def test_the_head_of_fastai_that_pools_once_keeps_its_layers(tmp_path):
    found = read_back(fastai(nn.AdaptiveAvgPool2d(1), 512), tmp_path / "file.pth")
    assert {key for key in found.state_dict if key.startswith("fc.") and key.endswith("weight")} == {
        "fc.0.weight", "fc.2.weight", "fc.4.weight", "fc.6.weight",
    }  # fmt: skip


def test_a_network_that_normalises_its_input_is_read_with_a_note_of_how(tmp_path):
    shape = (1, 3, 1, 1)
    buffers = {"normalize.mean": torch.full(shape, 0.5), "normalize.std": torch.full(shape, 0.25)}
    for content in ({**prefixed("model."), **buffers}, {**WEIGHTS, **buffers}):
        found = read_back(content, tmp_path / "file.pth")
        assert set(found.state_dict) == set(WEIGHTS)
        assert "it normalised images by mean [0.5, 0.5, 0.5] and std [0.25, 0.25, 0.25]" in found.notes[0]


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def pruned(net):
    for module in convolutions(net):
        prune.l1_unstructured(module, "weight", 0.3)


def pruned_bias(net):
    prune.random_unstructured(net.fc, "bias", 0.5)


def weight_normed(net):
    for module in convolutions(net):
        nn.utils.weight_norm(module)
    nn.utils.weight_norm(net.fc, dim=None)


def weight_normed_by_parametrization(net):
    for module in convolutions(net):
        parametrizations.weight_norm(module)
    parametrizations.weight_norm(net.fc, dim=1)


def spectrally_normed(net):
    for module in convolutions(net):
        nn.utils.spectral_norm(module)


def spectrally_normed_by_parametrization(net):
    for module in convolutions(net):
        parametrizations.spectral_norm(module)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "change",
    [pruned, pruned_bias, weight_normed, weight_normed_by_parametrization, spectrally_normed,
     spectrally_normed_by_parametrization],
)  # fmt: skip
def test_weights_in_parts_are_put_together_as_torch_computes_with_them(change, tmp_path):
    net = resnet18().double().train()
    change(net)
    net(torch.randn(2, 3, 32, 32, dtype=torch.float64))  # so that the parts are those of a training step
    net.eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = net(x)
    found = read_back(net.state_dict(), tmp_path / "file.pth")
    assert any("put together" in note for note in found.notes)
    plain = torchvision.models.resnet18(num_classes=10).double().eval()
    plain.load_state_dict(found.state_dict, strict=True)
    assert parametrize.is_parametrized(net) or not torch.equal(plain(x), NET.double()(x))
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "parts",
    [
        {"a.weight_orig": torch.ones(1 << 20, 1), "a.weight_mask": torch.ones(1, 1 << 20)},
        {"a.weight_g": torch.ones(1, 1 << 20), "a.weight_v": torch.ones(1 << 20, 1)},
        {"a.weight_g": torch.ones(3), "a.weight_v": torch.ones(3, 4)},
        {"a.weight_orig": torch.ones(2, 3), "a.weight_u": torch.ones(2, 2), "a.weight_v": torch.ones(3)},
        {"a.weight_orig": torch.ones(2, 3)},
    ],
)
def test_parts_that_do_not_fit_each_other_stay_as_they_are(parts):
    notes = []
    assert put_together(dict(parts), notes).keys() == parts.keys()
    assert not notes


def hugging_face(folder, **settings):
    """A folder as transformers saves a network in."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(num_labels=10, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], **settings)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_the_config_of_hugging_face_is_read_not_assumed(layer_type, tmp_path):
    file = hugging_face(tmp_path, layer_type=layer_type)
    assert read_layout(read_checkpoint(file), str(file), None, file).notes == ()
    (tmp_path / "config.json").write_text("no JSON")
    assert "assumed that" in read_layout(read_checkpoint(file), str(file), None, file).notes[0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"downsample_in_first_stage": True}, "a stride in layer1"),
        ({"downsample_in_bottleneck": True}, r"ResNet v1"),
    ],
)
def test_a_network_of_hugging_face_that_computes_something_else_is_refused(settings, text, tmp_path):
    file = hugging_face(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=text):
        read_layout(read_checkpoint(file), str(file), None, file)
