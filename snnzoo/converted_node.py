"""The neuron of converted networks: any coding, with parameters of its own for each channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnzoo.codings import RELU, Activation, Coding
from snnzoo.codings.activations import Clamp
from snnzoo.threshold_node import ThresholdNode

__all__ = ["ConvertedNode"]


class ConvertedNode(ThresholdNode):
    """A neuron that sends an activation in a coding; what it sends is scaled by its threshold.

    So per-channel thresholds need no rescaled weights, and the identity path of a residual block no synapse.

    Args:
        coding: how it sends; the names of its state are attributes.
        v_threshold: theta, scalar or `[C]`.
        bias: added to the input, scalar or `[C]`: at every step, or at t = 0 only where the coding has `bias_once`.
        activation: what its outputs stand for.
        absolute: True for the neuron that encodes the network's input and sees the signal itself, not its changes.
        step_mode: "s" or "m".

    Raises:
        ValueError: if `v_threshold` is not positive, or above a cap that the coding cannot keep to otherwise; or the
            state held does not fit the input.
        UsageError: if the coding cannot stand for the activation.
    """

    t: int
    bias: float | Tensor

    def __init__(
        self,
        coding: Coding,
        v_threshold: float | Tensor = 1.0,
        bias: float | Tensor = 0.0,
        activation: Activation = RELU,
        absolute: bool = False,
        step_mode: str = "s",
    ) -> None:
        super().__init__(v_threshold, step_mode)
        coding.check_activation(activation)
        if isinstance(activation, Clamp) and not coding.any_activation:
            _require_below(self.v_threshold, activation.maximum)
        self._coding, self.activation, self.absolute = coding, activation, absolute
        self.register_per_channel("bias", bias)
        for name in coding.state:
            self.register_memory(name, None)
        self.register_memory("t", 0)

    @property
    def coding(self) -> Coding:
        return self._coding

    def arguments(self) -> dict[str, Any]:
        return {
            **super().arguments(),
            "bias": self.bias,
            "activation": self.activation,
            "absolute": self.absolute,
            "scaled": True,
            "t": self.t,
        }

    def multi_step(self, x_seq: Tensor) -> Tensor:
        outputs = super().multi_step(x_seq)
        self.t += len(x_seq)
        return outputs

    def extra_repr(self) -> str:
        about = [str(self.coding)]
        if self.activation != RELU:
            about.append(f"activation={self.activation}")
        if self.absolute:
            about.append("absolute")
        return ", ".join([*about, super().extra_repr()])


def _require_below(v_threshold: float | Tensor, cap: float) -> None:
    """Raise a ValueError if a threshold is above the cap; a tensor without data (meta device) is trusted."""
    values = v_threshold if isinstance(v_threshold, Tensor) else Tensor([v_threshold])
    if not values.is_meta and bool((values > cap).any()):
        raise ValueError(f"v_threshold must not be above the activation's cap of {cap:g}, got {values.max().item():g}")
