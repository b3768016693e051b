"""Files that are read back and run before they get their name: the same logits, and the same classes, or no file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnzoo.checkpoints.output import atomic_output
from snnzoo.conversion.answers import answers
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError
from snnzoo.functional import reset_net
from snnzoo.graph.network import SpikingNetwork
from snnzoo.models.base import SpikingNet

Run = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> logits after each step, [T, N, classes]
Open = Callable[[Path], Run]


@dataclass(frozen=True)
class Bounds:
    """How far a file may be from its network: another order of sums moves a value across a threshold now and then.

    `agreement` is the least share of images of the same class, `difference` the most of the median image's logits, in
    standard deviations of the logits.
    """

    agreement: float
    difference: float


AS_IT_IS = Bounds(0.9, 0.25)
ROUNDED = Bounds(0.75, 1.0)  # of weights of 8 bits


@dataclass(frozen=True)
class Check:
    """What an exported file gave beside its network, on the same images.

    `difference` is the largest of the logits after the last step, `typical` that of the median image in standard
    deviations of the logits; `agreement` the share of images of the same class; `ms_per_image` what the file took.
    """

    images: int
    time_steps: int
    difference: float
    typical: float
    agreement: float
    ms_per_image: float

    def is_within(self, bounds: Bounds) -> bool:
        """Return whether what was written computes what it should."""
        return self.agreement >= bounds.agreement and self.typical <= bounds.difference

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.images} images, T={self.time_steps}: logits differ by at most {self.difference:.2g}, "
            f"{100 * self.agreement:.1f} % of classes agree"
        )


@torch.inference_mode()
def expected_logits(net: SpikingNet | SpikingNetwork, images: Tensor, time_steps: int) -> Tensor:
    """Return the network's own answers to `images [N, C, H, W]` after each step, `[T, N, classes]`: `answered`."""
    weight = next(net.parameters())
    reset_net(net)
    logits = net(images.to(weight).expand(time_steps, *images.shape))
    reset_net(net)
    return answered(net, logits)


def answered(net: SpikingNet | SpikingNetwork, logits: Tensor) -> Tensor:
    """Return what a network has answered after each step, of the `logits [T, N, classes]` that it gives.

    A converted network's are that; one that was trained as it is answers with the mean of its steps' until then.
    """
    if isinstance(net.conversion, Conversion):
        return logits
    return logits.cumsum(0) / torch.arange(1, len(logits) + 1, dtype=logits.dtype).view(-1, 1, 1)


@torch.inference_mode()
def compare(run: Run, images: Tensor, expected: Tensor) -> Check:
    """Return what `run` gives for `images [N, C, H, W]` beside `expected [T, N, classes]`, both after the last step."""
    start = time.perf_counter()
    found = run(images)[-1].double().cpu()
    seconds = time.perf_counter() - start
    wanted = expected[-1].double().cpu()
    if found.shape != wanted.shape:
        raise SnnzooError(f"the file gives logits {list(found.shape)} instead of {list(wanted.shape)}")
    differences = (found - wanted).abs().amax(1)
    return Check(
        len(images),
        len(expected),
        differences.max().item(),
        (differences.median() / wanted.std().clamp(min=1e-30)).item(),
        (answers(found) == answers(wanted)).double().mean().item(),
        1000 * seconds / len(images),
    )


def write_checked(
    path: Path,
    content: Callable[[dict[str, str]], bytes],
    opened: Open,
    net: SpikingNet | SpikingNetwork,
    images: Tensor | None,
    time_steps: int,
    *,
    replace: bool,
    bounds: Bounds = AS_IT_IS,
) -> Check | None:
    """Write a file that computes what the network does, wholly or not at all.

    Args:
        content: the bytes of the file with some more metadata.
        opened: makes a file runnable; it then gives the network's answers after each step.
        images: to run it on; None for no check.
        bounds: of what it gives.

    Raises:
        SnnzooError: if the file cannot be written, or computes something else.
    """
    with atomic_output(path, replace=replace) as temporary:
        temporary.write_bytes(content({}))
        if images is None:
            return None
        found = compare(opened(temporary), images, expected_logits(net, images, time_steps))
        if not found.is_within(bounds):
            raise SnnzooError(
                f"{path}: not written, since it does not compute what the network does, on {found}; --no-verify "
                "writes it all the same"
            )
        facts = {key: value for key, value in found.to_dict().items() if key != "ms_per_image"}
        temporary.write_bytes(content({"verified": json.dumps(facts)}))
    return found
