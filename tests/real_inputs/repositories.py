"""Files of weights as repositories write them, under the names of their own modules."""

from functools import partial

import torch
import torchvision
from making import (
    AKAMASTER,
    KUANGLIU,
    TORCHVISION,
    WEIAICUNZAI,
    loaded,
    prefixed,
    renamed,
    sample_resnet,
    small,
    timm_network,
)
from networks import (
    Akamaster,
    Cifar100ResNet,
    PreActivationResNet,
    SmallVGG,
    chengyangfu,
    chenyaofo,
    cifar_resnet,
    seeded,
    weiaicunzai,
)
from rows import Row
from torch import nn


def with_vgg_head(head):
    net = torchvision.models.vgg11_bn(num_classes=10)
    net.classifier = head
    return net


def cifar_bottleneck():
    """bearpaw/pytorch-classification's resnet-110: bottlenecks in three stages."""
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 2, 2, 1], num_classes=10)
    return {key: value for key, value in net.state_dict().items() if not key.startswith("layer4")}


def wide_resnet():
    """meliketoy/wide-resnet.pytorch and others: BN before convolutions, `shortcut.0` with a bias."""
    net = PreActivationResNet()
    return renamed(net.state_dict(), ("linear.", "fc."), ("layer4.", "block4."))


ROWS = [
    Row(
        "kuangliu ResNet18",
        KUANGLIU,
        loaded(
            "resnet18",
            partial(sample_resnet, "ResNet18"),
            lambda net: {"net": prefixed("module.", net.state_dict()), "acc": 95.1, "epoch": 199},
        ),
    ),
    Row("kuangliu ResNet34", KUANGLIU, loaded("resnet34", partial(sample_resnet, "ResNet34"))),
    Row("kuangliu ResNet50", KUANGLIU, loaded("resnet50", partial(sample_resnet, "ResNet50"))),
    Row(
        "kuangliu ResNet18 given as resnet34",
        KUANGLIU,
        loaded("resnet34", partial(sample_resnet, "ResNet18")),
        "holds the weights of resnet18",
    ),
    Row("kuangliu PreActResNet18", KUANGLIU, loaded("resnet18", PreActivationResNet), "before its convolutions"),
    Row("kuangliu VGG11", KUANGLIU, loaded("vgg11_bn", lambda: seeded(SmallVGG, nn.Linear(512, 10)))),
    Row("kuangliu VGG16", KUANGLIU, loaded("vgg16_bn", lambda: seeded(SmallVGG, nn.Linear(512, 10), "vgg16"))),
    Row(
        "kuangliu VGG11 of grey images",
        KUANGLIU,
        loaded("vgg11_bn", lambda: seeded(SmallVGG, nn.Linear(512, 10), in_channels=1), channels=1),
    ),
    Row(
        "ResNet-18 with torchvision's names and a 3x3 stem",
        "discuss.pytorch.org, resnet18 for CIFAR-10",
        loaded("resnet18", lambda: seeded(cifar_resnet)),
    ),
    Row(
        "ResNet-34 with torchvision's names and a 3x3 stem",
        "discuss.pytorch.org, resnet18 for CIFAR-10",
        loaded("resnet34", lambda: seeded(cifar_resnet, "resnet34")),
    ),
    Row(
        "ResNet-50 with torchvision's names and a 3x3 stem",
        "discuss.pytorch.org, resnet18 for CIFAR-10",
        loaded("resnet50", lambda: seeded(cifar_resnet, "resnet50")),
    ),
    Row(
        "timm resnet18 with a 3x3 stem",
        "huggingface.co/edadaltocg/resnet18_cifar10",
        loaded("resnet18", lambda: seeded(cifar_resnet, library=timm_network)),
    ),
    Row("weiaicunzai ResNet18", WEIAICUNZAI, loaded("resnet18", lambda: seeded(Cifar100ResNet, (2, 2, 2, 2), False))),
    Row("weiaicunzai ResNet50", WEIAICUNZAI, loaded("resnet50", lambda: seeded(Cifar100ResNet, (3, 4, 6, 3), True))),
    Row("weiaicunzai VGG11", WEIAICUNZAI, loaded("vgg11_bn", lambda: seeded(SmallVGG, weiaicunzai()))),
    Row(
        "weiaicunzai VGG19, of 17 convolutions",
        WEIAICUNZAI,
        loaded(
            "vgg19_bn",
            lambda: seeded(SmallVGG, weiaicunzai(), "vgg11"),
            lambda net: {
                **net.state_dict(),
                "features.29.weight": torch.ones(512, 512, 3, 3),
                "features.30.running_mean": torch.ones(512),
            },
        ),
        "no model of the zoo",
    ),
    Row(
        "chengyangfu VGG11",
        "github.com/chengyangfu/pytorch-vgg-cifar10",
        loaded("vgg11_bn", lambda: seeded(SmallVGG, chengyangfu())),
    ),
    Row(
        "chengyangfu VGG11 without BN, features in DataParallel",
        "github.com/chengyangfu/pytorch-vgg-cifar10",
        loaded(
            "vgg11",
            lambda: seeded(SmallVGG, chengyangfu(), batch_norm=False),
            lambda net: {"state_dict": renamed(net.state_dict(), ("features.", "features.module.")), "best_prec1": 92},
        ),
    ),
    Row(
        "chenyaofo VGG11",
        "github.com/chenyaofo/pytorch-cifar-models",
        loaded("vgg11_bn", lambda: seeded(SmallVGG, chenyaofo())),
    ),
    Row(
        "chenyaofo VGG16 without dropout",
        "github.com/chenyaofo/pytorch-cifar-models",
        loaded(
            "vgg16_bn",
            lambda: seeded(SmallVGG, nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)), "vgg16"),
        ),
    ),
    Row(
        "huyvnphan VGG11, as torchvision's",
        "github.com/huyvnphan/PyTorch_CIFAR10",
        loaded(
            "vgg11_bn",
            lambda: seeded(
                with_vgg_head,
                nn.Sequential(
                    nn.Linear(25088, 64),
                    nn.ReLU(),
                    nn.Dropout(),
                    nn.Linear(64, 64),
                    nn.ReLU(),
                    nn.Dropout(),
                    nn.Linear(64, 10),
                ),
            ),
        ),
    ),
    Row(
        "VGG11 with one Linear layer on 7x7 pixels",
        "discuss.pytorch.org, vgg16 fine-tuning",
        loaded("vgg11_bn", lambda: seeded(with_vgg_head, nn.Linear(25088, 10))),
    ),
    Row(
        "VGG11 with a hidden layer of its own",
        "discuss.pytorch.org, vgg16 fine-tuning",
        loaded(
            "vgg11_bn",
            lambda: seeded(
                with_vgg_head, nn.Sequential(nn.Linear(25088, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 7))
            ),
        ),
    ),
    Row(
        "VGG11 for 64 pixels, 2x2 at its end",
        "discuss.pytorch.org, vgg for tiny-imagenet",
        loaded("vgg11_bn", lambda: seeded(SmallVGG, nn.Linear(2048, 200)), size=64),
    ),
    Row(
        "VGG11 with average pools",
        "github.com/yhhhli/SNN_Calibration",
        loaded("vgg11_bn", lambda: seeded(SmallVGG, nn.Linear(512, 10), pool=nn.AvgPool2d), pool="avg"),
    ),
    Row(
        "VGG with a convolution for a classifier",
        "arxiv.org/abs/1412.6806",
        loaded(
            "vgg11_bn",
            lambda: seeded(SmallVGG, nn.Linear(512, 10)),
            lambda net: {
                **{key: value for key, value in net.state_dict().items() if key.startswith("features")},
                "classifier.1.weight": torch.ones(10, 512, 1, 1),
                "classifier.1.bias": torch.ones(10),
            },
        ),
        "a head of convolutions",
    ),
    Row(
        "VGG16 of hybrid conversion, without biases, dropout between its convolutions",
        "github.com/nitin-rathi/hybrid-snn-conversion",
        loaded(
            "vgg16",
            lambda: None,
            lambda net: {
                **{f"features.{i}.weight": torch.ones(64, 3 if i == 0 else 64, 3, 3) for i in (0, 3, 6, 9)},
                "classifier.0.weight": torch.ones(10, 64),
            },
        ),
        "no model of the zoo",
    ),
    Row(
        "akamaster ResNet-20",
        AKAMASTER,
        loaded(
            "resnet20",
            lambda: seeded(Akamaster),
            lambda net: {"state_dict": prefixed("module.", net.state_dict()), "best_prec1": 91.7},
        ),
    ),
    Row("akamaster ResNet-56", AKAMASTER, loaded("resnet56", lambda: seeded(Akamaster, 56))),
    Row(
        "akamaster ResNet-20 given as resnet18",
        AKAMASTER,
        loaded("resnet18", lambda: seeded(Akamaster)),
        "holds the weights of resnet20",
    ),
    Row(
        "ResNet-20 of grey images", AKAMASTER, loaded("resnet20", lambda: seeded(Akamaster, in_channels=1), channels=1)
    ),
    Row(
        "bearpaw ResNet-110, bottlenecks in three stages",
        "github.com/bearpaw/pytorch-classification",
        loaded("resnet110", cifar_bottleneck, lambda net: net),
        "no model of the zoo",
    ),
    Row(
        "Wide ResNet, BN before its convolutions",
        "github.com/meliketoy/wide-resnet.pytorch",
        loaded("wide_resnet50_2", wide_resnet, lambda net: net),
        "before its convolutions",
    ),
    Row(
        "MobileNetV2 of kuangliu",
        KUANGLIU,
        loaded(
            "resnet18",
            lambda: {
                "conv1.weight": torch.ones(32, 3, 3, 3),
                "bn1.weight": torch.ones(32),
                "layers.0.conv1.weight": torch.ones(32, 32, 1, 1),
                "layers.0.bn1.weight": torch.ones(32),
                "layers.0.conv2.weight": torch.ones(32, 1, 3, 3),
                "conv2.weight": torch.ones(1280, 320, 1, 1),
                "linear.weight": torch.ones(10, 1280),
            },
            lambda net: net,
        ),
        "FILE.py:FUNCTION",
    ),
    Row(
        "ResNet-9 of DAWNBench",
        "github.com/davidcpage/cifar10-fast",
        loaded(
            "resnet18",
            lambda: {
                "prep.conv.weight": torch.ones(64, 3, 3, 3),
                "prep.bn.weight": torch.ones(64),
                "layer1.conv.weight": torch.ones(128, 64, 3, 3),
                "layer1.residual.res1.conv.weight": torch.ones(128, 128, 3, 3),
                "linear.weight": torch.ones(10, 512),
            },
            lambda net: net,
        ),
        "FILE.py:FUNCTION",
    ),
    Row("ResNet-18 of torchvision", TORCHVISION, loaded("resnet18", small, size=64)),
    Row(
        "ResNet-18 of one class too many",
        TORCHVISION,
        loaded("resnet18", small, num_classes=11),
        "has 10 classes, not 11",
    ),
    Row("ResNet-50 of torchvision", TORCHVISION, loaded("resnet50", partial(small, "resnet50"), size=64)),
    Row("ResNeXt-50 of torchvision", TORCHVISION, loaded("resnext50_32x4d", partial(small, "resnext50_32x4d"))),
    Row(
        "ResNet-18 of 11 channels",
        "github.com/iamstarlee/Multi-label-Sewer-Classification/issues/9",
        loaded("resnet18", lambda: seeded(timm_network, "resnet18", in_chans=11, num_classes=4), channels=11),
    ),
    Row(
        "ResNet-18 of half the width",
        "discuss.pytorch.org, smaller resnet18",
        loaded(
            "resnet18",
            lambda: seeded(
                torchvision.models.ResNet, torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=10
            ),
            lambda net: {
                key: value[:32] if value.ndim and key.startswith(("conv1", "bn1")) else value
                for key, value in net.state_dict().items()
            },
        ),
        "of another shape",
    ),
]
