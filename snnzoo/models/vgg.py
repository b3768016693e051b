"""Spiking VGGs with torchvision's module names, key order and shapes (Simonyan & Zisserman 2014, arXiv 1409.1556).

vgg11/13/16/19, with and without BN, each ReLU replaced by a neuron, `features.{i}.sn` and
`classifier.{i}.sn`: where torchvision has a ReLU, so that no layer's number changes. As in the ResNets'
stem, a max pool behind a neuron runs before it, on its current: with ReLU that equals torchvision's order,
and a quarter of the neurons remains. With `pool_first=False` it pools the spikes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from snnzoo.base import StepModule
from snnzoo.functional import set_step_mode
from snnzoo.layer import Dropout
from snnzoo.models.base import NeuronFactory, SpikingNet

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
    ) -> None:
        super().__init__()
        self.pool_first = pool_first
        layers: list[nn.Module] = []
        for width, count in zip(WIDTHS, convolutions, strict=True):
            for _ in range(count):
                normalisation = [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), *normalisation, Activation(neuron)]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        self.classifier = nn.Sequential(
            nn.Linear(WIDTHS[-1] * POOLED**2, hidden_features),
            Activation(neuron),
            Dropout(),
            nn.Linear(hidden_features, hidden_features),
            Activation(neuron),
            Dropout(),
            nn.Linear(hidden_features, num_classes),
        )
        self.readout = nn.Identity()
        self.initialise(step_mode)

    def encode(self, x: Tensor) -> Tensor:
        """From the image to the last neuron's output."""
        for unit in self._units():
            (place,) = (i for i in unit if isinstance(self.features[i], Activation))
            order = [*(i for i in unit if i != place), place] if self.pool_first else unit
            x = self._run([self.features[i] for i in order], x)
        x = self.stateless(x, self.avgpool).flatten(-3)
        return self._run(self.classifier[:5], x)

    def classify(self, x: Tensor) -> Tensor:
        return self.stateless(self.readout(self.classifier[5](x)), self.classifier[6])

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
