"""Modules, images and loaders given to `snnzoo.convert`."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import torch
from making import images, sample_resnet, small
from networks import Giving, Narrow, SmallVGG, cifar_resnet, seeded
from rows import Row
from torch import nn
from torch.fx.experimental import optimization
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

import snnzoo
from helpers import CifarResNet18, LeNet, make_mlp
from snnzoo.graph.run import run_graph

FORUM = "discuss.pytorch.org"


def converted(make, given=lambda x: x, channels=3, size=16, expected=None, **options):
    """A row's `run`: a module converted on images in the form that `given` makes of them; the logits of the ANN in it.

    Args:
        expected: what the ANN in it computes, of the module's output; the logits as they are if None.
    """

    def run(_: Path):
        module = make()
        x = images(channels, size, 8).float()
        output = module.double()(x.double())
        output = getattr(output, "logits", output)
        wanted = (expected or (lambda logits: logits))(output).detach()
        module.float().train(options.pop("training", False))
        snn = snnzoo.convert(module, given(x), check_fit=False, time_steps=2, levels=3, gamma=0.5, **options)
        return wanted, run_graph(snn.graph, snn.tensors(), x)

    return run


def refused(module, given, **options):
    return lambda folder: (None, snnzoo.convert(module() if callable(module) else module, given(), **options))


def hugging_face():
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = ResNetConfig(num_labels=10, layer_type="basic", hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)
    return seeded(ResNetForImageClassification, shape)


def sample_cnn():
    from spikingjelly.activation_based.ann2snn.sample_models import mnist_cnn

    return seeded(mnist_cnn.CNN)


def reparametrized(change):
    def make():
        net = seeded(Narrow)
        change(net.conv2)
        return net

    return make


def ending_in(*layers, outputs=10):
    return lambda: seeded(Narrow, nn.Sequential(nn.Linear(8, outputs), *layers))


class LogProbabilities(Narrow):
    """As PyTorch's MNIST example ends."""

    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=1)


def normed(norm):
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.attention, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x)[0].mean(1))


class Branching(Narrow):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


def batches(name):
    return lambda x: [{name: part, "labels": torch.zeros(4)} for part in x.split(4)]


def endless(x):
    """A loader with no end, which a whole ImageNet might as well be."""
    return itertools.repeat((x.repeat(16, 1, 1, 1), torch.zeros(128)), 100_000)


def ranked(folder, make):
    """A network that ends in a function that keeps ranks: ranks of what it gives, and of the ANN in what we make."""
    expected, actual = converted(make)(folder)
    return expected.argsort(1), actual.argsort(1)


def precise(dtype):
    """A row's `run`: a module of little precision, beside the same in single precision."""

    def run(_: Path):
        x = images(size=16).float()
        module = seeded(Narrow).to(dtype)
        snn = snnzoo.convert(module, x.to(dtype), check_fit=False, time_steps=1, levels=3, gamma=0.5)
        with torch.inference_mode():
            return module.float()(x), run_graph(snn.graph, snn.tensors(), x)

    return run


def one_output(head):
    """Whether the automatic choice sees to it that an answer of one number is the ANN's."""

    def run(_: Path):
        net = seeded(Narrow, head())
        with torch.no_grad():
            net.head[0].bias += 1.0  # the sign alone would always agree
        x = images(count=96, size=16).float()
        snn = snnzoo.convert(net, x, "auto", check_fit=False)
        steps = snn.conversion.time_steps
        with torch.inference_mode():
            expected, actual = run_graph(snn.graph, snn.tensors(), x), snn(x.expand(steps, *x.shape))[-1]
        error = float((expected - actual).square().mean().sqrt() / expected.std())
        return True, error < 0.2

    return run


