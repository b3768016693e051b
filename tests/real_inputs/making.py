"""How rows make a file of weights, load it, and compare."""

import pickle
from pathlib import Path

import torch
import torchvision
from networks import (
    seeded,
)
from safetensors.torch import save_file

import snnzoo

TORCHVISION = "github.com/pytorch/vision"
KUANGLIU = "github.com/kuangliu/pytorch-cifar"
AKAMASTER = "github.com/akamaster/pytorch_resnet_cifar10"
WEIAICUNZAI = "github.com/weiaicunzai/pytorch-cifar100"


def images(channels=3, size=32, count=2):
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same_logits(network, ann, x):
    """What a network of the source and one of ours give, in double precision."""
    with torch.inference_mode():
        output = network.double()(x)
        return getattr(output, "logits", output), ann.double()(x)


def write_torch(content, file):
    torch.save(content, file)


def write_old(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def write_pickle(content, file, protocol=pickle.DEFAULT_PROTOCOL):
    file.write_bytes(pickle.dumps(content, protocol))


def write_safetensors(content, file):
    save_file({key: value.contiguous() for key, value in content.items()}, file)


def write_script(network, file):
    torch.jit.trace(network, torch.randn(1, 3, 32, 32)).save(file)


def loaded(model, make, content=lambda net: net.state_dict(), write=write_torch, size=32, channels=3, **options):
    """A row's `run`: a network's weights, in a file, loaded as those of a model of the zoo.

    Args:
        make: makes the network.
        content: what is saved of it.
        write: saves it.
        size, channels: of the images that both are given.
        options: of `load_ann`.
    """

    def run(folder: Path):
        network = make()
        write(content(network), folder / "net.pth")
        ann = snnzoo.load_ann(model, checkpoint=folder / "net.pth", **options)
        return same_logits(network, ann, images(channels, size))

    return run


def sample_resnet(name):
    from spikingjelly.activation_based.ann2snn.sample_models import cifar10_resnet

    return seeded(getattr(cifar10_resnet, name))


def timm_network(name, **options):
    import timm

    return timm.create_model(name, **options)


def small(name="resnet18", **options):
    """A ResNet of torchvision with ten classes."""
    return seeded(torchvision.models.get_model, name, num_classes=10, **options)


def prefixed(prefix, state_dict):
    return {prefix + key: value for key, value in state_dict.items()}


def renamed(state_dict, *pairs):
    """The state dict with parts of its keys replaced."""
    result = {}
    for key, value in state_dict.items():
        for old, new in pairs:
            key = key.replace(old, new)
        result[key] = value
    return result


def body(net):
    return {key: value for key, value in net.state_dict().items() if not key.startswith(("fc.", "linear."))}
