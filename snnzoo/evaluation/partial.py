"""Counts of an evaluation that is not finished, kept in a file so that it can go on after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from snnzoo.checkpoints.output import atomic_output
from snnzoo.errors import SnnzooError
from snnzoo.evaluation.tally import Tally

FORMAT = "snnzoo-partial/4"
SECONDS = 30.0  # between two writes


class PartialCounts:
    """The counts of one process, in a file that is named after everything that the counts depend on.

    They are a convenience: where they cannot be kept, the evaluation goes on without.

    Args:
        settings: the network's file, the data, the time steps ...: plain values. Another value of any of
            them is another file, so that counts of different evaluations never mix.
        folder: of the file; by default one in torch.hub's cache.
        seconds: between two writes; the first is made after as many.
        notify: gets one line if the counts cannot be kept.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path | None = None,
        seconds: float = SECONDS,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        key = _sha256(json.dumps({"format": FORMAT, **settings}, sort_keys=True))[:32]
        folder = folder or Path(torch.hub.get_dir(), "snnzoo", "partial")
        self.path, self.seconds, self.notify = folder / f"{key}.json", seconds, notify
        self._written = time.monotonic()
        self._kept = True

    def load(self) -> tuple[Tally, int] | None:
        """Return the counts, and the number of batches in them; None if there are none, or they are damaged."""
        try:
            checksum, _, text = self.path.read_text("utf-8").partition("\n")
            if checksum != _sha256(text):
                return None
            counts = json.loads(text)
            return Tally.from_dict(counts["tally"]), counts["batches"]
        except (OSError, UnicodeDecodeError):
            return None

    def save(self, tally: Tally, batches: int, *, now: bool = True) -> None:
        """Write the counts; unless `now`, only if the last time is long enough ago."""
        if not self._kept or (not now and time.monotonic() - self._written < self.seconds):
            return
        text = json.dumps({"tally": tally.to_dict(), "batches": batches})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_output(self.path) as temporary:
                temporary.write_text(f"{_sha256(text)}\n{text}", "utf-8")
        except (SnnzooError, OSError) as error:
            self._kept = False
            self.notify(f"cannot keep what is counted so far, so that --resume will not find it: {error}")
        self._written = time.monotonic()

    def delete(self) -> None:
        """Delete the counts: the evaluation is finished, and its results are where they belong."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
