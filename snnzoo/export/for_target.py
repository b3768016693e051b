"""Converting a network for one reader of NIR: with the neurons that it has, and what that costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from snnzoo.conversion.choice import Judge
from snnzoo.conversion.converted_file import Conversion
from snnzoo.conversion.converter import convert_ann
from snnzoo.conversion.neurons import install
from snnzoo.conversion.recipes import Recipe, make_recipe
from snnzoo.export.nir import to_nir
from snnzoo.export.targets import target_named
from snnzoo.graph.network import Ann, SpikingNetwork
from snnzoo.graph.shapes import site_channels

MOST_IMAGES = 128  # on which the cost is counted
BATCH = 32


@dataclass(frozen=True)
class TargetCost:
    """How many images keep the ANN's class: with a target's neurons, and with those of the recipe "rate" at the same T.

    `held_back` tells whether the images are others than those of calibration.
    """

    target: str
    time_steps: int
    images: int
    held_back: bool
    agreement: float
    agreement_of_rate: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lost = 100 * (self.agreement_of_rate - self.agreement)
        return (
            f"for {self.target}, T={self.time_steps}: {100 * self.agreement:.1f} % of {self.images} "
            f"{'held-back' if self.held_back else 'calibration'} images keep the ANN's class, with --recipe rate "
            f"{100 * self.agreement_of_rate:.1f} %: its neurons cost {lost:.1f} points"
        )


def recipe_for(target: str, **options: Any) -> Recipe:
    """Return the recipe of a target's neurons; options as of `make_recipe`.

    Raises:
        UsageError: for a target that there is not.
    """
    coding = target_named(target).coding()
    return make_recipe(coding.name, **coding.settings(), **options)


def check_target(ann: Ann, target: str) -> None:
    """Raise a SnnzooError that says why, if no conversion of an ANN can be expressed for a target.

    What is before the first neuron may be left to the host, where it has a max pool.
    """
    row = target_named(target)
    channels = site_channels(ann.graph, ann.tensors(), ann.input_shape, ann.model_name)
    some = {path: {"v_threshold": torch.ones(n), "bias": torch.zeros(n)} for path, n in channels.items()}
    before = ann.graph.before_neurons
    pools = any(node.operation == "max_pool2d" and node.name in before for node in ann.graph)
    stem = row.spikes_alone or not pools
    to_nir(install(ann, row.coding(), some), tuple(ann.input_shape), stem=stem, target=row)


def cost_of(
    net: SpikingNetwork, ann: Ann, images: Tensor, held_back: Tensor | None = None, threshold: str | None = None
) -> TargetCost:
    """Return what a target's neurons cost.

    Args:
        net: converted from `ann` for a target.
        images: that it was calibrated on; the network of the recipe "rate" is, too.
        held_back: others, to count on; those of the calibration if there are none.
        threshold: how those of the recipe "rate" are found.
    """
    info = net.conversion
    assert isinstance(info, Conversion)
    recipe = make_recipe("rate", **({} if threshold is None else {"threshold": threshold}))
    rate = convert_ann(ann, images, recipe, info.time_steps)
    others = images if held_back is None or len(held_back) == 0 else held_back
    chosen = others[:MOST_IMAGES]
    judge = Judge(ann, chosen, tolerance=100.0, batch_size=BATCH)
    agreement, agreement_of_rate = (judge.agreement(one, info.time_steps)[0] / 100 for one in (net, rate))
    return TargetCost(
        str(info.recipe["for"]),
        info.time_steps,
        len(chosen),
        others is not images,
        agreement,
        agreement_of_rate,
    )
