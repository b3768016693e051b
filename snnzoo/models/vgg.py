"""Spiking VGGs with torchvision's module names, key order and shapes (Simonyan & Zisserman 2014, arXiv 1409.1556).

vgg11/13/16/19, with and without BN, each ReLU replaced by a neuron, `features.{i}.sn` and
`classifier.{i}.sn`: where torchvision has a ReLU, so that no layer's number changes. As in the ResNets'
stem, a max pool behind a neuron runs before it, on its current: with ReLU that equals torchvision's order,
and a quarter of the neurons remains. With `pool_first=False` it pools the spikes. VGGs for small images have other
classifiers (`head`), those of papers on spiking networks average pools (`pool="avg"`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

from torch import Tensor, nn

from snnzoo.base import StepModule
from snnzoo.errors import UsageError
from snnzoo.functional import set_step_mode
from snnzoo.layer import Dropout
from snnzoo.models import heads
from snnzoo.models.base import NeuronFactory, SpikingNet

POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages
POOLED = 7  # pixels of a side that the classifier sees


class Activation(nn.Module):
    """What stands where torchvision has a ReLU: a neuron `sn`, so that its parameters have names of their own."""

    def __init__(self, neuron: NeuronFactory) -> None:
        super().__init__()
        self.sn = neuron()

    def forward(self, x: Tensor) -> Tensor:
        return self.sn(x)


class VGG(SpikingNet):
    """torchvision's VGG with neurons. Its dropout holds one mask over time, until reset.

    Args:
        convolutions: in each of the five stages.
        batch_norm: whether each is followed by a BN.
        hidden_features: neurons of each of the classifier's two hidden layers (4096 in torchvision).
        num_classes, in_channels, neuron, step_mode: as `models.resnet.ResNet`.
        pool_first: whether max pools run before the neurons that torchvision has them behind.
        pool: "max" or "avg"; average pools stay behind the neurons.
        head: description of another classifier (`models.heads`), of the features of 1, 4, 9 ... pixels.

    Raises:
        ValueError: for another `pool`.
        UsageError: for a head that takes features of no square of pixels, or is no description.
    """

    def __init__(
        self,
        convolutions: tuple[int, int, int, int, int],
        batch_norm: bool = False,
        *,
        hidden_features: int = 4096,
        num_classes: int = 1000,
        in_channels: int = 3,
        neuron: NeuronFactory,
        step_mode: str = "m",
        pool_first: bool = True,
        pool: str = "max",
        head: heads.Description | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        self.pool_first = pool_first and pool == "max"
        layers: list[nn.Module] = []
        for width, count in zip(WIDTHS, convolutions, strict=True):
            for _ in range(count):
                normalisation = [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), *normalisation, Activation(neuron)]
                in_channels = width
            layers.append(POOLS[pool](2))
        self.features = nn.Sequential(*layers)
        head = head or _torchvision_head(hidden_features, num_classes)
        self.pooled = _pooled(head)
        self.avgpool = nn.AdaptiveAvgPool2d(self.pooled)
        self.classifier = _with_neurons(heads.build(head), neuron)
        self.readout = nn.Identity()
        self.initialise(step_mode)

    def encode(self, x: Tensor) -> Tensor:
        """From the image to the last neuron's output."""
        for unit in self._units():
            (place,) = (i for i in unit if isinstance(self.features[i], Activation))
            order = [*(i for i in unit if i != place), place] if self.pool_first else unit
            x = self._run([self.features[i] for i in order], x)
        x = self.stateless(x, self.avgpool).flatten(-3)
        return self._run(self._hidden()[0], x)

    def classify(self, x: Tensor) -> Tensor:
        return self._run(self._hidden()[1], self.readout(x))

    def _hidden(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The classifier's layers up to its last neuron, and those behind it."""
        layers = list(_layers(self.classifier))
        end = 1 + max((i for i, layer in enumerate(layers) if isinstance(layer, Activation)), default=-1)
        return layers[:end], layers[end:]

    def _units(self) -> list[range]:
        """Places in `features` of each convolution and what belongs to it: a BN, the neuron, a pool."""
        starts = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        return [range(*ends) for ends in pairwise([*starts, len(self.features)])]

    def _run(self, layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x) if isinstance(layer, (StepModule, Activation)) else self.stateless(x, layer)
        return x

    def initialise(self, step_mode: str) -> None:
        """Draw the initial weights as torchvision does, and set the step mode."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        set_step_mode(self, step_mode)


def _torchvision_head(hidden_features: int, num_classes: int) -> heads.Description:
    widths = [WIDTHS[-1] * POOLED**2, hidden_features, hidden_features]
    hidden = [layer for ends in pairwise(widths) for layer in (["Linear", *ends, True], ["ReLU"], ["Dropout", 0.5])]
    return [*hidden, ["Linear", hidden_features, num_classes, True]]


def _pooled(head: heads.Description) -> int:
    """Pixels of a side that a classifier sees, by the number of features that it takes."""
    given = heads.features(head)[0]
    side = math.isqrt(given // WIDTHS[-1])
    if side == 0 or given != WIDTHS[-1] * side**2:
        raise UsageError(f"the head takes {given} features, expected {WIDTHS[-1]} times the pixels of a square")
    return side


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested nn.Sequential, in the order in which they run."""
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for child in module:
        yield from _layers(child)


def _with_neurons(module: nn.Module, neuron: NeuronFactory) -> nn.Module:
    """A neuron for each ReLU, and dropout that holds its mask over time."""
    if isinstance(module, nn.ReLU):
        return Activation(neuron)
    if isinstance(module, nn.Dropout):
        return Dropout(module.p)
    for name, child in module.named_children():
        setattr(module, name, _with_neurons(child, neuron))
    return module
