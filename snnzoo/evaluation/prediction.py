"""What a converted network takes images for: the best classes, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snnzoo.conversion.converted_file import Conversion
from snnzoo.conversion.inputs import network_input
from snnzoo.data.datasets import files_data
from snnzoo.data.loading import batches
from snnzoo.data.preprocess import MAX_PIXELS
from snnzoo.early_exit import ExitRule
from snnzoo.errors import UnreadableSample, UsageError
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference import prepare_for_inference

BEST = 5
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Guess:
    """A class: its index, its name, and its probability from 0 to 1."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What an image is taken for, the likeliest class first, after how many time steps."""

    image: Path
    steps: int
    guesses: tuple[Guess, ...]


def predict(
    net: SpikingNetwork,
    files: Sequence[Path],
    *,
    exit: ExitRule | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
    leave_out: Callable[[UnreadableSample], None] | None = None,
) -> Iterator[Prediction]:
    """Yield the five likeliest classes of each image, or of each file of event frames, in the order of `files`.

    Args:
        net: converted; it runs in its fast form, for the T that it was made for.
        files: at least one, all of one kind; prepared as the network's file says.
        exit: lets images that are sure leave early; None runs all steps.
        leave_out: called for each file that cannot be read, which then is left out.

    Raises:
        UsageError: for a network that was not converted.
        UnreadableSample: if a file cannot be read; only without `leave_out`.
    """
    info = net.conversion
    if not isinstance(info, Conversion):
        raise UsageError("only converted networks know how their images are prepared: this one was not converted")
    fast = prepare_for_inference(net, dtype=dtype, device=device)
    names = class_names(info.classes, net.num_classes)
    data = files_data(list(files), list(range(len(files))), info.preprocess, max_pixels)
    for samples, places in batches(data, batch_size, workers, leave_out=leave_out):
        if len(places) == 0:
            continue
        x_seq = network_input(samples.to(fast.device, fast.dtype), net.coding, info.time_steps)
        if exit is None:
            logits, steps = fast.final(x_seq), torch.full_like(places, info.time_steps)
        else:
            logits, steps = fast.until_sure(x_seq, exit)
        for place, taken, probabilities in zip(
            places.tolist(), steps.tolist(), logits.double().softmax(1), strict=True
        ):
            yield Prediction(files[place], taken, _best(probabilities, names))


def _best(probabilities: Tensor, names: Sequence[str]) -> tuple[Guess, ...]:
    values, indices = probabilities.topk(min(BEST, len(names)))
    return tuple(Guess(i, names[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True))


def class_names(known: Sequence[str] | None, classes: int) -> Sequence[str]:
    """Return the names of classes: those that are known, ImageNet's if there are 1,000, or else their numbers."""
    if known is not None:
        return known
    if classes == IMAGENET_CLASSES:
        from torchvision.models import ResNet18_Weights

        imagenet: list[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
        return imagenet
    return [str(i) for i in range(classes)]
