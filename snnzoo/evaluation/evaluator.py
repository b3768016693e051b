"""Accuracy of a spiking network after T time steps, beside its ANN on the same images if it was converted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from snnzoo.conversion.inputs import ann_input, check_floating
from snnzoo.data.datasets import labelled_tensors
from snnzoo.data.loading import LeftOut, batches
from snnzoo.distributed import ALONE, Rank
from snnzoo.early_exit import ExitRule
from snnzoo.errors import SnnzooError, UnreadableSample, UsageError
from snnzoo.evaluation.layer_errors import layer_errors
from snnzoo.evaluation.neurobench import neurobench_metrics
from snnzoo.evaluation.partial import PartialCounts
from snnzoo.evaluation.results import Evaluation
from snnzoo.evaluation.runner import Runner
from snnzoo.evaluation.tally import Tally
from snnzoo.fit import check
from snnzoo.fit.statistics import Fit
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.trained import as_graph
from snnzoo.models.base import SpikingNet
from snnzoo.progress import Progress
from snnzoo.threshold_node import ThresholdNode


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation of `total` images; `evaluation` is of those done, None if there are none."""

    def __init__(self, evaluation: Evaluation | None, total: int) -> None:
        super().__init__("interrupted")
        self.evaluation, self.total = evaluation, total


def check_time_steps(time_steps: Sequence[int]) -> list[int]:
    """Return the steps sorted, without repeats; a UsageError if one is below 1 or there are none."""
    if not time_steps or min(time_steps) < 1:
        raise UsageError(f"time steps must be at least 1, got {list(time_steps)}")
    return sorted(set(time_steps))


