"""Accuracy of a converted network after T time steps, beside its ANN on the same images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snnzoo.errors import SnnzooError, UsageError
from snnzoo.evaluation.activity import ActivityMeter
from snnzoo.functional import reset_net
from snnzoo.models.resnet import SpikingNet

Progress = Callable[[int, int, str], None]
STEPS_AT_ONCE = 8  # a longer sequence is run in pieces, so that memory does not grow with T


@dataclass
class TimeStepResult:
    """One row: the network read out after `time_steps`. Rates are fractions of 1."""

    time_steps: int
    top1: float
    top5: float
    agreement: float
    images_per_second: float
    events_per_neuron_step: float
    synaptic_operations: float


@dataclass
class Evaluation:
    """What `evaluate` measured: `ann` holds the ANN's "top1" and "top5"."""

    images: int
    ann: dict[str, float]
    results: list[TimeStepResult]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


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
    progress: Progress | None = None,
) -> Evaluation:
    """Measure top-1, top-5, agreement with the ANN, speed and activity at several T in one run.

    Args:
        net: a converted network (multi-step).
        ann: its ANN (single-step).
        data: of (image `[C, H, W]`, label).
        time_steps: the T to read out at.
        workers: processes that load images.
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
    counts = torch.zeros(len(time_steps), 3, dtype=torch.long)  # top1, top5, agreement
    ann_counts = torch.zeros(2, dtype=torch.long)
    speeds: list[float] = []
    done = 0
    with torch.inference_mode():
        for images, labels in loader:
            images, labels = images.to(device, dtype), labels.to(device)
            if not speeds:
                speeds = [_images_per_second(net, images, t) for t in time_steps]
            expected = ann(images)
            ann_counts += _hits(expected, labels).cpu()
            with meter:
                logits = run_in_pieces(net, images, time_steps[-1])
            for row, t in enumerate(time_steps):
                agreement = (logits[t - 1].argmax(1) == expected.argmax(1)).sum()
                counts[row] += torch.cat([_hits(logits[t - 1], labels), agreement.view(1)]).cpu()
            done += len(images)
            if progress:
                progress(done, total, "evaluating")
    results, activity = [], meter.activity
    for row, (t, speed) in enumerate(zip(time_steps, speeds, strict=True)):
        top1, top5, agreement_rate = (counts[row].double() / total).tolist()
        events, operations = activity.events_per_neuron_step(t), activity.synaptic_operations(t)
        results.append(TimeStepResult(t, top1, top5, agreement_rate, speed, events, operations))
    ann_top1, ann_top5 = (ann_counts.double() / total).tolist()
    return Evaluation(total, {"top1": ann_top1, "top5": ann_top5}, results)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the best, and among the best five: `[2]`."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    matches = best == labels.unsqueeze(1)
    return torch.stack([matches[:, 0].sum(), matches.sum()])


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
