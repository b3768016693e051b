"""Counts of an evaluation that is not finished, kept in a file so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from snnzoo.checkpoints.files import read_safetensors, write_safetensors
from snnzoo.errors import SnnzooError
from snnzoo.evaluation.activity import Activity
from snnzoo.evaluation.tally import Tally

FORMAT = "snnzoo-partial/1"
SECONDS = 30.0  # between two writes


class PartialCounts:
    """The counts of one process, in a file that is named after everything that the counts depend on.

    Args:
        settings: the network's file, the data, the time steps ...: plain values. Another value of any of
            them is another file, so that counts of different evaluations never mix.
        folder: of the file; by default one in torch.hub's cache.
        seconds: between two writes; the first is made after as many.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None = None, seconds: float = SECONDS) -> None:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        folder = folder or Path(torch.hub.get_dir(), "snnzoo", "partial")
        self.path, self.seconds = folder / f"{key}.safetensors", seconds
        self._written = time.monotonic()

    def load(self) -> tuple[Tally, int] | None:
        """The counts, and the number of batches in them; None if there are none."""
        if not self.path.is_file():
            return None
        try:
            tensors, metadata = read_safetensors(self.path)
            values: dict[str, Any] = json.loads(metadata["counts"])
            batches = int(values.pop("batches"))
            values["activity"] = Activity(**values["activity"])
            return Tally(**{**tensors, **values}), batches
        except (SnnzooError, KeyError, TypeError, ValueError):
            self.delete()  # of another version, or damaged: start anew
            return None

    def save(self, tally: Tally, batches: int, *, now: bool = True) -> None:
        """Write the counts; unless `now`, only if the last time is long enough ago."""
        if not now and time.monotonic() - self._written < self.seconds:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "time_steps": tally.time_steps,
            "activity": tally.activity.to_dict(),
            "speeds": tally.speeds,
            "layer_errors": tally.layer_errors,
            "batches": batches,
        }
        tensors = {"ann_hits": tally.ann_hits, "hits": tally.hits, "confusion": tally.confusion}
        write_safetensors(self.path, tensors, {"format": FORMAT, "counts": json.dumps(values)})
        self._written = time.monotonic()

    def delete(self) -> None:
        """The evaluation is finished."""
        self.path.unlink(missing_ok=True)