def evaluate(
    net: SpikingNet | SpikingNetwork,
    ann: nn.Module | None,
    data: Dataset[tuple[Tensor, int]] | tuple[Tensor, Tensor],
    time_steps: Sequence[int],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 1,
    exit: ExitRule | None = None,
    error_images: int = 0,
    neurobench: bool = False,
    check_fit: bool = True,
    rank: Rank = ALONE,
    partial: PartialCounts | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Measure top-1, top-5, agreement with the ANN, speed and activity at several T in one run.

    The network runs in its fast form (`prepare_for_inference`), while the next images are read. After T steps a
    converted network is read out, and the mean of a trained one's logits.

    Args:
        net: a converted network, or one of the zoo that was trained as it is.
        ann: the ANN that it was converted from; None to do without agreement and gap.
        data: of (image `[C, H, W]`, label), or of (frames of events `[T, C, H, W]`, label), whose mean the ANN sees;
            or two tensors, `[N, C, H, W]` or `[T, N, C, H, W]`, and labels `[N]`.
        time_steps: the T to read out at.
        dtype: of the fast form, as of `prepare_for_inference`; the ANN runs in float32 where it is int8 or int16.
        batch_size: images at a time; halved, with a notice, where the GPU's memory is too small.
        workers: threads that read images; more than one only of data that bears it.
        exit: a rule of early exit: what it gives is one more row, beside that of all its T.
        error_images: how many images of the first batch each layer's error is measured on; none if 0, or of a
            trained network.
        neurobench: whether to measure NeuroBench's metrics, too (`evaluation.neurobench`), which takes longer.
        check_fit: whether to refuse a network whose BN statistics are far from what these images give (`fit.check`);
            otherwise that is only said.
        rank: of several processes, this one (see `snnzoo.distributed`); all give the whole result.
        partial: where counts are kept, until the caller has done with the results and deletes them.
        resume: go on from the counts in `partial`, if there are any.
        progress: called with (done, total, description).
        notify: called with a line that the user should see.

    Raises:
        UsageError: for images of whole numbers; for T < 1, or more than there are frames; for a network that is neither
            converted nor trained, or an ANN beside one that was trained.
        SnnzooError: for a gross misfit; if there are no images, or more than 50 of them cannot be read; fewer are left
            out, and named in the result.
        Interrupted: on Ctrl-C, with what this process has measured so far.
    """
    time_steps = check_time_steps([*time_steps, exit.time_steps] if exit else time_steps)
    network = _spiking(net, ann)
    samples: Dataset = labelled_tensors(*data) if isinstance(data, tuple) else data  # type: ignore[type-arg]
    total = len(samples)  # type: ignore[arg-type]
    if total == 0:
        raise SnnzooError("there are no images to evaluate on")
    fit = _fit(network, samples, not check_fit, notify if rank.is_first else lambda line: None)
    runner = Runner(network, ann, time_steps[-1], batch_size=batch_size, device=device, dtype=dtype, notify=notify)
    runner.meter.membranes = neurobench and network.coding is not None
    found = partial.load() if partial and resume else None
    if found and found[0].time_steps != time_steps:
        found = None
    classes = network.num_classes
    counted = found or (Tally.empty(time_steps, classes, exit), 0)  # replaced as one: Ctrl-C may come at any time
    chosen = range(rank.rank, -(-total // batch_size), rank.world_size)[counted[1] :]
    left_out = LeftOut(notify, counted[0].left_out)
    pinned = runner.device.type == "cuda"
    try:
        for images, labels in batches(samples, batch_size, workers, chosen, pin_memory=pinned, leave_out=left_out):
            batch = Tally.empty(time_steps, classes, exit)
            batch.left_out = left_out.names[len(counted[0].left_out) :]
            if len(labels) == 0:
                counted = counted[0].plus(batch), counted[1] + 1
                continue
            check_floating(images, "images")
            if rank.is_first and not counted[0].speeds:
                batch.speeds = [runner.images_per_second(images, t) for t in time_steps]
                if exit and batch.exit:
                    batch.exit.speed = runner.exits_per_second(images, exit)
                if error_images and network.coding is not None:
                    few = images[:error_images].to(device, runner.dtype)
                    batch.layer_errors = layer_errors(network.to(few).eval(), few, time_steps)
            runner.meter.activity = batch.activity
            labels = labels.to(device)
            expected, logits = runner(images)
            batch.count(labels, expected, logits)
            if exit and batch.exit:
                answers = runner.until_sure(images, exit, batch.exit.activity)
                batch.count_exits(exit, labels, expected, logits, *answers)
            counted = counted[0].plus(batch), counted[1] + 1
            if partial:
                partial.save(*counted, now=False)
            if progress:
                progress(min(counted[0].images * rank.world_size, total), total, "evaluating")
    except KeyboardInterrupt:
        so_far = counted[0].evaluation(network.coding, ann is not None) if counted[0].speeds else None
        raise Interrupted(so_far, total) from None
    finally:
        if partial and counted[1]:
            partial.save(*counted)
    tally = reduce(Tally.plus, rank.gather(counted[0]))
    LeftOut(notify, tally.left_out).require_some(tally.images)
    result = tally.evaluation(network.coding, ann is not None)
    if neurobench:
        result.neurobench = neurobench_metrics(runner.fast.network, tally.activity, time_steps[-1])
    result.fit = None if fit is None else fit.to_dict()
    if rank.is_first and ann is not None and at_chance(result.ann["top1"], classes, result.images):
        notify(
            f"the ANN itself is at chance: {100 * result.ann['top1']:.1f} % top-1 of {classes} classes; check weights, "
            "preprocessing and the order of classes, since agreement and gap say nothing then"
        )
    return result


def at_chance(top1: float, classes: int, images: int) -> bool:
    """Return whether a share of hits is what guessing gives, two standard deviations of it included."""
    chance = 1 / classes
    return classes > 1 and top1 <= chance + 2 * math.sqrt(chance * (1 - chance) / images)


def _fit(
    network: SpikingNetwork, samples: Dataset[tuple[Tensor, int]], force: bool, notify: Callable[[str], None]
) -> Fit | None:
    """How well a converted network's BN fits the data: images from all over it, since folders are in order of class."""
    images = []
    for place in check.spread(len(samples)) if network.coding is not None else ():  # type: ignore[arg-type]
        with contextlib.suppress(UnreadableSample):  # named later, in its batch
            images.append(samples[place][0])
    if not images:
        return None
    check_floating(images[0], "images")
    return check.check_fit(network, ann_input(torch.stack(images)), force=force, notify=notify)


def _spiking(net: SpikingNet | SpikingNetwork, ann: nn.Module | None) -> SpikingNetwork:
    """The network as a graph."""
    spiking = isinstance(net, (SpikingNet, SpikingNetwork)) and any(isinstance(m, ThresholdNode) for m in net.modules())
    if not spiking:
        raise UsageError(
            f"{type(net).__name__} is neither a converted network nor one of the zoo with spiking neurons: "
            "convert it with snnzoo.convert first"
        )
    network = as_graph(net)
    if network.coding is None and ann is not None:
        raise UsageError(
            "this network was not converted, so that no ANN computes the same: give None for the ANN, as in "
            "evaluate(net, None, data, time_steps)"
        )
    return network
