"""What training scripts wrap around weights."""

from collections import OrderedDict, defaultdict
from pathlib import Path

import torch
from making import loaded, prefixed
from networks import (
    Akamaster,
    seeded,
)
from rows import Row

NET = Akamaster  # of few weights: what is around them is the question


def wrapped(content, model="resnet20", make=NET, **options):
    return loaded(model, lambda: seeded(make), content, **options)


def optimizer(net):
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict()


def other(net):
    return {key: value + 1 for key, value in net.state_dict().items()}


class Options:
    """What training scripts keep beside the weights."""

    def __init__(self):
        self.lr, self.path = 0.1, Path("runs")


def lightning(net):
    return {
        "state_dict": {**prefixed("model.", net.state_dict()), "class_weights": torch.ones(10),
                       "criterion.weight": torch.ones(10), "train_acc.confmat": torch.ones(10, 10)},
        "pytorch-lightning_version": "2.1.0", "hyper_parameters": OrderedDict(lr=0.1), "callbacks": {}, "loops": {},
    }  # fmt: skip


def with_counts(net):
    counts = {f"layer1.0.conv1.{name}": torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "total_params")}
    return {**net.state_dict(), **counts, "total_ops": torch.zeros(1), "total_params": torch.zeros(1)}


ROWS = [
    Row("state", "github.com/facebookresearch/pycls", wrapped(lambda net: {"state": net.state_dict(), "epoch": 3})),
    Row("params", "github.com/XPixelGroup/BasicSR", wrapped(lambda net: {"params": net.state_dict()})),
    Row(
        "params_ema beside params",
        "github.com/XPixelGroup/BasicSR",
        wrapped(lambda net: {"params": net.state_dict(), "params_ema": other(net)}),
    ),
    Row(
        "model_state",
        "github.com/facebookresearch/SlowFast",
        wrapped(lambda net: {"model_state": net.state_dict(), "optimizer_state": optimizer(net), "epoch": 3}),
    ),
    Row(
        "model_state_dict",
        "pytorch.org, Saving and Loading Models",
        wrapped(lambda net: {"epoch": 5, "model_state_dict": net.state_dict(), "loss": torch.tensor(0.4)}),
    ),
    Row(
        "best_state_dict",
        "discuss.pytorch.org, early stopping",
        wrapped(lambda net: {"best_state_dict": net.state_dict(), "best_acc": 0.9}),
    ),
    Row(
        "student beside its teacher",
        "github.com/facebookresearch/dino",
        wrapped(lambda net: {"student": prefixed("module.", net.state_dict()), "teacher": other(net), "epoch": 9}),
    ),
    Row(
        "Composer",
        "github.com/mosaicml/composer",
        wrapped(
            lambda net: {
                "state": {"model": prefixed("module.", net.state_dict()), "optimizers": {}},
                "rng": [torch.ones(3)],
            }
        ),
    ),
    Row("Lightning, with class weights and metrics", "github.com/Lightning-AI/pytorch-lightning", wrapped(lightning)),
    Row(
        "Catalyst",
        "github.com/catalyst-team/catalyst",
        wrapped(
            lambda net: {
                "model_state_dict": net.state_dict(),
                "criterion_state_dict": {},
                "epoch_metrics": defaultdict(dict),
            }
        ),
    ),
    Row(
        "Ignite",
        "github.com/pytorch/ignite",
        wrapped(lambda net: {"model": net.state_dict(), "optimizer": optimizer(net), "trainer": {"iteration": 5}}),
    ),
    Row(
        "a single key of any name",
        "discuss.pytorch.org, loading a checkpoint",
        wrapped(lambda net: {"resnet20_cifar10": net.state_dict(), "epoch": 3, "args": Options()}),
    ),
    Row("a tuple", "discuss.pytorch.org, saving a tuple", wrapped(lambda net: (net.state_dict(), optimizer(net)))),
    Row("a list of one", "github.com/fastai/fastai", wrapped(lambda net: [net.state_dict()])),
    Row("a tuple inside a wrapper", "discuss.pytorch.org", wrapped(lambda net: ({"state_dict": net.state_dict()}, 3))),
    Row(
        "DataParallel",
        "github.com/kenshohara/3D-ResNets-PyTorch/issues/257",
        wrapped(lambda net: prefixed("module.", net.state_dict())),
    ),
    Row(
        "DataParallel twice",
        "discuss.pytorch.org, module.module.",
        wrapped(lambda net: prefixed("module.module.", net.state_dict())),
    ),
    Row(
        "torch.compile in DDP",
        "github.com/pytorch/pytorch/issues/101107",
        wrapped(lambda net: prefixed("module._orig_mod.", net.state_dict())),
    ),
    Row(
        "averaged weights of AveragedModel",
        "pytorch.org, torch.optim.swa_utils",
        wrapped(lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict()),
    ),
    Row(
        "model_ema beside state_dict",
        "github.com/huggingface/pytorch-image-models",
        wrapped(lambda net: {"state_dict": net.state_dict(), "state_dict_ema": other(net), "arch": "resnet20"}),
    ),
    Row(
        "averaged weights alone",
        "github.com/huggingface/pytorch-image-models",
        wrapped(lambda net: {"state_dict_ema": net.state_dict()}),
    ),
    Row("thop's counts", "github.com/Lyken17/pytorch-OpCounter", wrapped(with_counts)),
    Row(
        "fvcore-like state beside the weights",
        "pytorch.org, get_extra_state",
        wrapped(lambda net: {**net.state_dict(), "layer1._extra_state": {"scale": 1}}),
    ),
    Row(
        "a network that normalises its images",
        "github.com/RobustBench/robustbench",
        wrapped(
            lambda net: {
                **prefixed("model.", net.state_dict()),
                "mu": torch.zeros(1, 3, 1, 1),
                "sigma": torch.ones(1, 3, 1, 1),
            }
        ),
    ),
    Row(
        "an ensemble of two networks",
        "discuss.pytorch.org, ensembles",
        wrapped(lambda net: {**prefixed("modelA.", net.state_dict()), **prefixed("modelB.", other(net))}),
        "several networks",
    ),
    Row(
        "two state dicts",
        "discuss.pytorch.org, GAN checkpoints",
        wrapped(lambda net: {"first": net.state_dict(), "second": other(net)}),
        "several state dicts",
    ),
    Row(
        "named_parameters",
        "discuss.pytorch.org, named_parameters vs state_dict",
        wrapped(lambda net: dict(net.named_parameters())),
        "saved from named_parameters",
    ),
    Row("an optimizer alone", "discuss.pytorch.org", wrapped(optimizer), "not a state dict"),
    Row("one tensor", "discuss.pytorch.org", wrapped(lambda net: torch.ones(3)), "not a state dict"),
    Row("an empty dict", "discuss.pytorch.org", wrapped(lambda net: {}), "an empty dict"),
]
