"""Spiking neurons, single-step and multi-step. The equations are in `snnzoo.ops.reference`.

The classic neurons, for training: `IFNode`, `LIFNode`, `ParametricLIFNode`. Those of converted networks are
in `snnzoo.conversion.neurons`.

Every neuron maps `[N, ...]` to `[N, ...]` (`step_mode="s"`) or `[T, N, ...]` to `[T, N, ...]`
(`step_mode="m"`), keeps its state until `functional.reset_net`, and computes in float32 when its
input is half precision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo import ops, surrogate
from snnzoo.base import MemoryModule
from snnzoo.ops import reference

__all__ = [
    "BaseNode",
    "IFNode",
    "LIFNode",
    "MultiStepIFNode",
    "MultiStepLIFNode",
    "MultiStepParametricLIFNode",
    "ParametricLIFNode",
    "ThresholdNode",
]


def _is_positive(value: float | Tensor) -> bool:
    """Positive and finite, every element; a tensor without data (meta device) is trusted."""
    if not isinstance(value, Tensor):
        return 0 < value < math.inf
    return value.is_meta or bool(((value > 0) & value.isfinite()).all())


class ThresholdNode(MemoryModule):
    """What every neuron shares: both step modes through one `multi_step`, and the threshold.

    Args:
        v_threshold: scalar, or `[C]` (then a buffer, saved in the state_dict).
        step_mode: "s" or "m".
    """

    v_threshold: float | Tensor

    def __init__(self, v_threshold: float | Tensor = 1.0, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self.register_per_channel("v_threshold", v_threshold)
        if not _is_positive(self.v_threshold):
            raise ValueError(f"v_threshold must be positive and finite, got {v_threshold}")

    def register_per_channel(self, name: str, value: float | Tensor) -> None:
        """A scalar is a plain attribute; a per-channel `[C]` tensor is a buffer."""
        if isinstance(value, Tensor) and value.ndim > 0:
            if value.ndim != 1:
                raise ValueError(f"{name} must be a scalar or of shape [C], got shape {list(value.shape)}")
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, float(value))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, ...] -> [N, ...]`, or `[T, N, ...] -> [T, N, ...]` in multi-step mode."""
        if self.step_mode == "s":
            return self.multi_step(x.unsqueeze(0))[0]
        if x.ndim < 2:
            raise ValueError(
                f"{type(self).__name__} is in multi-step mode and needs x_seq of shape [T, N, ...], got {list(x.shape)}"
            )
        return self.multi_step(x)

    @property
    def coding(self) -> ops.Coding:
        """What the neuron does, for `ops.multi_step_neuron`."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Those of `ops.multi_step_neuron` beside the input, the coding and the state."""
        return {"v_threshold": self.v_threshold}

    def multi_step(self, x_seq: Tensor) -> Tensor:
        """`x_seq [T, N, ...] -> [T, N, ...]`, starting from the state held and leaving the new one."""
        coding = self.coding
        result = ops.multi_step_neuron(x_seq, coding, state=self._held_state(coding, x_seq), **self.arguments())
        for name, part in zip(coding.state, result.state, strict=True):
            setattr(self, name, part)
        assert result.sequence is not None
        return result.sequence

    def _held_state(self, coding: ops.Coding, x_seq: Tensor) -> tuple[Tensor, ...] | None:
        """The state of an earlier call, None after a reset."""
        held = tuple(getattr(self, name) for name in coding.state)
        if not all(isinstance(part, Tensor) for part in held):
            return None
        for name in coding.state:
            self.require_shape(name, x_seq.shape[1:])
        return held

    def extra_repr(self) -> str:
        threshold = self.v_threshold
        shown = f"[{threshold.numel()}]" if isinstance(threshold, Tensor) else threshold
        return f"v_threshold={shown}, step_mode={self.step_mode!r}"

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        """Weights of an ANN have no neuron parameters: ours then keep their initial values."""
        found: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, found, *rest)
        unexpected = rest[0]  # older libraries saved the surrogate's slope, which is no weight
        unexpected[:] = [key for key in unexpected if not key.startswith(prefix) or "surrogate_function." not in key]
        learnable = {prefix + name for name, _ in self.named_parameters(recurse=False)}
        missing.extend(key for key in found if key not in learnable)
        if learnable.intersection(found):
            warnings.warn(
                f"{type(self).__name__}: neuron parameters that the checkpoint lacks keep their initial values",
                stacklevel=2,
            )


