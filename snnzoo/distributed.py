"""One job in several processes, as `torchrun` starts them.

Each process takes every n-th batch, so that batches, and with them all results, are those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

V = TypeVar("V")


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this one is; `local_rank` counts those of this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Rank:
        """As torchrun says it; the only process, if there is no torchrun."""
        rank, world_size, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES.items())
        return cls(rank, world_size, local_rank)

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def takes(self, batch: int) -> bool:
        """Return whether this process runs the batch of this number, from 0."""
        return batch % self.world_size == self.rank

    def gather(self, value: V) -> list[V]:
        """Return what all processes have, by their ranks, in each of them. Tensors are to be on the CPU."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def in_order(self, found: Mapping[int, V]) -> list[V]:
        """Return what all processes found of their batches, in the order of the batches' numbers, in each of them."""
        of_all = {number: value for part in self.gather(dict(found)) for number, value in part.items()}
        return [of_all[number] for number in sorted(of_all)]

    def first_says(self, value: bool) -> bool:
        """Return what `value` is in the first process, in each of them."""
        if self.world_size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


ALONE = Rank()
_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@contextmanager
def joined(rank: Rank) -> Iterator[None]:
    """Connect the processes while the context is entered. Values are exchanged on the CPU, with gloo."""
    if rank.world_size == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
