"""Networks by the names of the libraries that own them, and of a user's own code."""

import importlib.util
import sys
import urllib.error
import urllib.request

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.checkpoints.download import DownloadError
from snnzoo.data.preprocess import Preprocess
from snnzoo.errors import CheckpointError, SnnzooError, UsageError
from snnzoo.recognition.ann import ann_source

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def run(run_command, monkeypatch):
    """Run a command: its exit code, and what it said on standard error, beside which there is nothing."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code, out, err = run_command(*arguments)
        assert out == ""
        return code, err

    return run


def saved(net, file):
    """The network with random BN in eval mode, saved as users save one."""
    shake_batch_norm(net).eval()
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, file)
    return net


def logits(net, size=64):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        given = net(images)
    return getattr(given, "logits", given)


NETWORKS = {
    "torchvision:squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=7),
    "torchvision:regnet_y_400mf": lambda: torchvision.models.regnet_y_400mf(num_classes=7),
    "torchvision:mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
    "timm:resnet18d": lambda: timm.create_model("resnet18d", num_classes=7),
    "timm:dla34": lambda: timm.create_model("dla34", num_classes=7),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_gives_the_librarys_network_with_the_classes_that_it_has(name, tmp_path):
    torch.manual_seed(0)
    theirs = saved(NETWORKS[name](), tmp_path / "mine.pth")
    lines = []
    ann = snnzoo.load_ann(name, checkpoint=tmp_path / "mine.pth", notify=lines.append)
    torch.testing.assert_close(logits(ann), logits(theirs), rtol=0, atol=0)
    assert not ann.training
    assert lines == []
    assert ann_source(name, checkpoint=tmp_path / "mine.pth").classes(7) is None  # they are not the library's
    with pytest.raises(CheckpointError, match="has 7 classes, not 5"):
        snnzoo.load_ann(name, checkpoint=tmp_path / "mine.pth", num_classes=5)


def test_auxiliary_classifiers_are_built_where_the_checkpoint_has_them(tmp_path):
    torch.manual_seed(0)
    for auxiliary in (True, False):
        theirs = torchvision.models.googlenet(num_classes=7, aux_logits=auxiliary, init_weights=False)
        saved(theirs, tmp_path / "mine.pth")
        torch.save(nn.DataParallel(theirs).state_dict(), tmp_path / "mine.pth")
        lines = []
        ann = snnzoo.load_ann("torchvision:googlenet", checkpoint=tmp_path / "mine.pth", notify=lines.append)
        torch.testing.assert_close(logits(ann), logits(theirs), rtol=0, atol=0)
        assert "assumed transform_input=False" in lines[-1]
    named = snnzoo.load_ann("torchvision:googlenet.IMAGENET1K_V1", checkpoint=tmp_path / "mine.pth")
    assert named.transform_input  # as torchvision does for these weights


def test_preprocessing_and_classes_are_the_librarys():
    densenet = ann_source("torchvision:densenet121.IMAGENET1K_V1")
    assert densenet.preprocess == Preprocess(256, 224, *IMAGENET)
    assert densenet.classes(10) is None
    assert densenet.classes(1000) == torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.meta["categories"]
    assert densenet.stem == "densenet121.IMAGENET1K_V1"
    assert ann_source("torchvision:densenet121", torchvision.models.DenseNet121_Weights.DEFAULT).model == densenet.model
    assert ann_source("timm:resnet50d.a1_in1k").preprocess == Preprocess(235, 224, *IMAGENET, "bicubic")
    assert ann_source("timm:tf_mobilenetv3_small_100.in1k").preprocess.interpolation == "bilinear"
    inception = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    assert ann_source("timm:inception_v3.tf_in1k").preprocess == Preprocess(341, 299, *inception, "bicubic")


def test_convert_of_a_timm_network_writes_a_file_that_says_where_it_is_from(run, image_folder, tmp_path):
    torch.manual_seed(0)
    theirs = saved(timm.create_model("resnet18d", num_classes=10), tmp_path / "mine.pth")
    options = ("--checkpoint", "mine.pth", "--input-size", "64", "-T", "2", "--calib-samples", "8")
    code, said = run("convert", "timm:resnet18d.ra2_in1k", *options, "--calib-data", image_folder)
    assert code == 0, said
    net, ann = snnzoo.conversion.load_with_ann(tmp_path / "resnet18d.ra2_in1k-snn.safetensors")
    facts = net.conversion
    assert (facts.model, facts.source["file"]) == ("timm:resnet18d.ra2_in1k", "mine.pth")
    assert facts.preprocess == Preprocess(round(256 * 64 / 224), 64, *IMAGENET, "bicubic")
    assert facts.classes == list("0123456789")  # of the folder: those of the weights do not fit
    torch.testing.assert_close(logits(ann), logits(theirs), rtol=1e-4, atol=1e-4)


def test_convert_without_images_captures_at_the_size_that_is_asked_for(run, tmp_path):
    torch.manual_seed(0)
    saved(timm.create_model("resnet18d", num_classes=10), tmp_path / "mine.pth")
    code, said = run("convert", "timm:resnet18d", "--checkpoint", "mine.pth", "--input-size", "96")
    assert code == 0, said
    assert snnzoo.load(tmp_path / "resnet18d-snn.safetensors").conversion.input_shape == [3, 96, 96]


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """A folder with what a repository of the hub holds: a small ResNet of 5 classes."""
    torch.manual_seed(0)
    names = {i: f"thing {i}" for i in range(5)}
    config = transformers.ResNetConfig(
        num_labels=5, layer_type="basic", hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, id2label=names
    )
    net = shake_batch_norm(transformers.ResNetForImageClassification(config)).eval()
    folder = tmp_path / "user" / "small-resnet"
    net.save_pretrained(folder)
    size = {"shortest_edge": 64}
    transformers.ConvNextImageProcessor(
        crop_pct=0.875, size=size, image_mean=IMAGENET[0], image_std=IMAGENET[1]
    ).save_pretrained(folder)
    return folder, net


@pytest.fixture
def hub(monkeypatch, repository):
    """The hub, with one repository: transformers finds that folder under its name."""
    folder, net = repository
    for auto in (
        transformers.AutoConfig,
        transformers.AutoImageProcessor,
        transformers.AutoModelForImageClassification,
    ):
        genuine = auto.from_pretrained

        def from_pretrained(name, *args, genuine=genuine, **options):
            assert name == "user/small-resnet"
            return genuine(str(folder), *args, **options)

        monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    return net


def test_a_repository_of_the_hub_is_converted_with_its_own_preprocessing_and_classes(run, hub, tmp_path):
    code, said = run("convert", "hf:user/small-resnet", "-T", "2")
    assert code == 0, said
    net, ann = snnzoo.conversion.load_with_ann(tmp_path / "small-resnet-snn.safetensors")
    facts = net.conversion
    assert facts.preprocess == Preprocess(73, 64, *IMAGENET, "bicubic")
    assert facts.classes == [f"thing {i}" for i in range(5)]
    assert (facts.model, facts.source) == ("hf:user/small-resnet", {"weights": "hf:user/small-resnet"})
    torch.testing.assert_close(logits(ann), logits(hub), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (
            transformers.MobileNetV2ImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
            Preprocess(72, 64, (0.5,) * 3, (0.5,) * 3),
        ),
        (transformers.ViTImageProcessor(), None),  # squashes images to a square
        (transformers.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.875), None),
        (transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.5, do_normalize=False),
         Preprocess(128, 64, (0.0,) * 3, (1.0,) * 3, "bicubic")),
    ],
)  # fmt: skip
def test_preprocessing_that_is_not_ours_is_asked_for(processor, expected, repository):
    folder, _ = repository
    processor.save_pretrained(folder)
    assert ann_source(f"hf:{folder}").preprocess == expected


def test_a_folder_stands_for_a_repository_where_there_is_no_network(repository):
    folder, net = repository
    torch.testing.assert_close(logits(snnzoo.load_ann(f"hf:{folder}")), logits(net), rtol=0, atol=1e-6)


def test_a_checkpoint_of_other_classes_takes_the_repositorys_configuration(hub, tmp_path):
    config = transformers.AutoConfig.from_pretrained("user/small-resnet", num_labels=3)
    theirs = shake_batch_norm(transformers.ResNetForImageClassification(config)).eval()
    save_file(theirs.state_dict(), tmp_path / "mine.safetensors")
    ann = snnzoo.load_ann("hf:user/small-resnet", checkpoint=tmp_path / "mine.safetensors")
    torch.testing.assert_close(logits(ann), logits(theirs), rtol=0, atol=1e-6)


# -- A user's own code -------------------------------------------------------------------------------------------------

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from parts import activation

@dataclass
class Settings:
    channels: int = 8

class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), activation(), nn.AdaptiveAvgPool2d(1))
        self.gain = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight.data))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.net(x).flatten(1))

def make_net(num_classes=4):
    print("making it")
    return Net(num_classes)

def fails():
    raise KeyError("depth")

def stops():
    raise SystemExit(3)

no_network = dict
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "parts.py").write_text("from torch import nn\nactivation = nn.ReLU\n")
    (tmp_path / "mynet.py").write_text(OWN)
    yield tmp_path / "mynet.py"
    sys.modules.pop("parts", None)


def test_a_users_own_function_is_called_and_its_checkpoint_loaded_strictly(run, own, image_folder, tmp_path):
    torch.manual_seed(0)
    theirs = saved(snnzoo.load_ann(f"{own}:make_net", num_classes=10), tmp_path / "mine.pth")
    settings = ("--calib-data", image_folder, "--calib-samples", "8", "-T", "2")
    options = ("--checkpoint", "mine.pth", "--num-classes", "10", *settings)
    code, said = run("convert", "mynet.py:make_net", *options, "--preprocess", "cifar10")
    assert code == 0, said
    net, ann = snnzoo.conversion.load_with_ann(tmp_path / "mynet-make_net-snn.safetensors")
    assert (net.conversion.model, net.conversion.preprocess.crop) == ("mynet.py:make_net", 32)
    torch.testing.assert_close(logits(ann, 32), logits(theirs, 32), rtol=1e-4, atol=1e-4)
    code, said = run("convert", "mynet.py:make_net", *options, "-o", "b.safetensors")
    assert (code, said.count("\n")) == (2, 1)
    assert "give --preprocess NAME" in said
    assert "--mean A,B,C and --std A,B,C" in said
    own_settings = ("--input-size", "24", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    code, said = run("convert", "mynet.py:make_net", *options, *own_settings, "-o", "c.safetensors")
    assert code == 0, said
    assert snnzoo.load("c.safetensors").conversion.preprocess == Preprocess(24, 24, (0.5,) * 3, (0.25,) * 3)


def test_keys_are_taken_as_they_are_and_out_of_what_wraps_them(own, tmp_path):
    theirs = snnzoo.load_ann(f"{own}:make_net")
    state = {key: torch.rand_like(value) if value.is_floating_point() else value
             for key, value in theirs.state_dict().items()}  # fmt: skip
    for name, content in {
        "plain": state,
        "parallel": {"model": {f"module.{key}": value for key, value in state.items()}},
    }.items():
        if name == "parallel":
            content["model"].pop("module.gain")  # what lies beside the layers is left out, out of wrappers
        torch.save(content, tmp_path / f"{name}.pth")
    ann = snnzoo.load_ann(f"{own}:make_net", checkpoint=tmp_path / "plain.pth")
    assert all(torch.equal(value, state[key]) for key, value in ann.state_dict().items())
    with pytest.raises(CheckpointError, match=r"1 missing \(gain\)"):
        snnzoo.load_ann(f"{own}:make_net", checkpoint=tmp_path / "parallel.pth")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("make_nett", UsageError, "has no function 'make_nett': did you mean make_net"),
        ("no_network", UsageError, "gave a dict, expected a torch.nn.Module"),
        ("fails", SnnzooError, "fails failed: KeyError: 'depth'"),
        ("stops", SnnzooError, "stops failed: SystemExit: 3"),
    ],
)
def test_what_goes_wrong_in_a_users_own_code_is_said_of_it(own, function, error, message):
    with pytest.raises(error, match=message):
        snnzoo.load_ann(f"{own}:{function}")
    assert str(own.parent) not in sys.path


# -- What cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchvision:densnet121", {}, "torchvision has no network 'densnet121': did you mean densenet121"),
        ("timm:resnet18dd", {}, "timm has no network 'resnet18dd': did you mean resnet18d"),
        ("timm:resnet18d.nope", {}, "timm:resnet18d has no weights 'nope', only ra2_in1k"),
        ("torchvision:resnet18.V3", {}, "torchvision:resnet18 has no weights 'V3', only IMAGENET1K_V1"),
        ("torchvision:resnet18.IMAGENET1K_V1", {"weights": "DEFAULT"}, "were asked for too"),
        (
            "keras:resnet50",
            {},
            "unknown library 'keras' in 'keras:resnet50': expected torchvision, timm or hf, or FILE",
        ),
        ("nowhere.py:make_net", {}, "nowhere.py: no such file, expected Python code of yours"),
        (
            "torchvision:resnet18",
            {"weights": torchvision.models.ResNet50_Weights.DEFAULT},
            "ResNet50_Weights.IMAGENET1K_V2 are weights of resnet50, not of resnet18",
        ),
        ("mynet.py:make_net", {"weights": "digits"}, "has no weights by name"),
        ("timm:resnet18d", {"layout": "timm"}, "--layout is for models of the zoo"),
        ("timm:resnet18d", {"checkpoint": "nowhere.pth"}, "nowhere.pth: no such file"),
        ("timm:resnet18d", {"num_classes": 7}, "--num-classes is for a --checkpoint of yours"),
        ("timm:selecsls42", {}, "timm:selecsls42 has no pretrained weights: give --checkpoint FILE"),
    ],
)
def test_a_name_that_stands_for_nothing_is_an_error_that_says_what_would(name, options, message):
    with pytest.raises(UsageError, match=message):
        snnzoo.load_ann(name, **options)


@pytest.mark.parametrize(("name", "package"), [("timm:resnet18d", "timm"), ("hf:microsoft/resnet-50", "transformers")])
def test_a_library_that_is_not_installed_is_named(name, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda other, *rest: None if other == package else find(other))
    with pytest.raises(UsageError, match=f"{name} needs {package}: pip install {package}"):
        snnzoo.load_ann(name)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match="keys do not fit the model"):
        snnzoo.load_ann("timm:resnet18d", checkpoint=tmp_path / "mine.pth")


def test_weights_that_cannot_be_fetched_are_one_line_that_says_what_to_do(run, monkeypatch, tmp_path):
    def unreachable(*_args, **_kwargs):
        raise urllib.error.URLError("Name or service not known")

    def hub_unreachable(*_args, **_kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", hub_unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub_unreachable)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", hub_unreachable)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", hub_unreachable)
    by_hand = {
        "torchvision:squeezenet1_1": "fetch https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth where",
        "timm:resnet18d": "a file of https://huggingface.co/timm/resnet18d.ra2_in1k where",
        "hf:microsoft/resnet-50": "of https://huggingface.co/microsoft/resnet-50 into a folder",
    }
    for name, advice in by_hand.items():
        code, said = run("convert", name)
        assert (code, said.count("\n")) == (1, 1), said
        assert said.startswith(f"Error: cannot load {name}")
        assert advice in said
    assert not list(tmp_path.glob("*.safetensors"))
    monkeypatch.setenv("SNNZOO_OFFLINE", "1")
    code, said = run("convert", "torchvision:squeezenet1_1")
    assert (code, said.count("\n")) == (1, 1)
    assert "SNNZOO_OFFLINE is set: fetch https://download.pytorch.org" in said
    with pytest.raises(DownloadError, match="--checkpoint FILE"):
        snnzoo.load_ann("timm:resnet18d")