class BaseNode(ThresholdNode):
    """A classic spiking neuron: charge, fire at `v >= v_threshold`, reset.

    Args:
        v_threshold: scalar, or `[C]` for inputs `[N, C, ...]`.
        v_reset: hard reset value; None for soft reset (subtract the threshold).
        surrogate_function: spike function, `surrogate.ATan()` if None.
        detach_reset: keep the reset out of the gradient.
        step_mode: "s" or "m".

    Raises:
        ValueError: if `v_threshold` is not positive, or the state held does not fit the input.
    """

    v: float | Tensor

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
    ) -> None:
        super().__init__(v_threshold, step_mode)
        self.v_reset = None if v_reset is None else float(v_reset)
        self.surrogate_function = surrogate_function or surrogate.ATan()
        self.detach_reset = detach_reset
        self.register_memory("v", self.v_reset or 0.0)

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The membrane potential before firing, from `v [N, ...]` and the input `x [N, ...]`."""
        raise NotImplementedError

    @property
    def coding(self) -> ops.Coding:
        return ops.IF(**self._settings(BaseNode.charge))

    def _settings(self, known: Callable[..., Tensor]) -> dict[str, Any]:
        """Of `ops.IF`; a subclass that replaces the `known` charge, which the operator has, brings its own."""
        return {
            "v_reset": self.v_reset,
            "surrogate": self.surrogate_function,
            "detach_reset": self.detach_reset,
            "charge": None if type(self).charge is known else self.charge,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, v_reset={self.v_reset}, detach_reset={self.detach_reset}"


class IFNode(BaseNode):
    """Integrate-and-fire: h[t] = v[t-1] + x[t]. Arguments as `BaseNode`."""

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return reference.charge_if(v, x)

    @property
    def coding(self) -> ops.Coding:
        return ops.IF(**self._settings(IFNode.charge))


class LIFNode(BaseNode):
    """Leaky integrate-and-fire, at rest at `v_reset` (0 if None).

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau     (decay_input)
    h[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]       (not decay_input)

    Args:
        tau: membrane time constant in steps, > 1.
        decay_input: whether the input decays with the membrane.

    The others are those of `BaseNode`.

    Raises:
        ValueError: if `tau` is not greater than 1.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode)
        if not tau > 1:
            raise ValueError(f"tau must be greater than 1, got {tau}")
        self.tau = float(tau)
        self.decay_input = decay_input

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return reference.charge_lif(
            v, x, reciprocal_tau=1 / self.tau, v_reset=self.v_reset, decay_input=self.decay_input
        )

    @property
    def coding(self) -> ops.Coding:
        settings = self._settings(LIFNode.charge)
        return ops.LIF(**settings, reciprocal_tau=1 / self.tau, decay_input=self.decay_input)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class ParametricLIFNode(BaseNode):
    """LIF with a learnable time constant, 1/tau = sigmoid(w) (Fang et al. 2021, arXiv 2007.05785).

    Args:
        init_tau: initial time constant in steps, > 1.

    The others are those of `LIFNode`. `w` is a scalar parameter; weights without it load strictly
    and leave it as it is.

    Raises:
        ValueError: if `init_tau` is not greater than 1.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode)
        if not init_tau > 1:
            raise ValueError(f"init_tau must be greater than 1, got {init_tau}")
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1)))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        reciprocal_tau = self.w.sigmoid().to(v.dtype)
        return reference.charge_lif(
            v, x, reciprocal_tau=reciprocal_tau, v_reset=self.v_reset, decay_input=self.decay_input
        )

    @property
    def coding(self) -> ops.Coding:
        settings = self._settings(ParametricLIFNode.charge)
        return ops.LIF(**settings, reciprocal_tau=self.w.sigmoid(), decay_input=self.decay_input)

    def extra_repr(self) -> str:
        return f"tau={1 / self.w.sigmoid().item():.4g}, decay_input={self.decay_input}, {super().extra_repr()}"


class MultiStepIFNode(IFNode):
    """`IFNode(step_mode="m")`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"step_mode": "m", **kwargs})


class MultiStepLIFNode(LIFNode):
    """`LIFNode(step_mode="m")`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"step_mode": "m", **kwargs})


class MultiStepParametricLIFNode(ParametricLIFNode):
    """`ParametricLIFNode(step_mode="m")`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"step_mode": "m", **kwargs})
