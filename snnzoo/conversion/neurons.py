"""The neurons of converted networks. Their equations are in `snnzoo.ops.reference`.

Outputs carry their payload: a spike of threshold theta is worth theta, so that per-channel thresholds
need no rescaled weights, and the identity path of a residual block no synapse.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnzoo import ops
from snnzoo.neuron import IFNode, ThresholdNode

__all__ = ["DeltaNode", "DifferentialNode", "RateNode", "SignedNode"]


class RateNode(IFNode):
    """IF neuron of a rate-coded conversion: soft reset, v = theta/2 at first, a spike is worth theta.

    Starting at half the threshold makes the expected conversion error zero (Bu et al. 2022,
    arXiv 2303.04347). The mean of the outputs over time decodes the ANN's activation.

    Args:
        v_threshold: theta, scalar or `[C]`.
        bias: added to the input at every step, scalar or `[C]`.
        step_mode: "s" or "m".
    """

    bias: float | Tensor

    def __init__(self, v_threshold: float | Tensor = 1.0, bias: float | Tensor = 0.0, step_mode: str = "s") -> None:
        super().__init__(v_threshold, v_reset=None, step_mode=step_mode)
        self.register_per_channel("bias", bias)

    @property
    def coding(self) -> ops.Coding:
        return ops.IF(half_start=True, **self._settings(IFNode.charge))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "bias": self.bias, "payload": True}


class SignedNode(ThresholdNode):
    """IF neuron that can take a spike back, v = theta/2 at first; a spike is worth theta or -theta.

    The mean of the outputs over time decodes the ANN's activation (after Wang et al. 2022, IJCAI,
    "Signed neuron with memory").

    Args:
        v_threshold: theta, scalar or `[C]`.
        bias: added to the input at every step, scalar or `[C]`.
        step_mode: "s" or "m".

    Raises:
        ValueError: if `v_threshold` is not positive, or the state held does not fit the input.
    """

    v: Tensor | None
    c: Tensor | None
    bias: float | Tensor

    def __init__(self, v_threshold: float | Tensor = 1.0, bias: float | Tensor = 0.0, step_mode: str = "s") -> None:
        super().__init__(v_threshold, step_mode)
        self.register_per_channel("bias", bias)
        self.register_memory("v", None)
        self.register_memory("c", None)

    @property
    def coding(self) -> ops.Coding:
        return ops.Signed()

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "bias": self.bias, "payload": True}


class _RefiningNode(ThresholdNode):
    """What neurons of differential codings share: their inputs and outputs sum up to what they mean.

    Args:
        v_threshold: size of one level, scalar or `[C]`.
        levels: of its spikes, >= 1.
        bias: added once, at t = 0, scalar or `[C]`.
        offset: what biases upstream add to every step, scalar or `[C]`; removed at t > 0.
        differential: False for the neuron that encodes the network's input, which sees the signal itself.
        step_mode: "s" or "m".

    Raises:
        ValueError: if an argument is out of range, or the state held does not fit the input.
    """

    m: float | Tensor
    o: float | Tensor
    t: int
    bias: float | Tensor
    offset: float | Tensor

    def __init__(
        self,
        v_threshold: float | Tensor,
        levels: int,
        bias: float | Tensor,
        offset: float | Tensor,
        differential: bool,
        step_mode: str,
    ) -> None:
        super().__init__(v_threshold, step_mode)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.levels, self.differential = levels, differential
        self.register_per_channel("bias", bias)
        self.register_per_channel("offset", offset)
        for name, initial in (("m", 0.0), ("o", 0.0), ("t", 0)):
            self.register_memory(name, initial)

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "bias": self.bias, "offset": self.offset, "payload": True, "t": self.t}

    def multi_step(self, x_seq: Tensor) -> Tensor:
        outputs = super().multi_step(x_seq)
        self.t += len(x_seq)
        return outputs

    def extra_repr(self) -> str:
        return f"levels={self.levels}, {super().extra_repr()}"


class DeltaNode(_RefiningNode):
    """Graded-spike neuron that refines an estimate of relu of its input, each step by a finer level.

    m += z[t];  q = v_threshold * gamma^t;  s = q * clip(round((max(m, 0) - o) / q), -K, K);  o += s

    Args:
        v_threshold: one level at t = 0, scalar or `[C]`.
        levels: K >= 1, the largest spike in levels. 1 is ternary; more are graded spikes.
        gamma: ratio by which a level shrinks each step, in (0, 1].
        bias: added once, at t = 0, scalar or `[C]`.
        offset: what biases upstream add to every step, scalar or `[C]`; removed at t > 0.
        differential: False for the neuron that encodes the network's input, which sees the signal itself.
        step_mode: "s" or "m".

    Raises:
        ValueError: if an argument is out of range, or the state held does not fit the input.
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        levels: int = 3,
        gamma: float = 0.5,
        bias: float | Tensor = 0.0,
        offset: float | Tensor = 0.0,
        differential: bool = True,
        step_mode: str = "s",
    ) -> None:
        super().__init__(v_threshold, levels, bias, offset, differential, step_mode)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        self.gamma = float(gamma)

    @property
    def coding(self) -> ops.Coding:
        return ops.Delta(self.levels, self.gamma, self.differential)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, {super().extra_repr()}"


class DifferentialNode(_RefiningNode):
    """Multi-threshold neuron on differential signals: a spike is worth plus or minus theta * 2^-k.

    Args:
        v_threshold: theta, the largest spike, scalar or `[C]`.
        levels: n >= 1, thresholds theta, theta/2, ..., theta * 2^-(n-1).

    The others are those of `DeltaNode` (Huang et al. 2025, ICML, arXiv 2503.00301).
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        levels: int = 8,
        bias: float | Tensor = 0.0,
        offset: float | Tensor = 0.0,
        differential: bool = True,
        step_mode: str = "s",
    ) -> None:
        super().__init__(v_threshold, levels, bias, offset, differential, step_mode)

    @property
    def coding(self) -> ops.Coding:
        return ops.Differential(self.levels, self.differential)
