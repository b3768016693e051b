"""Networks that libraries build, and trained spiking networks: read right, or told apart from what they resemble."""

import json
from functools import partial
from pathlib import Path

import torch
import torchvision
from making import body, images, loaded, prefixed, renamed, same_logits, small, timm_network
from networks import SmallVGG, prepared, seeded
from rows import Row
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo import functional

TIMM = "github.com/huggingface/pytorch-image-models"
TRANSFORMERS = "github.com/huggingface/transformers"
SPIKINGJELLY = "github.com/fangwei123456/spikingjelly"
SEW = "github.com/fangwei123456/Spike-Element-Wise-ResNet"

SHAPES = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}


def hugging_face(kind, config=True, **settings):
    """A row's `run`: a folder as transformers saves a network in, with or without its config.json."""

    def run(folder: Path):
        from transformers import ResNetConfig, ResNetForImageClassification

        depths = [2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3]
        shape = ResNetConfig(num_labels=10, layer_type=kind, hidden_sizes=SHAPES[kind], depths=depths, **settings)
        network = seeded(ResNetForImageClassification, shape)
        network.save_pretrained(folder)
        if not config:
            (folder / "config.json").unlink()
        name = "resnet18" if kind == "basic" else "resnet50"
        ann = snnzoo.load_ann(name, checkpoint=folder / "model.safetensors")
        return same_logits(network, ann, images())

    return run


def mmpretrain(net):
    return {"meta": {"CLASSES": ["a"]}, "state_dict": {
        **prefixed("backbone.", body(net)), **prefixed("head.fc.", net.fc.state_dict())}}  # fmt: skip


def detectron(net):
    """detectron2 and maskrcnn-benchmark: stages from 2, and norms inside their convolutions."""
    return renamed(body(net), ("layer4", "res5"), ("layer3", "res4"), ("layer2", "res3"), ("layer1", "res2"),
                   ("bn1", "conv1.norm"), ("bn2", "conv2.norm"), ("downsample.0", "shortcut"),
                   ("downsample.1", "shortcut.norm"))  # fmt: skip


def meta(make, *arguments, **options):
    """Shapes as ones: of networks that are told by names and shapes alone."""
    with torch.device("meta"):
        net = make(*arguments, **options)
    return {key: torch.ones(value.shape, dtype=value.dtype) for key, value in net.state_dict().items()}


def told(model, state_dict):
    return loaded(model, state_dict, lambda content: content)


def segmentation():
    return meta(torchvision.models.segmentation.fcn_resnet50, weights=None, weights_backbone=None)


LIBRARIES = [
    Row("timm resnet18", TIMM, loaded("resnet18", lambda: seeded(timm_network, "resnet18", num_classes=10))),
    Row(
        "timm resnet50 of grey images",
        TIMM,
        loaded("resnet50", lambda: seeded(timm_network, "resnet50", num_classes=10, in_chans=1), channels=1),
    ),
    *(
        Row(f"timm {name} given as {model}", TIMM, told(model, partial(meta, timm_network, name)), text)
        for name, model, text in (
            ("resnet18d", "resnet18", "ResNet-C, -D"),
            ("seresnet18", "resnet18", "squeeze-and-excitation"),
            ("resnetv2_18", "resnet18", "another family"),
            ("resnet50_gn", "resnet50", "GroupNorm"),
            ("res2net50_26w_4s", "resnet50", "Res2Net"),
        )
    ),
    Row("Hugging Face, basic blocks", TRANSFORMERS, hugging_face("basic")),
    Row("Hugging Face, bottlenecks", TRANSFORMERS, hugging_face("bottleneck")),
    Row("Hugging Face, without its config.json", TRANSFORMERS, hugging_face("basic", config=False)),
    Row(
        "Hugging Face, stride in the first convolution",
        "huggingface.co/microsoft/resnet-50, downsample_in_bottleneck",
        hugging_face("bottleneck", downsample_in_bottleneck=True),
        "ResNet v1",
    ),
    Row(
        "Hugging Face, another activation",
        TRANSFORMERS,
        hugging_face("basic", hidden_act="gelu"),
        "hidden_act is 'gelu'",
    ),
    Row("mmpretrain", "github.com/open-mmlab/mmpretrain", loaded("resnet18", small, mmpretrain)),
    Row(
        "detectron2", "github.com/facebookresearch/detectron2", loaded("resnet18", small, detectron), "FILE.py:FUNCTION"
    ),
    Row("segmentation network", "github.com/pytorch/vision", told("resnet50", segmentation), "a head of convolutions"),
    Row(
        "video network",
        "github.com/pytorch/vision",
        told("resnet18", partial(meta, torchvision.models.video.r3d_18, weights=None)),
        "network for videos",
    ),
    Row(
        "CLIP's ResNet",
        "github.com/openai/CLIP",
        told(
            "resnet50",
            lambda: {
                **body(torchvision.models.resnet50()),
                "attnpool.positional_embedding": torch.ones(50, 2048),
                "attnpool.q_proj.weight": torch.ones(2048, 2048),
            },
        ),
        "attention pooling",
    ),
    Row(
        "vision transformer",
        TIMM,
        told("resnet18", partial(meta, timm_network, "vit_tiny_patch16_224")),
        "FILE.py:FUNCTION",
    ),
    Row(
        "torchvision densenet121 given as resnet18",
        "github.com/pytorch/vision",
        told("resnet18", partial(meta, torchvision.models.densenet121)),
        "FILE.py:FUNCTION",
    ),
]


