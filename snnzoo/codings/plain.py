"""Rate coding by integrate-and-fire neurons as other tools have them, which start from zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnzoo.codings.activations import Activation
from snnzoo.codings.base import Coding, Step, register
from snnzoo.errors import UsageError

__all__ = ["Plain"]


@register
@dataclass(frozen=True)
class Plain(Coding):
    """Integrate-and-fire from v = 0, in the variants that libraries and chips have; the mean of spikes decodes.

    v += x;  s = min(floor(v / theta), most) if v >= theta else 0;  v -= s * theta

    Half a threshold, which rate coding starts from, is spread over all steps as a bias instead (`head_start`).

    Args:
        to_zero: after a spike v is 0, instead of the threshold less.
        most: spikes of one neuron in one step.
        clipped: v is never below -theta.
        late: a step's spikes are those of v before its input is added.

    Raises:
        UsageError: if `most` is out of range, or more than one spike is to reset to zero.
    """

    to_zero: bool = False
    most: int = 1
    clipped: bool = False
    late: bool = False

    name = "plain"
    state = ("v",)
    signed = False
    differentiable = False

    def __post_init__(self) -> None:
        if not 1 <= self.most <= 127:
            raise UsageError(f"most must be from 1 to 127, got {self.most}")
        if self.to_zero and self.most > 1:
            raise UsageError("neurons that reset to zero send at most one spike a step")

    def step(self, x: Tensor, state: tuple[Tensor, ...], theta: Tensor, t: int, activation: Activation) -> Step:
        (v,) = state
        h = v if self.late else v + x
        if self.most == 1:
            s = (h >= theta).to(h.dtype)
        else:
            s = torch.div(h, theta, rounding_mode="trunc").clamp(0, self.most)
        value = s * theta
        v = torch.where(s > 0, torch.zeros_like(h), h) if self.to_zero else h - value
        if self.late:
            v = v + x
        if self.clipped:
            v = torch.maximum(v, -theta)
        return s, value, (v,)

    @property
    def head_start(self) -> float:
        return 0.0 if self.to_zero else 0.5

    @property
    def default_time_steps(self) -> int:
        return 64

    @property
    def spikes(self) -> str:
        return "binary spikes" if self.most == 1 else f"up to {self.most} binary spikes at once"

    @property
    def event_bits(self) -> int:
        return self.most.bit_length()

    @property
    def largest_unit(self) -> int:
        return self.most
