"""Spiking neurons, single-step and multi-step. The equations are in `snnzoo.codings`.

The classic neurons, for training: `IFNode`, `LIFNode`, `ParametricLIFNode`, with the names, defaults and numbers of
SpikingJelly 0.0.0.0.12. Those of converted networks are in `snnzoo.converted_node`.

Every neuron maps `[N, ...]` to `[N, ...]` (`step_mode="s"`) or `[T, N, ...]` to `[T, N, ...]`
(`step_mode="m"`), keeps its state until `functional.reset_net`, and computes in float32 when its
input is half precision.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo import ops, surrogate
from snnzoo.codings import IF, LIF, Coding
from snnzoo.codings.integrate_and_fire import charge_if, charge_lif, reset
from snnzoo.errors import UsageError
from snnzoo.ops.reference import channel_view
from snnzoo.threshold_node import ThresholdNode

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


BACKENDS = ("torch", "cupy", "triton")


def check_backend(backend: str) -> None:
    """Accept the name of an implementation of SpikingJelly's; which of ours runs depends on the device alone.

    Raises:
        ValueError: for another name.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}: whichever it is, the implementation for "
            f"the device runs (snnzoo.ops.use_backend chooses another)"
        )
    if backend != "torch":
        _say_what_runs(backend)


@functools.cache
def _say_what_runs(backend: str) -> None:
    warnings.warn(f"backend={backend!r}: snnzoo runs its own implementation for the device instead", stacklevel=5)


