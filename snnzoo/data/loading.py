"""Batches of a data set, read ahead while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from snnzoo.errors import SnnzooError, UnreadableSample

BATCHES_AHEAD = 2
MAX_LEFT_OUT = 50  # samples that cannot be read, before something else must be wrong


class LeftOut:
    """Counts and names the samples that cannot be read, as they are left out.

    Args:
        notify: called with a line for each.
        names: of those left out before.

    Raises:
        SnnzooError: when called with one too many.
    """

    def __init__(self, notify: Callable[[str], None], names: Iterable[str] = ()) -> None:
        self.notify, self.names = notify, list(names)

    def __call__(self, error: UnreadableSample) -> None:
        self.names.append(str(error))
        self.notify(f"left out: {error}")
        if len(self.names) > MAX_LEFT_OUT:
            raise SnnzooError(f"more than {MAX_LEFT_OUT} images cannot be read; the last one is {error}")

    def require_some(self, read: int) -> None:
        """Raise a SnnzooError if samples were left out, and none were `read`."""
        if self.names and not read:
            raise SnnzooError(f"none of {len(self.names)} images can be read; the first one is {self.names[0]}")


def batches(
    data: Dataset[tuple[Tensor, int]],
    batch_size: int,
    workers: int = 1,
    chosen: Iterable[int] | None = None,
    *,
    pin_memory: bool = False,
    leave_out: Callable[[UnreadableSample], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images `[N, C, H, W]` and labels `[N]`, in the order of `data`; the last batch may be smaller.

    Args:
        workers: threads that read. With more than one, `data` must be safe to read from several.
        chosen: which batches, by their places among all; all if None.
        leave_out: called for each sample that cannot be read, when its batch is due, which then is without it.
        pin_memory: copy to page-locked memory, from which a GPU copies while it computes.

    Raises:
        whatever reading a sample raises, when its batch is due; UnreadableSample only without `leave_out`.
    """
    total = len(data)  # type: ignore[arg-type]
    chosen = range(-(-total // batch_size)) if chosen is None else chosen
    starts = iter([place * batch_size for place in chosen])
    pending: deque[list[Future[tuple[Tensor, int]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="reads images") as pool:

        def read_ahead() -> None:
            start = next(starts, None)
            if start is not None:
                indices = range(start, min(start + batch_size, total))
                pending.append([pool.submit(data.__getitem__, i) for i in indices])

        try:
            for _ in range(1 + BATCHES_AHEAD):
                read_ahead()
            while pending:
                samples = []
                for future in pending.popleft():
                    try:
                        samples.append(future.result())
                    except UnreadableSample as error:
                        if leave_out is None:
                            raise
                        leave_out(error)
                read_ahead()
                images, labels = default_collate(samples) if samples else (torch.empty(0), torch.empty(0))
                yield (images.pin_memory() if pin_memory else images), labels
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an error, or a caller that has had enough
