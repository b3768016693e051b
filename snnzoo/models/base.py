"""What all networks of the zoo share: running stateless layers in either step mode, the readout, initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from snnzoo.base import StepModule
from snnzoo.functional import seq_to_ann_forward, set_step_mode

NeuronFactory = Callable[[], nn.Module]


class SpikingModule(StepModule):
    """A network or block that runs its stateless layers in its own step mode."""

    def stateless(self, x: Tensor, *modules: nn.Module) -> Tensor:
        """Apply stateless `modules` to `[N, ...]`, or to `[T, N, ...]` in multi-step mode."""
        if self.step_mode == "m":
            return seq_to_ann_forward(x, modules)
        for module in modules:
            x = module(x)
        return x


class SpikingNet(SpikingModule):
    """What every network of the zoo shares: the shape of its input, its readout and its initial weights.

    `[T, N, C, H, W] -> [T, N, num_classes]`, or `[N, C, H, W] -> [N, num_classes]` in single-step mode.
    `readout` decodes the pooled activation before the classifier: the identity in a network to train,
    a `layer.Readout` in a converted one.
    """

    model_name: str  # what the registry built it as, and with which arguments
    model_kwargs: dict[str, Any]
    conversion: object | None = None  # of a converted network: how it was made (conversion.Conversion)
    readout: nn.Module
    avgpool: nn.Module
    by_position = False  # whether its weights were found by their order and shapes alone (checkpoints.positional)
    fc: Any  # the classifier, of those that have it alone behind the readout

    @property
    def num_classes(self) -> int:
        """How many logits it gives."""
        return int(self.model_kwargs["num_classes"])

    def stem(self, x: Tensor) -> Tensor:
        """From the image to the first neuron's output."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """From the image to the last neuron's output: the stem, then the stages `layer1`, `layer2` ..."""
        x = self.stem(x)
        for name, stage in self.named_children():
            if name.startswith("layer"):
                x = stage(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """From the last neuron's output to the logits, decoding on the way."""
        x = self.stateless(x, self.avgpool)
        x = self.readout(x.flatten(-3))
        return self.stateless(x, self.fc)

    def forward(self, x: Tensor) -> Tensor:
        expected = "[T, N, C, H, W]" if self.step_mode == "m" else "[N, C, H, W]"
        if x.ndim != expected.count(",") + 1:
            raise ValueError(
                f"{type(self).__name__} has step_mode={self.step_mode!r} and needs an input {expected}, "
                f"got shape {list(x.shape)}"
            )
        return self.classify(self.encode(x))

    def initialise(self, step_mode: str) -> None:
        """Draw the initial weights as torchvision does, and set the step mode."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        set_step_mode(self, step_mode)
