"""What neither names nor shapes tell, and images do: BN remembers what reached it.

Rows give images of the network's own kind, whose statistics are in its BN, as calibration images do.
"""

from functools import partial

import torch
import torchvision
from making import write_torch
from networks import seeded
from rows import Row
from torch import nn
from torch.nn import functional as F

import snnzoo
from snnzoo.conversion import capture_ann
from snnzoo.conversion.fitted import fitted

HE = "arXiv 1512.03385, plain-20 of table 6"
HE_PRE_ACTIVATION = "arXiv 1603.05027, its ResNet-20 of CIFAR-10 with shortcuts without weights"
HUYVNPHAN = "github.com/huyvnphan/PyTorch_CIFAR10"


class Twenty(nn.Module):
    """20 layers in a list, so that their names are numbers: a residual network, one of pre-activations, or a plain one.

    All three have convolutions and BN of the same shapes in the same order.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind, layers, channels = kind, [], 3
        for i in range(19):
            width = 16 << (0 if i < 7 else 1 if i < 13 else 2)
            layers += [nn.Conv2d(channels, width, 3, 2 if i in (7, 13) else 1, 1, bias=False), nn.BatchNorm2d(width)]
            channels = width
        self.layers = nn.ModuleList([*layers, nn.Linear(64, 10)])

    def forward(self, x):
        convolutions, normalisations = self.layers[:-1:2], self.layers[1:-1:2]
        x = convolutions[0](x)
        x = x if self.kind == "pre-activation" else F.relu(normalisations[0](x))
        for i in range(1, 19, 2):
            if self.kind == "pre-activation":
                y = convolutions[i](F.relu(normalisations[i - 1](x)))
                x = convolutions[i + 1](F.relu(normalisations[i](y))) + shortcut(x, y)
            else:
                y = F.relu(normalisations[i](convolutions[i](x)))
                z = normalisations[i + 1](convolutions[i + 1](y))
                x = F.relu(z + shortcut(x, z) if self.kind == "residual" else z)
        x = F.relu(normalisations[18](x)) if self.kind == "pre-activation" else x
        return self.layers[-1](x.mean((2, 3)))


def shortcut(x, y):
    """Every second pixel, and zeros on both sides, where shapes differ."""
    if x.shape == y.shape:
        return x
    zeros = (y.shape[1] - x.shape[1]) // 2
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, zeros, zeros))


def pooled_cifar_resnet():
    """A ResNet-18 of torchvision's names, with a 3x3 stem of stride 1 and the max pool."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    return net


def pictures(count):
    """Smooth ones, normalised."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=32, mode="bilinear")


def with_statistics(net, images):
    """The network with what reaches its BN in it."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(3):  # what reaches a BN depends on those before it
            net.train()(images)
    return net.eval()


def told(model, make):
    """A row's `run`: weights of a file, and what becomes of them on images."""

    def run(folder):
        images = pictures(64)
        network = with_statistics(seeded(make), images)
        write_torch(network.state_dict(), folder / "net.pth")
        ann = snnzoo.load_ann(model, checkpoint=folder / "net.pth")
        found = fitted(capture_ann(ann, images), images, None, open_graph=True).ann
        with torch.inference_mode():
            return network.double()(images[:2].double()), found.double()(images[:2].double())

    return run


def data_free(model, make):
    """A row's `run`: the same without images."""

    def run(folder):
        network = with_statistics(seeded(make), pictures(64))
        write_torch(network.state_dict(), folder / "net.pth")
        return None, snnzoo.convert(snnzoo.load_ann(model, checkpoint=folder / "net.pth"), None)

    return run


ROWS = [
    Row("numbered layers of a ResNet-20", HE, told("resnet20", partial(Twenty, "residual"))),
    Row(
        "numbered layers of a ResNet-20 of pre-activations",
        HE_PRE_ACTIVATION,
        told("resnet20", partial(Twenty, "pre-activation")),
        "its layers are known by their order and shapes alone, and the network may not be meant for these images",
    ),
    Row(
        "numbered layers of a plain network of 20 layers",
        HE,
        told("resnet20", partial(Twenty, "plain")),
        "its layers are known by their order and shapes alone, and the network may not be meant for these images",
    ),
    Row(
        "numbered layers of a plain network of 20 layers, without images",
        HE,
        data_free("resnet20", partial(Twenty, "plain")),
        "only their order and shapes",
    ),
    Row("huyvnphan ResNet18, a 3x3 stem and a max pool", HUYVNPHAN, told("resnet18", pooled_cifar_resnet)),
]
