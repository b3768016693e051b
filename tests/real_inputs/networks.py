"""Networks as the repositories have them that inputs are from: the same module names and the same computation."""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from helpers import shake_batch_norm

PLANS = {  # of VGGs: channels of convolutions, and 0 for a pool
    "vgg11": (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg16": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
}


def prepared(net, seed=0):
    """With weights of a seed and BN that leaves no term out, in eval mode."""
    return shake_batch_norm(net, seed).eval()


def seeded(make, *arguments, **options):
    """A prepared network, the same at each call."""
    torch.manual_seed(0)
    return prepared(make(*arguments, **options))


def cifar_resnet(name="resnet18", num_classes=10, library=torchvision.models.get_model, **options):
    """A ResNet of a library, with the 3x3 stem and no max pool, as it is often made to fit small images."""
    net = library(name, num_classes=num_classes, **options)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


class ResidualFunction(nn.Module):
    """A block of weiaicunzai/pytorch-cifar100: convolutions in a Sequential of their own."""

    def __init__(self, channels, width, stride, bottleneck):
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out_channels, 1, 1)]
        layers = []
        for i, o, size, step in shapes:
            layers += [nn.Conv2d(i, o, size, step, size // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.residual_function = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        return F.relu(self.residual_function(x) + self.shortcut(x))


class Cifar100ResNet(nn.Module):
    """The ResNet of weiaicunzai/pytorch-cifar100."""

    def __init__(self, blocks, bottleneck, num_classes=100):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        channels = 64
        for stage, count in enumerate(blocks):
            layers = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(ResidualFunction(channels, 64 << stage, stride, bottleneck))
                channels = (64 << stage) * (4 if bottleneck else 1)
            setattr(self, f"conv{stage + 2}_x", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.conv5_x(self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class PreActivationBlock(nn.Module):
    """A block of kuangliu/pytorch-cifar's PreActResNet."""

    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActivationResNet(nn.Module):
    """kuangliu/pytorch-cifar's PreActResNet18."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        channels = 64
        for stage in range(4):
            layers = []
            for stride in (1 if stage == 0 else 2, 1):
                layers.append(PreActivationBlock(channels, 64 << stage, stride))
                channels = 64 << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(512, 10)


class Akamaster(nn.Module):
    """The CIFAR ResNet of akamaster/pytorch_resnet_cifar10, with the shortcut of option A."""

    def __init__(self, depth=20, num_classes=10, in_channels=3):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        channels = 16
        for stage in range(3):
            layers = []
            for i in range((depth - 2) // 6):
                layers.append(AkamasterBlock(channels, 16 << stage, 2 if stage and i == 0 else 1))
                channels = 16 << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class AkamasterBlock(nn.Module):
    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.pad = stride, (out_channels - channels) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class SmallVGG(nn.Module):
    """A VGG for 32 pixels, whose classifier sees the 512 channels of one pixel.

    Args:
        classifier: a module that takes 512 features.
        pool: makes each pool.
    """

    def __init__(self, classifier, plan="vgg11", batch_norm=True, pool=nn.MaxPool2d, in_channels=3, bias=True):
        super().__init__()
        layers = []
        for width in PLANS[plan]:
            if width == 0:
                layers.append(pool(2, 2))
                continue
            layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=bias))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU())
            in_channels = width
        self.features, self.classifier = nn.Sequential(*layers), classifier

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def chengyangfu(num_classes=10):
    """The classifier of chengyangfu/pytorch-vgg-cifar10."""
    hidden = [nn.Dropout(), nn.Linear(512, 512), nn.ReLU(True), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(True)]
    return nn.Sequential(*hidden, nn.Linear(512, num_classes))


def chenyaofo(num_classes=10):
    """The classifier of chenyaofo/pytorch-cifar-models."""
    hidden = [nn.Linear(512, 512), nn.ReLU(True), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(*hidden, nn.Linear(512, num_classes))


def weiaicunzai(num_classes=100, width=64):
    """The classifier of weiaicunzai/pytorch-cifar100's VGGs, narrower."""
    hidden = [nn.Linear(512, width), nn.ReLU(True), nn.Dropout(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, num_classes))


class Narrow(nn.Module):
    """A small network of users' own, with the head that is given."""

    def __init__(self, head=None, in_channels=3, features=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = nn.Conv2d(features, features, 3, 2, 1, bias=False), nn.BatchNorm2d(features)
        self.head = nn.Linear(features, 10) if head is None else head

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Giving(nn.Module):
    """A network whose logits come in what `wrap` makes of them."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = Narrow(), wrap

    def forward(self, x):
        return self.wrap(self.network(x))
