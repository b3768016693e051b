"""What several tests need."""

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from snnzoo import functional, neuron

NEURONS = {
    "IF hard": neuron.IFNode,
    "IF soft": functools.partial(neuron.IFNode, v_reset=None),
    "LIF hard": neuron.LIFNode,
    "LIF soft": functools.partial(neuron.LIFNode, v_reset=None),
}

# Recipes of every coding, with the options of some: what tests of converted networks run through.
RECIPES = {
    "rate, max": ("rate", {"threshold": "max"}),
    "rate, 99.9 percentile": ("rate", {"threshold": "percentile"}),
    "delta, ternary": ("delta", {"levels": 1, "gamma": 0.7}),
    "delta, K=3": ("delta", {"levels": 3, "gamma": 0.5}),
    "delta, K=7": ("delta", {"levels": 7, "gamma": 0.4}),
    "differential": ("differential", {}),
    "signed": ("signed", {}),
    "data-free": ("delta", {"levels": 7}),
}


def torchrun(*command, processes=2):
    """Run a command of snnzoo in several processes, each with as many threads as this one; what became of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    return subprocess.run(
        [*launcher, "--master-port", str(port), "-m", "snnzoo.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )


def shake_batch_norm(net, seed=0):
    """Random BN statistics and affine parameters, so that no term is left out by being 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return net


def assert_patterns_agree(net, x_seq):
    """Layer-by-layer equals step-by-step, and fires enough for that to mean something."""
    rates = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, y: rates.append(y.count_nonzero().item() / y.numel()))
        for module in net.modules()
        if isinstance(module, neuron.BaseNode)
    ]
    with torch.inference_mode():
        functional.set_step_mode(net, "m")
        layer_by_layer = net(x_seq)
        for hook in hooks:
            hook.remove()
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        step_by_step = torch.stack([net(x) for x in x_seq])
        functional.reset_net(net)
    assert sum(rate > 0 for rate in rates) > len(rates) * 0.9
    torch.testing.assert_close(layer_by_layer, step_by_step, rtol=1e-10, atol=1e-10)


def assert_converted_patterns_agree(net, x_seq):
    """As `assert_patterns_agree`, of a converted network, whose logits change from step to step."""
    with torch.inference_mode():
        functional.reset_net(net)
        functional.set_step_mode(net, "m")
        layer_by_layer = net(x_seq)
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        step_by_step = torch.stack([net(x) for x in x_seq])
    torch.testing.assert_close(layer_by_layer, step_by_step, rtol=1e-9, atol=1e-9)
    assert (layer_by_layer[0] != layer_by_layer[-1]).any()


def neuron_sites(net):
    """Names of a converted network's neurons, in the order in which they run."""
    return [node.path for node in net.graph.neurons]


def firing(net):
    """Random BN whose shift makes every layer fire."""
    shake_batch_norm(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.5
    return net.double().eval()


# -- Networks of libraries and users, to capture and convert -----------------------------------------------------------


class LeNet(nn.Module):
    """Activations and pools are functions, not modules."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 25, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Pyramid(nn.Module):
    """What a coarse and a fine path see, put together: concatenation and nearest upsampling."""

    def __init__(self):
        super().__init__()
        self.fine, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.merge, self.head = nn.Conv2d(20, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        coarse = F.interpolate(F.relu(self.down(fine)), scale_factor=2, mode="nearest")
        return self.head(F.relu(self.merge(torch.cat([fine, coarse], 1))).mean((2, 3)))


class CifarBlock(nn.Module):
    """A residual block whose ReLUs are all functions."""

    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y)


class CifarResNet18(nn.Module):
    """A 3x3 stem and no max pool, as networks for 32 pixels are often written."""

    def __init__(self, width=16):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        channels, blocks = width, []
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(CifarBlock(channels, width << stage, stride))
                channels = width << stage
        self.layers, self.linear = nn.Sequential(*blocks), nn.Linear(channels, 10)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        x = F.avg_pool2d(x, 4)
        return self.linear(x.view(x.size(0), -1))


def make_mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU6(), nn.Linear(24, 10)
    )


def _torchvision(name, **options):
    import torchvision

    return torchvision.models.get_model(name, num_classes=10, **options)


def _timm(name):
    import timm

    return timm.create_model(name, num_classes=10)


def _transformers_resnet(kind):
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 1, 1, 1], "embedding_size": 16}
    return ResNetForImageClassification(ResNetConfig(num_labels=10, layer_type=kind, **sizes))


@dataclass(frozen=True)
class Network:
    """A network of 10 classes with random weights.

    Args:
        name: "LIBRARY:NAME", or a name of ours.
        make: builds it.
        size: pixels of its images.
        slow: whether checking it takes more than a few seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    size: int = 64
    slow: bool = False

    def __str__(self):
        return self.name

    def build(self):
        """The network in float64 with statistics of a real batch in its BN, in eval mode, and 4 images of it."""
        torch.manual_seed(0)
        net, batch = self.make().double().eval(), torch.randn(32, 3, self.size, self.size, dtype=torch.float64)
        normalisations = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in normalisations:
            module.momentum = None  # average over batches
            module.reset_running_stats()
            module.train()
        with torch.no_grad():
            if normalisations:
                net(batch)
        return net.eval(), batch[:4]


def _networks():
    def of(library, make, names, **options):
        return [Network(f"{library}:{name}", functools.partial(make, name), **options) for name in names.split()]

    aux = {"aux_logits": True, "init_weights": False}
    yield from of(
        "torchvision", _torchvision, "resnet18 squeezenet1_1 mobilenet_v2 shufflenet_v2_x0_5 mobilenet_v3_small"
    )
    yield from of("torchvision", _torchvision, "resnet34 resnet50 resnet101 resnet152 resnext50_32x4d", slow=True)
    yield from of("torchvision", _torchvision, "resnext101_32x8d resnext101_64x4d wide_resnet50_2", slow=True)
    yield from of("torchvision", _torchvision, "wide_resnet101_2 densenet121 mnasnet0_5 alexnet vgg11", slow=True)
    yield from of("torchvision", _torchvision, "vgg16_bn regnet_x_400mf regnet_y_400mf efficientnet_b0", slow=True)
    yield Network("torchvision:googlenet", functools.partial(_torchvision, "googlenet", **aux), slow=True)
    yield Network("torchvision:inception_v3", functools.partial(_torchvision, "inception_v3", **aux), 80, slow=True)
    yield from of("timm", _timm, "resnet18d seresnet18 mobilenetv3_small_100")
    yield from of(
        "timm", _timm, "resnet26t resnetaa34d dla34 hrnet_w18_small repvgg_a0 selecsls42 densenet121", slow=True
    )
    yield from of("timm", _timm, "vovnet39a cspresnet50 res2net50_26w_4s", slow=True)
    yield from of("transformers", _transformers_resnet, "basic bottleneck")
    yield Network("lenet", LeNet, 32)
    yield Network("pyramid", Pyramid, 16)
    yield Network("cifar_resnet18", CifarResNet18, 32)
    yield Network("mlp", make_mlp, 8)


NETWORKS = {network.name: network for network in _networks()}