# -- Trained spiking networks ------------------------------------------------------------------------------------------


def spiking(family, name, neuron, **options):
    """A spiking network of SpikingJelly, multi-step, with time constants of its own, and firing."""
    from spikingjelly.activation_based import functional as theirs
    from spikingjelly.activation_based import model, surrogate
    from spikingjelly.activation_based import neuron as neurons

    torch.manual_seed(0)
    __import__(f"spikingjelly.activation_based.model.{family}")
    net = getattr(getattr(model, family), name)(
        spiking_neuron=getattr(neurons, neuron), surrogate_function=surrogate.ATan(), **options
    )
    theirs.set_step_mode(net, "m")
    prepared(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.5
        if isinstance(module, nn.Linear):
            module.weight.data *= 10
        if isinstance(module, neurons.ParametricLIFNode):
            module.w.data += 0.3 * torch.randn(())
    return net


def spikes(model, make, content=lambda net: net.state_dict(), neuron="if", size=32, **options):
    """A row's `run`: a trained spiking network in a file, loaded as one; the mean of the logits over time."""

    def run(folder: Path):
        network = make()
        torch.save(content(network), folder / "net.pth")
        net = snnzoo.load_snn(folder / "net.pth", model, neuron, **options)
        x_seq = images(size=size).float().expand(4, -1, -1, -1, -1)
        with torch.inference_mode():
            functional.reset_net(net)
            return network(x_seq).mean(0), net(x_seq).mean(0)

    return run


def released(net):
    """The keys of SEW-ResNet's release: convolution and BN in one SeqToANNContainer, the shortcut's neuron beside."""
    keys = {}
    for key, value in net.state_dict().items():
        if key.startswith("layer"):
            for i in (1, 2, 3):
                key = key.replace(f".conv{i}.", f".conv{i}.module.0.").replace(f".bn{i}.", f".conv{i}.module.1.")
            key = key.replace(".downsample.0.", ".downsample.0.module.0.").replace(
                ".downsample.1.", ".downsample.0.module.1.")  # fmt: skip
            key = key.replace(".downsample_sn.", ".downsample.1.")
        keys[key] = value
    return keys


def released_spiking(net):
    """The same of its plain spiking ResNets, whose shortcuts have no neuron."""
    return {key.replace(".downsample.0.module.", ".downsample.module."): value for key, value in released(net).items()}


sew = partial(spiking, "sew_resnet", "sew_resnet18", num_classes=10, cnf="ADD")
spiking_resnet = partial(spiking, "spiking_resnet", "spiking_resnet18", num_classes=10)
spiking_vgg = partial(spiking, "spiking_vgg", "spiking_vgg11_bn", num_classes=10)
NOT_AN_ANN = "trained as a spiking one"

SPIKING = [
    Row("SpikingJelly 2.0 spiking ResNet, IF", SPIKINGJELLY, spikes("resnet18", partial(spiking_resnet, "IFNode"))),
    Row(
        "SpikingJelly 2.0 spiking ResNet, PLIF",
        SPIKINGJELLY,
        spikes("resnet18", partial(spiking_resnet, "ParametricLIFNode"), neuron="plif"),
    ),
    Row("SpikingJelly 2.0 SEW ResNet, IF", SPIKINGJELLY, spikes("sew_resnet18", partial(sew, "IFNode"))),
    Row(
        "SpikingJelly 2.0 SEW ResNet, PLIF",
        SPIKINGJELLY,
        spikes("sew_resnet18", partial(sew, "ParametricLIFNode"), neuron="plif"),
    ),
    Row(
        "SEW-ResNet's release",
        SEW,
        spikes(
            "sew_resnet18",
            partial(sew, "ParametricLIFNode"),
            lambda net: {"model": released(net), "epoch": 319},
            "plif",
        ),
    ),
    Row(
        "spiking ResNet of SEW-ResNet's release",
        SEW,
        spikes("resnet18", partial(spiking_resnet, "IFNode"), released_spiking),
    ),
    Row(
        "SpikingJelly 2.0 spiking VGG, PLIF",
        SPIKINGJELLY,
        spikes("vgg11_bn", partial(spiking_vgg, "ParametricLIFNode"), neuron="plif"),
    ),
    Row(
        "SEW ResNet given to convert", SPIKINGJELLY, loaded("resnet18", partial(sew, "IFNode"), released), "snnzoo eval"
    ),
    Row(
        "PLIF ResNet given to convert",
        SPIKINGJELLY,
        loaded("resnet18", partial(spiking_resnet, "ParametricLIFNode")),
        NOT_AN_ANN,
    ),
    Row(
        "PLIF VGG given to convert",
        SPIKINGJELLY,
        loaded(
            "vgg11_bn",
            lambda: seeded(SmallVGG, nn.Linear(512, 10)),
            lambda net: {**net.state_dict(), "features.2.w": torch.tensor(0.0)},
        ),
        NOT_AN_ANN,
    ),
    Row(
        "PLIF network loaded with LIF neurons",
        SPIKINGJELLY,
        spikes("resnet18", partial(spiking_resnet, "ParametricLIFNode"), neuron="lif"),
        "give --neuron plif",
    ),
    Row(
        "IF network loaded with PLIF neurons",
        SPIKINGJELLY,
        spikes("resnet18", partial(spiking_resnet, "IFNode"), neuron="plif"),
        "give --neuron if or lif",
    ),
    Row("a file that snnzoo converted", "snnzoo convert", lambda folder: converted_again(folder), "has been converted"),
    Row(
        "DVS-Gesture's plain network of SEW-ResNet",
        "github.com/fangwei123456/Spike-Element-Wise-ResNet/issues/23",
        told(
            "resnet18",
            lambda: {
                "conv.0.0.module.0.weight": torch.ones(32, 2, 3, 3),
                "conv.0.0.module.1.weight": torch.ones(32),
                "out.weight": torch.ones(11, 512),
            },
        ),
        "FILE.py:FUNCTION",
    ),
]


def converted_again(folder):
    ann = shake_batch_norm(snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s"))
    snnzoo.save(
        snnzoo.convert(ann, torch.randn(4, 3, 32, 32), check_fit=False, time_steps=1, levels=1, gamma=0.5),
        folder / "snn.safetensors",
    )
    return ann, snnzoo.load_ann("resnet20", checkpoint=folder / "snn.safetensors")


def inspected(content):
    """A row's `run`: whether `snnzoo inspect` finds nothing that does not fit."""

    def run(folder: Path):
        from snnzoo.recognition import inspect_checkpoint

        torch.save(content(), folder / "net.pth")
        report = json.loads(json.dumps(inspect_checkpoint(folder / "net.pth")))
        kinds = ("missing", "unexpected", "mismatched")
        return ({kind: [] for kind in kinds}, True), (
            {kind: report[kind] for kind in kinds}, len(report["neuron_parameters"]) > 0)  # fmt: skip

    return run


SPIKING += [
    Row(
        "inspect of a PLIF VGG",
        SPIKINGJELLY,
        inspected(
            lambda: {
                key.replace(".sn.w", ".w"): value
                for key, value in snnzoo.create_model("vgg11_bn", neuron="plif", num_classes=4, hidden_features=8)
                .state_dict()
                .items()
            }
        ),
    ),
    Row("inspect of SEW-ResNet's release", SEW, inspected(lambda: released(sew("ParametricLIFNode")))),
]

ROWS = [*LIBRARIES, *SPIKING]
