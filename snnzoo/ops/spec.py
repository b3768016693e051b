"""What implementations of the multi-step operator are given, and give back."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnzoo.codings import RELU, Activation

__all__ = ["Arguments", "Gradients", "Memo", "NeuronOutput", "count_events", "select", "state_dtype"]

MOST_KEPT = 16  # in a `Memo`: steps and shapes of input
MOST_THRESHOLDS = 100  # of `Differential`: powers of two that are normal numbers in float32


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return that of a membrane, float32 or better: half precision loses small currents."""
    return torch.promote_types(dtype, torch.float32)


class Memo(dict[Hashable, Any]):
    """What an implementation keeps from call to call of one neuron. It points into memory, so copies begin empty."""

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what was made for this key, now or before."""
        if key not in self:
            if len(self) >= MOST_KEPT:
                self.clear()
            self[key] = make()
        return self[key]

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


class NeuronOutput(NamedTuple):
    """Outputs `[T, N, C, ...]` and their sum over time `[N, C, ...]`, where asked for, and the state after them.

    `events`: where asked for, how many outputs are not 0 at each step and position, `[T, ...]`, int64.
    """

    sequence: Tensor | None
    total: Tensor | None
    state: tuple[Tensor, ...]
    events: Tensor | None = None


def count_events(x_seq: Tensor) -> Tensor:
    """Return how many values of `[T, N, C, ...]` are not 0 at each step and position, `[T, ...]`, int64.

    Memory may be in any order: nothing but a mask is made of it.
    """
    return (x_seq != 0).sum((1, 2), dtype=torch.int32).long()  # a sum of bools in int64 takes several times as long


def select(x: Tensor, chosen: Tensor) -> Tensor:
    """Return some of `x [N, ...]`, in the memory format that it has."""
    kept = torch.empty_like(x[: len(chosen)])  # of the format itself: index_select would make it contiguous
    return torch.index_select(x, 0, chosen, out=kept)


class Gradients(NamedTuple):
    """Those of a `NeuronOutput` with one state tensor; None where an output was not used."""

    sequence: Tensor | None
    total: Tensor | None
    state: Tensor | None


@dataclass(slots=True)  # not frozen: that takes as long to make as a small layer takes to run
class Arguments:
    """Those of `ops.multi_step_neuron` beside `x_seq` and the coding, as implementations get them: checked.

    Nobody changes them: `dataclasses.replace` makes others.
    """

    v_threshold: float | Tensor
    bias: float | Tensor
    residual: Tensor | None
    state: tuple[Tensor, ...] | None
    t: int
    output: str
    scaled: bool
    out_dtype: torch.dtype
    keep_state: bool
    activation: Activation = field(default_factory=lambda: RELU)  # older torch.compile knows no object as a default
    absolute: bool = False
    out: Tensor | None = None
    counts_events: bool = False
    reuse_state: bool = False
    memo: Memo | None = None
    rows: Tensor | None = None

    def of_rows(self) -> Arguments:
        """Return the same with the state of its images alone."""
        if self.rows is None or self.state is None:
            return self
        return replace(self, state=tuple(select(part, self.rows) for part in self.state), rows=None)

    @property
    def sequence_scaled(self) -> bool:
        """Whether the sequence carries what outputs are worth: an int8 holds whole units in any case."""
        return self.scaled and self.out_dtype != torch.int8

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        """Those that may be per channel."""
        return self.v_threshold, self.bias
