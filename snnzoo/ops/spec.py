"""What a neuron does, as data: the codings of the multi-step operator and their settings.

Parameters that may differ from channel to channel (`v_threshold`, `bias`, `offset`) are not part of it:
they are arguments of `ops.multi_step_neuron`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from snnzoo.surrogate import ATan

__all__ = [
    "IF",
    "LIF",
    "Arguments",
    "Coding",
    "Delta",
    "Differential",
    "Gradients",
    "NeuronOutput",
    "Signed",
    "state_dtype",
]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Membranes are float32 or better: half precision loses small currents."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Coding:
    """Base class.

    `state` names the tensors that are kept from step to step, each of the shape of a step; `signed` tells whether
    an output may be negative.
    """

    state: ClassVar[tuple[str, ...]]
    signed: ClassVar[bool] = True

    @property
    def largest_unit(self) -> int:
        """The largest output, in whole units."""
        return 1

    def check_int8(self) -> None:
        """Raise a ValueError unless every output, in whole units, fits an int8."""
        if self.largest_unit > 127:
            raise ValueError(f"int8 outputs hold at most 127 units, got {self.largest_unit} of {self}")


@dataclass(frozen=True)
class IF(Coding):
    """Integrate-and-fire with binary spikes (unit: 1, worth theta).

    Args:
        v_reset: hard reset value; None for soft reset (subtract the threshold).
        half_start: start from v = theta / 2 instead of v_reset (0 if None).
        surrogate: spike function of `v - theta`; its gradient is used in the backward pass.
        detach_reset: keep the reset out of the gradient.
        charge: `(v, x) -> h` of the user's own; None for the coding's equation.
    """

    v_reset: float | None = 0.0
    half_start: bool = False
    surrogate: Callable[[Tensor], Tensor] = field(default_factory=ATan)
    detach_reset: bool = False
    charge: Callable[[Tensor, Tensor], Tensor] | None = None

    state = ("v",)
    signed = False


@dataclass(frozen=True)
class LIF(IF):
    """Leaky integrate-and-fire, at rest at `v_reset` (0 if None).

    Args:
        reciprocal_tau: 1 / tau, a number or a 0-dim tensor (to be learned).
        decay_input: whether the input decays with the membrane.

    The others are those of `IF`.
    """

    reciprocal_tau: float | Tensor = 0.5
    decay_input: bool = True


@dataclass(frozen=True)
class Signed(Coding):
    """IF neuron that can take a spike back, from v = theta / 2 (units: -1, 0, 1, worth theta)."""

    state = ("v", "c")


@dataclass(frozen=True)
class Delta(Coding):
    """Graded spikes that refine an estimate of the relu (units: -K ... K, worth theta * gamma^t).

    Args:
        levels: K >= 1, the largest spike.
        gamma: ratio by which a level shrinks each step, in (0, 1].
        differential: False for the neuron that encodes the network's input and sees the signal itself.
    """

    levels: int = 3
    gamma: float = 0.5
    differential: bool = True

    state = ("m", "o")

    @property
    def largest_unit(self) -> int:
        return self.levels


@dataclass(frozen=True)
class Differential(Coding):
    """Multi-threshold spikes (units: plus or minus 2^(n-1-k), worth theta * 2^-(n-1)).

    Args:
        levels: n >= 1, the number of thresholds theta, theta/2, ..., theta * 2^-(n-1).
        differential: as in `Delta`.
    """

    levels: int = 8
    differential: bool = True

    state = ("m", "o")

    @property
    def largest_unit(self) -> int:
        return 1 << (self.levels - 1)


class NeuronOutput(NamedTuple):
    """Outputs `[T, N, ...]` and their sum over time `[N, ...]`, where asked for, and the state after them."""

    sequence: Tensor | None
    total: Tensor | None
    state: tuple[Tensor, ...]


class Gradients(NamedTuple):
    """Those of a `NeuronOutput` with one state tensor; None where an output was not used."""

    sequence: Tensor | None
    total: Tensor | None
    state: Tensor | None


@dataclass(frozen=True)
class Arguments:
    """Those of `ops.multi_step_neuron` beside `x_seq` and the coding, as implementations get them: checked."""

    v_threshold: float | Tensor
    bias: float | Tensor
    offset: float | Tensor
    residual: Tensor | None
    state: tuple[Tensor, ...] | None
    t: int
    output: str
    payload: bool
    out_dtype: torch.dtype
    keep_state: bool
    out: Tensor | None = None

    @property
    def sequence_payload(self) -> bool:
        """Whether the sequence carries what outputs are worth: an int8 holds units in any case."""
        return self.payload and self.out_dtype != torch.int8

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
        """Those that may be per channel."""
        return self.v_threshold, self.bias, self.offset
