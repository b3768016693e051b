"""The heads that networks end in, and their names."""

from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from making import body, images, loaded, prefixed, same_logits, small
from networks import (
    prepared,
)
from rows import Row
from torch import nn

import snnzoo


def with_head(head, model="resnet18"):
    """A ResNet of torchvision whose `fc` is another."""

    def make():
        net = small(model)
        net.fc = head()
        return prepared(net)

    return make


def head_named(name):
    """The weights of a network under the names of its body, and its classifier under another."""
    return lambda net: {**body(net), **{f"{name}.{leaf}": value for leaf, value in net.fc.state_dict().items()}}


def best_class(make, size=32):
    """As `loaded`, of a network that ends in a function that keeps ranks: the class that is named."""

    def run(folder: Path):
        network = make()
        torch.save(network.state_dict(), folder / "net.pth")
        ann = snnzoo.load_ann("resnet18", checkpoint=folder / "net.pth")
        expected, actual = same_logits(network, ann, images(3, size, 16))
        return expected.argsort(1), actual.argsort(1)

    return run


def fastai(pool, features, plain=False):
    """A learner of fastai: the body and the head in a Sequential."""

    def make():
        torch.manual_seed(0)
        net = torchvision.models.resnet18()
        hidden = [
            nn.BatchNorm1d(features),
            nn.Dropout(0.25),
            nn.Linear(features, 64, bias=False),
            nn.ReLU(),
            nn.BatchNorm1d(64),
            nn.Dropout(0.5),
            nn.Linear(64, 10, bias=False),
        ]
        layers = [nn.Linear(features, 10)] if plain else hidden
        head = nn.Sequential(pool(), nn.Flatten(), *layers)
        return prepared(nn.Sequential(nn.Sequential(*list(net.children())[:-2]), head))

    return make


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d."""

    def forward(self, x):
        return torch.cat([nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)], 1)


def average():
    return nn.AdaptiveAvgPool2d(1)


ROWS = [
    Row(
        "last_linear",
        "github.com/Cadene/pretrained-models.pytorch",
        loaded("resnet18", small, head_named("last_linear")),
    ),
    Row("head", "github.com/facebookresearch/ClassyVision", loaded("resnet18", small, head_named("head"))),
    Row("classifier", "discuss.pytorch.org", loaded("resnet18", small, head_named("classifier"))),
    Row(
        "backbone and head",
        "discuss.pytorch.org",
        loaded(
            "resnet18",
            small,
            lambda net: {**prefixed("backbone.", body(net)), **prefixed("head.", net.fc.state_dict())},
        ),
    ),
    Row(
        "backbone and classifier",
        "discuss.pytorch.org",
        loaded(
            "resnet18",
            small,
            lambda net: {**prefixed("backbone.", body(net)), **prefixed("classifier.", net.fc.state_dict())},
        ),
    ),
    Row(
        "backbone and fc in a Lightning module",
        "discuss.pytorch.org",
        loaded(
            "resnet18",
            small,
            lambda net: prefixed(
                "model.", {**prefixed("backbone.", body(net)), **prefixed("fc.", net.fc.state_dict())}
            ),
        ),
    ),
    Row(
        "encoder and fc",
        "github.com/HobbitLong/SupContrast",
        loaded(
            "resnet18", small, lambda net: {**prefixed("encoder.", body(net)), **prefixed("fc.", net.fc.state_dict())}
        ),
    ),
    Row(
        "fc.1 behind a dropout",
        "discuss.pytorch.org",
        loaded("resnet18", with_head(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 7)))),
    ),
    Row(
        "fc of two layers",
        "discuss.pytorch.org",
        loaded(
            "resnet18", with_head(lambda: nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 7)))
        ),
    ),
    Row(
        "fc with BN",
        "discuss.pytorch.org",
        loaded(
            "resnet18",
            with_head(lambda: nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 7))),
        ),
    ),
    Row(
        "fc without bias",
        "github.com/facebookresearch/deit",
        loaded("resnet18", with_head(lambda: nn.Linear(512, 10, bias=False))),
    ),
    Row(
        "fc of one output",
        "discuss.pytorch.org, binary classification",
        loaded("resnet18", with_head(lambda: nn.Linear(512, 1))),
    ),
    Row(
        "fc that ends in Softmax",
        "discuss.pytorch.org",
        best_class(with_head(lambda: nn.Sequential(nn.Linear(512, 10), nn.Softmax(1)))),
    ),
    Row(
        "fc that ends in LogSoftmax",
        "pytorch.org, transfer learning",
        best_class(
            with_head(
                lambda: nn.Sequential(
                    nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10), nn.LogSoftmax(1)
                )
            )
        ),
    ),
    Row(
        "fc of named layers",
        "github.com/udacity/pytorch_challenge",
        loaded(
            "resnet18",
            with_head(
                lambda: nn.Sequential(OrderedDict(fc1=nn.Linear(512, 64), relu=nn.ReLU(), fc2=nn.Linear(64, 10)))
            ),
        ),
    ),
    Row(
        "no classifier",
        "github.com/facebookresearch/dino/issues/125",
        loaded("resnet18", small, body),
        "2 missing (fc.weight, fc.bias)",
    ),
    Row(
        "a projection head in place of the classifier",
        "github.com/google-research/simclr, converted",
        loaded(
            "resnet18",
            small,
            lambda net: {
                **prefixed("backbone.", body(net)),
                "projection_head.0.weight": torch.ones(512, 512),
                "projection_head.2.weight": torch.ones(128, 512),
            },
        ),
        "a projection head",
    ),
    Row(
        "numbered layers and a projection head",
        "github.com/lightly-ai/lightly",
        loaded(
            "resnet18",
            small,
            lambda net: {
                **prefixed("backbone.", nn.Sequential(*list(net.children())[:-1]).state_dict()),
                "projection_head.layers.0.weight": torch.ones(512, 512),
                "projection_head.layers.3.weight": torch.ones(128, 512),
            },
        ),
        "a projection head",
    ),
    Row(
        "MoCo",
        "github.com/facebookresearch/moco",
        loaded(
            "resnet18",
            small,
            lambda net: {
                "state_dict": {
                    **prefixed("module.encoder_q.", net.state_dict()),
                    **prefixed("module.encoder_k.", net.state_dict()),
                    "module.queue": torch.ones(128, 64),
                    "module.queue_ptr": torch.zeros(1),
                }
            },
        ),
        "several networks",
    ),
    Row(
        "fastai, one Linear layer",
        "github.com/fastai/fastai",
        loaded("resnet18", fastai(average, 512, plain=True), lambda net: {"model": net.state_dict(), "opt": {}}),
    ),
    Row(
        "fastai, its head on one pool",
        "github.com/fastai/fastai",
        loaded("resnet18", fastai(average, 512), lambda net: {"model": net.state_dict(), "opt": {}}),
    ),
    Row(
        "fastai, its usual head",
        "github.com/fastai/fastai",
        loaded("resnet18", fastai(ConcatPool, 1024), lambda net: {"model": net.state_dict(), "opt": {}}),
        "concat_pool=False",
    ),
]