class BaseNode(ThresholdNode):
    """A classic spiking neuron: charge, fire at `v >= v_threshold`, reset.

    A subclass may replace `neuronal_charge`, `neuronal_fire` and `neuronal_reset`, which work on `self.v`: its steps
    then run one after the other, in plain PyTorch. A charge that has no other state is better given as `charge`.

    Args:
        v_threshold: scalar, or `[C]` for inputs `[N, C, ...]`; infinite for a neuron that only integrates, to read
            out its `v`. Any tensor that broadcasts over a step may be assigned later.
        v_reset: hard reset value; None for soft reset (subtract the threshold).
        surrogate_function: spike function, `surrogate.Sigmoid()` if None.
        detach_reset: keep the reset out of the gradient.
        step_mode: "s" or "m".
        backend: "torch", "cupy" or "triton", kept as an attribute: whichever it is, ours for the device runs.
        store_v_seq: keep what `v_seq` and `spike_seq` need, in multi-step mode.

    Raises:
        ValueError: if `v_threshold` is not positive, `backend` is unknown, or the state held does not fit the input.
    """

    v: float | Tensor
    spike_seq: Tensor | None
    stored_v_seq: Tensor | None
    x_seq: Tensor | None
    v_before: float | Tensor
    may_never_fire = True

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, step_mode)
        self.v_reset = None if v_reset is None else float(v_reset)
        self.surrogate_function = surrogate_function or surrogate.Sigmoid()
        self.detach_reset, self.backend, self.store_v_seq = detach_reset, backend, store_v_seq
        self.register_memory("v", self.v_reset or 0.0)
        for name in ("spike_seq", "stored_v_seq", "x_seq", "v_before"):
            self.register_memory(name, None)

    @property
    def backend(self) -> str:
        """What was asked for; ours for the device runs."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        check_backend(value)
        self._backend = value

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Return the membrane potential before firing, from `v [N, ...]` and the input `x [N, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} has neither a neuronal_charge nor a charge")

    def neuronal_charge(self, x: Tensor) -> None:
        """Let `self.v` take in the input `x [N, ...]`."""
        self.v = self.charge(self._potential(x), x)

    def neuronal_fire(self) -> Tensor:
        """Return the spikes of `self.v`, `[N, ...]`."""
        v = self.v
        assert isinstance(v, Tensor)
        return self.surrogate_function(v - self._threshold_of(v))

    def neuronal_reset(self, spike: Tensor) -> None:
        """Take `self.v` back where `spike [N, ...]` is 1."""
        v = self.v
        assert isinstance(v, Tensor)
        self.v = reset(v, spike, self._threshold_of(v), self._v_reset, self.detach_reset)

    def multi_step(self, x_seq: Tensor) -> Tensor:
        v_before = self.v
        if self.has_own_equations or not self._operator_takes_threshold(x_seq):
            spike_seq, v_seq = self._run(x_seq)
        else:
            spike_seq, v_seq = super().multi_step(x_seq), None
        if self.store_v_seq and self.step_mode == "m":
            self.spike_seq, self.stored_v_seq, self.x_seq, self.v_before = spike_seq, v_seq, x_seq, v_before
        return spike_seq

    @property
    def v_seq(self) -> Tensor | None:
        """The membrane potential after each step of the last call, `[T, N, ...]`; None if there was none.

        Where a faster implementation ran, it is computed now, from the input. It has a gradient.

        Raises:
            UsageError: without `store_v_seq`.
        """
        if not self.store_v_seq:
            raise UsageError(f"{type(self).__name__} keeps no v_seq: set its store_v_seq to True before the call")
        if self.stored_v_seq is None and self.x_seq is not None:
            v, self.v = self.v, self.v_before
            _, self.stored_v_seq = self._run(self.x_seq)
            self.v = v
        return self.stored_v_seq

    def _run(self, x_seq: Tensor) -> tuple[Tensor, Tensor]:
        """The spikes and the potentials after each step, by the three methods of a step, in plain PyTorch."""
        dtype = ops.state_dtype(x_seq.dtype)
        spikes, potentials = [], []
        for x in x_seq:
            x = x.to(dtype)
            self.v = self._potential(x)
            self.neuronal_charge(x)
            spike = self.neuronal_fire()
            self.neuronal_reset(spike)
            spikes.append(spike)
            potentials.append(torch.as_tensor(self.v))
        return torch.stack(spikes).to(x_seq.dtype), torch.stack(potentials)

    def _potential(self, x: Tensor) -> Tensor:
        """`self.v` for a step like `x`."""
        return self.v if isinstance(self.v, Tensor) else torch.full_like(x, self.v)

    def _threshold_of(self, v: Tensor) -> float | Tensor:
        theta = self.v_threshold
        per_channel = isinstance(theta, Tensor) and theta.ndim == 1 and v.ndim > 1
        return channel_view(theta, v) if per_channel else theta

    def _operator_takes_threshold(self, x_seq: Tensor) -> bool:
        theta = self.v_threshold
        if not isinstance(theta, Tensor):
            return True
        return not theta.requires_grad if theta.ndim == 0 else theta.ndim == 1 and x_seq.ndim > 2

    @property
    def has_own_equations(self) -> bool:
        """Whether a subclass, or the user, has replaced a method of a step."""
        kind, own = type(self), self.__dict__
        return (
            kind.neuronal_charge is not BaseNode.neuronal_charge
            or kind.neuronal_fire is not BaseNode.neuronal_fire
            or kind.neuronal_reset is not BaseNode.neuronal_reset
            or "neuronal_charge" in own
            or "neuronal_fire" in own
            or "neuronal_reset" in own
        )

    @property
    def _v_reset(self) -> float | None:
        """Of neurons that never fire, one that multiplies no infinity by the spikes, 0."""
        if self.v_reset is None and not isinstance(self.v_threshold, Tensor) and math.isinf(self.v_threshold):
            return 0.0
        return self.v_reset

    def _held_state(self, coding: Coding, x_seq: Tensor) -> tuple[Tensor, ...] | None:
        v, like = self.v, x_seq[0]
        if not isinstance(v, Tensor):
            if v == self._memories["v"] == (self.v_reset or 0.0):
                return None
            return (torch.full_like(like, v, dtype=ops.state_dtype(x_seq.dtype)),)
        if v.ndim == 0:
            return (v.expand(like.shape),)
        return super()._held_state(coding, x_seq)

    @property
    def coding(self) -> Coding:
        return IF(**self._settings(None))

    def _settings(self, known: Callable[..., Tensor] | None) -> dict[str, Any]:
        """Of `codings.IF`; a subclass that replaces the `known` charge, which the operator has, brings its own."""
        if self.has_own_equations:
            raise UsageError(
                f"{type(self).__name__} replaces a step of the classic neuron, which only the network itself can run: "
                f"write a charge(v, x) without other state instead, or do without its fast form and export"
            )
        return {
            "v_reset": self._v_reset,
            "surrogate": self.surrogate_function,
            "detach_reset": self.detach_reset,
            "charge": None if type(self).charge is known else self.charge,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, v_reset={self.v_reset}, detach_reset={self.detach_reset}"


class IFNode(BaseNode):
    """Integrate-and-fire: h[t] = v[t-1] + x[t].

    Args:
        cupy_fp32_inference: taken for the sake of classic code, and kept as an attribute.

    The others are those of `BaseNode`.
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
        *,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        self.cupy_fp32_inference = _flag("cupy_fp32_inference", cupy_fp32_inference)

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return charge_if(v, x)

    @property
    def coding(self) -> Coding:
        return IF(**self._settings(IFNode.charge))


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}: give step_mode and backend by their names")
    return value


