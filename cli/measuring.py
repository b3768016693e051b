"""What `snnzoo eval` does with one file: load the network, read its images, evaluate, keep the counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnzoo.cli import common
from snnzoo.data.folders import file_version
from snnzoo.distributed import Rank
from snnzoo.recognition.snn import TrainedNetwork

if TYPE_CHECKING:
    from snnzoo.conversion import Conversion
    from snnzoo.evaluation import Evaluation
    from snnzoo.evaluation.partial import PartialCounts
    from snnzoo.graph.network import Ann, SpikingNetwork
    from snnzoo.models.base import SpikingNet

ERROR_IMAGES = 16  # on which the conversion error of each layer is measured, for reports


def measure(
    file: Path,
    trained: dict[str, Any] | None,
    data: str,
    steps: list[int] | None,
    wanted: dict[str, Any],
    rank: Rank,
    workers: int,
    resume: bool,
    force_fit: bool,
    with_errors: bool,
    quiet: bool,
) -> tuple[Conversion | TrainedNetwork, Evaluation, PartialCounts]:
    """Evaluate one file, keeping its counts. `wanted` is what they depend on beside file, data and steps."""
    import torch

    from snnzoo import conversion, evaluation
    from snnzoo.checkpoints.files import sha256_of
    from snnzoo.data.datasets import labelled_data, limited
    from snnzoo.evaluation.partial import PartialCounts

    say = functools.partial(common.say, quiet=quiet or not rank.is_first)
    net, ann, info = _loaded(file, trained, data, say)
    images = labelled_data(data, info.preprocess, info.classes, net.num_classes, wanted["max_pixels"])
    if steps is None:
        assert isinstance(info, conversion.Conversion)
        steps = evaluation.powers_of_two(info.time_steps)
    rule = None
    if wanted["exit"] is not None:
        assert isinstance(info, conversion.Conversion)
        rule = conversion.exit_rule(info, wanted["exit"], str(file))
    versions = [file_version(path) for path in getattr(images, "files", [])]
    partial = PartialCounts(
        {
            **wanted,
            **({"trained": trained} if trained else {}),
            "file": sha256_of(file),
            "data": [str(Path(data).resolve()), *versions],
            "steps": steps,
            "errors": with_errors,
            "rank": rank.rank,
            "world_size": rank.world_size,
        },
        notify=lambda message: common.say(message, quiet),
    )
    if resume and rank.is_first and partial.load() is None:
        common.say(f"{file}: nothing to resume: starting from the first image", quiet)
    with common.progress_bars(quiet) as progress:
        result = evaluation.evaluate(
            net,
            ann,
            limited(images, wanted["limit"], wanted["seed"]),
            steps,
            batch_size=wanted["batch_size"],
            device=wanted["device"],
            dtype=getattr(torch, wanted["dtype"]),
            exit=rule,
            error_images=ERROR_IMAGES if with_errors else 0,
            neurobench=wanted["neurobench"],
            workers=workers,
            rank=rank,
            partial=partial,
            resume=resume,
            check_fit=not force_fit,
            progress=progress,
            notify=lambda message: common.say(message, quiet),
        )
    return info, result, partial


def _loaded(
    file: Path, trained: dict[str, Any] | None, data: str, notify: Callable[[str], None]
) -> tuple[SpikingNet | SpikingNetwork, Ann | None, Conversion | TrainedNetwork]:
    """The network, its ANN if it has one, and what is known of it."""
    from snnzoo import conversion
    from snnzoo.recognition.snn import load_snn

    if trained is not None:
        own = load_snn(file, **trained, notify=notify)
        return own, None, TrainedNetwork.of(own, trained["neuron"], data)
    net, ann = conversion.load_with_ann(file)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    return net, ann, info