MODULES = [
    Row("Hugging Face module", "github.com/huggingface/transformers", converted(hugging_face, size=32)),
    Row(
        "a dict of outputs",
        "github.com/open-mmlab/mmdetection",
        converted(lambda: seeded(Giving, lambda y: {"logits": y}), expected=lambda output: output["logits"]),
    ),
    Row(
        "a tuple of outputs",
        "github.com/pytorch/vision, auxiliary logits",
        converted(lambda: seeded(Giving, lambda y: (y, y + 1)), expected=lambda output: output[0]),
    ),
    Row(
        "a dict without logits",
        "discuss.pytorch.org",
        refused(lambda: Giving(lambda y: {"features": y}), lambda: torch.randn(4, 3, 16, 16)),
        "expected logits",
    ),
    Row("a bfloat16 module", "pytorch.org, model.bfloat16()", precise(torch.bfloat16)),
    Row("a half module", "pytorch.org, model.half()", precise(torch.float16)),
    Row("a module in DataParallel", FORUM, converted(lambda: nn.DataParallel(seeded(Narrow)))),
    Row("a module in training mode", FORUM, converted(lambda: seeded(Narrow), training=True)),
    Row(
        "a pruned module",
        "pytorch.org, Pruning Tutorial",
        converted(reparametrized(lambda conv: prune.l1_unstructured(conv, "weight", 0.3))),
    ),
    Row("a weight-normed module", "pytorch.org, weight_norm", converted(reparametrized(parametrizations.weight_norm))),
    Row(
        "a module with BN folded by torch.fx",
        "pytorch.org, torch.fx.experimental.optimization",
        converted(lambda: optimization.fuse(seeded(Narrow))),
    ),
    Row(
        "kuangliu's ResNet18 as a module",
        "github.com/kuangliu/pytorch-cifar",
        converted(partial(sample_resnet, "ResNet18"), size=32),
    ),
    Row(
        "a ResNet-18 with a 3x3 stem as a module",
        "discuss.pytorch.org, resnet18 for CIFAR-10",
        converted(lambda: seeded(cifar_resnet), size=32),
    ),
    Row(
        "a narrow CIFAR ResNet, functional ReLUs",
        "github.com/kuangliu/pytorch-cifar",
        converted(lambda: seeded(CifarResNet18, 4), size=32),
    ),
    Row(
        "a CIFAR VGG with average pools as a module",
        "github.com/yhhhli/SNN_Calibration",
        converted(lambda: seeded(SmallVGG, nn.Linear(512, 10), pool=nn.AvgPool2d), size=32),
    ),
    Row(
        "SpikingJelly's ann2snn sample CNN",
        "github.com/fangwei123456/spikingjelly, ann2snn",
        converted(sample_cnn, channels=1, size=28),
    ),
    Row("LeNet", "pytorch.org, Training a Classifier", converted(lambda: seeded(LeNet), size=32)),
    Row("a network of Linear layers on images", "pytorch.org, Quickstart", converted(lambda: seeded(make_mlp), size=8)),
    Row("a Softmax at the end", FORUM, lambda folder: ranked(folder, ending_in(nn.Softmax(1)))),
    Row(
        "a LogSoftmax at the end",
        "github.com/pytorch/examples, mnist",
        lambda folder: ranked(folder, lambda: seeded(LogProbabilities)),
    ),
    Row(
        "a Sigmoid at the end of one output", FORUM, converted(ending_in(nn.Sigmoid(), outputs=1), expected=torch.logit)
    ),
    Row("one output, chosen automatically", FORUM, one_output(lambda: nn.Sequential(nn.Linear(8, 1)))),
    Row("one output of a regression", FORUM, one_output(lambda: nn.Sequential(nn.Linear(8, 1), nn.Flatten()))),
    Row(
        "GroupNorm",
        "github.com/facebookresearch/detectron2",
        refused(normed(nn.GroupNorm(2, 8)), lambda: torch.randn(4, 3, 16, 16)),
        "GroupNorm cannot be converted",
    ),
    Row(
        "LayerNorm",
        "github.com/facebookresearch/ConvNeXt",
        refused(normed(nn.LayerNorm([8, 14, 14])), lambda: torch.randn(4, 3, 16, 16)),
        "LayerNorm cannot be converted",
    ),
    Row("attention", FORUM, refused(Attention, lambda: torch.randn(4, 3, 16, 16)), "attention"),
    Row(
        "control flow that depends on the data",
        FORUM,
        refused(Branching, lambda: torch.randn(4, 3, 16, 16)),
        "control flow",
    ),
    Row(
        "a state dict in place of the module",
        FORUM,
        refused(Narrow().state_dict(), lambda: torch.randn(4, 3, 16, 16)),
        "snnzoo.load_ann",
    ),
    Row(
        "a path in place of the module", FORUM, refused("net.pth", lambda: torch.randn(4, 3, 16, 16)), "snnzoo.load_ann"
    ),
]

IMAGES = [
    Row("NumPy images", FORUM, converted(lambda: seeded(Narrow), lambda x: x.numpy())),
    Row("NumPy images in double precision", FORUM, converted(lambda: seeded(Narrow), lambda x: x.double().numpy())),
    Row("batches of NumPy images", FORUM, converted(lambda: seeded(Narrow), lambda x: [x.numpy()[:4], x.numpy()[4:]])),
    Row(
        "a DataLoader of pairs",
        FORUM,
        converted(lambda: seeded(Narrow), lambda x: DataLoader(TensorDataset(x, torch.zeros(8)), batch_size=4)),
    ),
    *(
        Row(
            f"a loader of dicts with {name}",
            "github.com/huggingface/datasets",
            converted(lambda: seeded(Narrow), batches(name)),
        )
        for name in ("pixel_values", "image", "x")
    ),
    Row(
        "a loader of dicts with no images",
        "github.com/huggingface/datasets",
        refused(Narrow, lambda: [{"labels": torch.zeros(4)}]),
        "pixel_values",
    ),
    Row("a list of single images", FORUM, converted(lambda: seeded(Narrow), list)),
    Row(
        "a data set in place of a loader",
        FORUM,
        converted(lambda: seeded(Narrow), lambda x: TensorDataset(x, torch.zeros(8))),
    ),
    Row("a loader without an end", FORUM, converted(lambda: seeded(Narrow), endless)),
    Row(
        "integer images",
        FORUM,
        refused(Narrow, lambda: torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8)),
        "float32",
    ),
    Row("NumPy images of whole numbers", FORUM, refused(Narrow, lambda: np.zeros((4, 3, 16, 16), np.uint8)), "float32"),
    Row("images with NaN", FORUM, refused(Narrow, lambda: torch.full((4, 3, 16, 16), float("nan"))), "NaN"),
    Row("channels last", FORUM, refused(Narrow, lambda: torch.randn(4, 16, 16, 3)), "channels"),
    Row("one image without a batch", FORUM, refused(Narrow, lambda: torch.randn(3, 16, 16)), "[N, C, H, W]"),
    Row("grey images for a network of colours", FORUM, refused(small, lambda: torch.randn(4, 1, 32, 32)), "1 channels"),
    Row("no images at all", FORUM, refused(Narrow, list), "no calibration images"),
    Row("a folder's name in place of images", FORUM, refused(Narrow, lambda: "imagenet/train"), "snnzoo convert"),
]

ROWS = [*MODULES, *IMAGES]