class LIFNode(BaseNode):
    """Leaky integrate-and-fire, at rest at `v_reset` (0 if None).

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau     (decay_input)
    h[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]       (not decay_input)

    Args:
        tau: membrane time constant in steps, > 1.
        decay_input: whether the input decays with the membrane.
        cupy_fp32_inference: as in `IFNode`.

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
        cupy_fp32_inference: bool = False,
        *,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        if not tau > 1:
            raise ValueError(f"tau must be greater than 1, got {tau}")
        self.tau = float(tau)
        self.decay_input = decay_input
        self.cupy_fp32_inference = _flag("cupy_fp32_inference", cupy_fp32_inference)

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return charge_lif(v, x, reciprocal_tau=1 / self.tau, v_reset=self.v_reset, decay_input=self.decay_input)

    @property
    def coding(self) -> Coding:
        settings = self._settings(LIFNode.charge)
        return LIF(**settings, reciprocal_tau=1 / self.tau, decay_input=self.decay_input)

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
        *,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        if not init_tau > 1:
            raise ValueError(f"init_tau must be greater than 1, got {init_tau}")
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1)))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        reciprocal_tau = self.w.sigmoid().to(v.dtype)
        return charge_lif(v, x, reciprocal_tau=reciprocal_tau, v_reset=self.v_reset, decay_input=self.decay_input)

    @property
    def coding(self) -> Coding:
        settings = self._settings(ParametricLIFNode.charge)
        return LIF(**settings, reciprocal_tau=self.w.sigmoid(), decay_input=self.decay_input)

    def extra_repr(self) -> str:
        return f"tau={1 / self.w.sigmoid().item():.4g}, decay_input={self.decay_input}, {super().extra_repr()}"


class MultiStepIFNode(IFNode):
    """`IFNode(step_mode="m", store_v_seq=True)`."""

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        backend: str = "torch",
        *,
        step_mode: str = "m",
        store_v_seq: bool = True,
    ) -> None:
        super().__init__(
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )


class MultiStepLIFNode(LIFNode):
    """`LIFNode(step_mode="m", store_v_seq=True)`."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        backend: str = "torch",
        *,
        step_mode: str = "m",
        store_v_seq: bool = True,
    ) -> None:
        super().__init__(
            tau,
            decay_input,
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )


class MultiStepParametricLIFNode(ParametricLIFNode):
    """`ParametricLIFNode(step_mode="m", store_v_seq=True)`."""

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        backend: str = "torch",
        *,
        step_mode: str = "m",
        store_v_seq: bool = True,
    ) -> None:
        super().__init__(
            init_tau,
            decay_input,
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
