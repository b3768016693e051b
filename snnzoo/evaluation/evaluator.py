"""Accuracy of a converted network after T time steps, beside its ANN on the same images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from snnzoo.conversion.file import Conversion
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.evaluation.activity import ActivityMeter
from snnzoo.evaluation.layer_errors import layer_errors
from snnzoo.evaluation.results import Evaluation
from snnzoo.evaluation.tally import Tally
from snnzoo.functional import reset_net
from snnzoo.models.resnet import SpikingNet

Progress = Callable[[int, int, str], None]
STEPS_AT_ONCE = 8  # a longer sequence is run in pieces, so that memory does not grow with T


def check_time_steps(time_steps: Sequence[int]) -> list[int]:
    """Sorted, without repeats; a UsageError if one is below 1 or there are none."""
    if not time_steps or min(time_steps) < 1:
        raise UsageError(f"time steps must be at least 1, got {list(time_steps)}")
    return sorted(set(time_steps))


def run_in_pieces(net: SpikingNet, images: Tensor, time_steps: int) -> Tensor:
    """Logits `[T, N, classes]` after each step for static `images [N, C, H, W]`, from a fresh state."""
    reset_net(net)
    pieces = []
    for start in range(0, time_steps, STEPS_AT_ONCE):
        steps = min(STEPS_AT_ONCE, time_steps - start)
        pieces.append(net(images.expand(steps, *images.shape)))
    reset_net(net)
    return torch.cat(pieces)


def evaluate(
    net: SpikingNet,
    ann: SpikingNet,
    data: Dataset[tuple[Tensor, int]],
    time_steps: Sequence[int],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    error_images: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure top-1, top-5, agreement with the ANN, speed and activity at several T in one run.

    Args:
        net: a converted network (multi-step).
        ann: its ANN (single-step).
        data: of (image `[C, H, W]`, label).
        time_steps: the T to read out at.
        workers: processes that load images.
        error_images: how many images of the first batch each layer's error is measured on; none if 0.
        progress: called with (done, total, description).

    Raises:
        UsageError: for T < 1.
        SnnzooError: if there are no images, or one cannot be read.
    """
    time_steps = check_time_steps(time_steps)
    loader = DataLoader(data, batch_size, num_workers=workers)
    total = len(data)  # type: ignore[arg-type]
    if total == 0:
        raise SnnzooError("there are no images to evaluate on")
    net, ann = net.to(device, dtype).eval(), ann.to(device, dtype).eval()
    meter = ActivityMeter(net)
    tally = Tally.empty(time_steps, _classes(ann))
    with torch.inference_mode():
        for images, labels in loader:
            images, labels = images.to(device, dtype), labels.to(device)
            if not tally.speeds:
                tally.speeds = [_images_per_second(net, images, t) for t in time_steps]
                if error_images:
                    tally.layer_errors = layer_errors(net, ann, images[:error_images], time_steps)
            expected = ann(images)
            with meter:
                logits = run_in_pieces(net, images, time_steps[-1])
            tally.count(labels, expected, logits)
            if progress:
                progress(tally.images, total, "evaluating")
    tally.activity = meter.activity
    return tally.evaluation(net.conversion.coding.event_bits if isinstance(net.conversion, Conversion) else 1)


def _classes(net: SpikingNet) -> int:
    """How many logits the classifier gives."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features


def _images_per_second(net: SpikingNet, images: Tensor, time_steps: int) -> float:
    """Speed at this T on one batch, after one run that warms up."""
    seconds = []
    for _ in range(2):
        _synchronize(images)
        start = time.perf_counter()
        run_in_pieces(net, images, time_steps)
        _synchronize(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / min(seconds)


def _synchronize(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
