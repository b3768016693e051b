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
    fc: Any  # the classifier, of those that have it alone behind the readout

    def stem(self, x: Tensor) -> Tensor:
        """From the image to the first neuron's output."""
        raise NotImplementedError

    def segments(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return what runs in turn up to the last neuron: the stem, named "", and the blocks by their names.

        The neurons of a segment are the modules directly in the one of its name.
        """
        stages = ((name, module) for name, module in self.named_children() if name.startswith("layer"))
        blocks = {f"{name}.{i}": block for name, stage in stages for i, block in enumerate(stage.children())}
        return {"": self.stem, **blocks}

    def classify(self, x: Tensor) -> Tensor:
        """From the last neuron's output to the logits, decoding on the way."""
        x = self.stateless(x, self.avgpool)
        x = self.readout(x.flatten(-3))
        return self.stateless(x, self.fc)

    def channels_of(self, site: str) -> int:
        """Return the channels of the neuron called `site`: those of the BN before it."""
        parent, _, last = site.rpartition(".")
        bn: Any = self.get_submodule(f"{parent}.bn{last.removeprefix('sn')}".lstrip("."))
        return bn.num_features

    def pools_of_spikes(self) -> list[str]:
        """Names of the max pools that see currents of spikes, not of the image: those behind the first neuron."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        expected = "[T, N, C, H, W]" if self.step_mode == "m" else "[N, C, H, W]"
        if x.ndim != expected.count(",") + 1:
            raise ValueError(
                f"{type(self).__name__} has step_mode={self.step_mode!r} and needs an input {expected}, "
                f"got shape {list(x.shape)}"
            )
        for segment in self.segments().values():
            x = segment(x)
        return self.classify(x)

    def initialise(self, step_mode: str) -> None:
        """Draw the initial weights as torchvision does, and set the step mode."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        set_step_mode(self, step_mode)
