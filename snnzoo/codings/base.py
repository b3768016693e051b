"""What a coding is: how a neuron sends an activation, as settings, facts and one step's equation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnzoo.codings.activations import RELU, Activation, Clamp
from snnzoo.codings.registered import Registered, from_dict, registrar
from snnzoo.errors import UsageError

__all__ = ["CODINGS", "Coding", "Step", "coding_from_dict", "register"]

Step = tuple[Tensor, Tensor, tuple[Tensor, ...]]  # whole units, what they are worth, the state after the step


@dataclass(frozen=True)
class Coding(Registered):
    """Base class: subclass it as a frozen dataclass whose fields are its settings, and write `step`.

    What differs from channel to channel (threshold, bias) or from neuron to neuron (activation) is no setting.

    Facts:
        name: in files and on the command line.
        state: names of the tensors that are kept from step to step, each of the shape of a step.
        signed: whether an output may be negative.
        readout: how outputs over time decode: their "mean" or their "sum".
        bias_once: whether signals are differences: biases then enter at t = 0 only, and the first state is the sum
            of all inputs, from 0.
        differentiable: whether autograd is to see its steps.
        any_activation: whether it can stand for any scalar function, not the relu and its caps alone.
        extrapolates: whether its last change foretells those to come, so that a readout may add some of it.
        head_start: what a neuron is to have been given, in thresholds, by the last step: a part of its bias.
        default_time_steps: T that a network is made for unless told otherwise.
        spikes: what is sent, in words.
        event_bits: of an event's size, its sign not counted: 1 for binary and ternary spikes.
        largest_unit: the largest output, in whole units.
    """

    state: ClassVar[tuple[str, ...]]
    signed: ClassVar[bool] = True
    readout: ClassVar[str] = "mean"
    bias_once: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    any_activation: ClassVar[bool] = False
    extrapolates: ClassVar[bool] = False

    def step(self, x: Tensor, state: tuple[Tensor, ...], theta: Tensor, t: int, activation: Activation) -> Step:
        """Return one step's output in whole units, what it is worth, and the state after it.

        Args:
            x: input `[N, ...]`, with all that is added to it, in float32 or float64.
            state: that before the step.
            theta: the threshold, in a shape that broadcasts.
            t: index of the step, from 0.
            activation: what the output stands for.
        """
        raise NotImplementedError

    def initial(self, theta: float | Tensor) -> float | Tensor:
        """Return the value of the first state before t = 0; the others are zero."""
        return 0.0

    @property
    def head_start(self) -> float:
        return 0.0

    @property
    def default_time_steps(self) -> int:
        return 16

    @property
    def spikes(self) -> str:
        return "spikes"

    @property
    def event_bits(self) -> int:
        return 1

    @property
    def largest_unit(self) -> int:
        return 1

    def spike_value(self, t: int, dtype: torch.dtype) -> float:
        """Return what a unit is worth at step t, in thresholds, rounded as `step` rounds it in `dtype`."""
        return 1.0

    def span(self, time_steps: int) -> float:
        """Return the largest activation that `time_steps` steps can represent, in thresholds."""
        return 1.0

    def activation_bits(self, time_steps: int) -> int:
        """Return how many bits number the values from 0 to the largest that `time_steps` steps can tell apart."""
        unit = self.spike_value(time_steps - 1, torch.float64)
        unit = unit / time_steps if self.readout == "mean" else unit
        return max(1, math.ceil(math.log2(1 + self.span(time_steps) / unit) - 1e-9))

    def decode(self, outputs: Tensor) -> Tensor:
        """Return what all of `outputs [T, ...]` mean, `[...]`."""
        return outputs.mean(0) if self.readout == "mean" else outputs.sum(0)

    def check_activation(self, activation: Activation) -> None:
        """Raise a UsageError unless this coding can stand for the activation."""
        relu_like = activation == RELU or (isinstance(activation, Clamp) and activation.minimum == 0)
        if not (relu_like or self.any_activation):
            raise UsageError(
                f"the coding {type(self).__name__} stands for the relu and its caps only, not for {activation}: "
                f"use --recipe delta, whose neurons follow any activation"
            )

    def check_int8(self) -> None:
        """Raise a ValueError unless every output, in whole units, fits an int8."""
        if self.largest_unit > 127:
            raise ValueError(f"int8 outputs hold at most 127 units, got {self.largest_unit} of {self}")


CODINGS: dict[str, type[Coding]] = {}
register = registrar(CODINGS)


def coding_from_dict(fields: Mapping[str, Any], source: str) -> Coding:
    """Return the inverse of `Coding.to_dict`.

    Raises:
        CheckpointError: for a coding that is not known, or settings out of range; `source` is what was read.
    """
    return from_dict(CODINGS, "coding", fields, source)
