"""What every neuron shares: the step mode, the state, and the threshold."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from snnzoo import ops
from snnzoo.base import MemoryModule
from snnzoo.codings import Coding


def _is_positive(value: float | Tensor) -> bool:
    """Every element; a tensor without data (meta device) is trusted."""
    return value > 0 if not isinstance(value, Tensor) else value.is_meta or bool((value > 0).all())


def _is_finite(value: float | Tensor) -> bool:
    return math.isfinite(value) if not isinstance(value, Tensor) else value.is_meta or bool(value.isfinite().all())


class ThresholdNode(MemoryModule):
    """What every neuron shares: both step modes through one `multi_step`, and the threshold.

    Args:
        v_threshold: scalar, or `[C]` (then a buffer, saved in the state_dict).
        step_mode: "s" or "m".
    """

    v_threshold: float | Tensor
    may_never_fire = False  # whether v_threshold may be infinite

    def __init__(self, v_threshold: float | Tensor = 1.0, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self._calls_anew, self._has_gone_on = 0, False  # since the last call that went on, and whether one ever did
        self.register_per_channel("v_threshold", v_threshold)
        if not _is_positive(self.v_threshold) or not (self.may_never_fire or _is_finite(self.v_threshold)):
            finite = "" if self.may_never_fire else " and finite"
            raise ValueError(f"v_threshold must be positive{finite}, got {v_threshold}")

    def register_per_channel(self, name: str, value: float | Tensor) -> None:
        """A scalar is a plain attribute; a per-channel `[C]` tensor is a buffer."""
        if isinstance(value, Tensor) and value.ndim > 0:
            if value.ndim != 1:
                raise ValueError(f"{name} must be a scalar or of shape [C], got shape {list(value.shape)}")
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, float(value))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, ...] -> [N, ...]`, or `[T, N, ...] -> [T, N, ...]` in multi-step mode.

        Within a backward pass, as gradient checkpointing calls it, what it gave before: from the reset state, and
        without a change to the state held.

        Raises:
            RuntimeError: then, if the call that is repeated went on from the state of an earlier one.
        """
        if torch.compiler.is_compiling():
            return self._forward(x)
        if torch._C._current_graph_task_id() != -1:
            return self._repeat(x)
        starts_anew = all(not isinstance(v, Tensor) and v == self._memories[k] for k, v in self.named_memories())
        self._calls_anew = self._calls_anew + 1 if starts_anew else 0
        self._has_gone_on |= not starts_anew
        return self._forward(x)

    def _repeat(self, x: Tensor) -> Tensor:
        """The last of the calls that were not repeated yet: a backward pass takes them in reverse."""
        if self._has_gone_on and self._calls_anew == 0:
            raise RuntimeError(
                f"gradient checkpointing calls {type(self).__name__} again, whose state of then is lost: "
                'give it all time steps in one call (step_mode="m"), and call snnzoo.functional.reset_net(net) before'
            )
        self._calls_anew -= 1
        held = dict(self.named_memories())
        self.reset()
        try:
            return self._forward(x)
        finally:
            for name, value in held.items():
                setattr(self, name, value)

    def _forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return self.multi_step(x.unsqueeze(0))[0]
        if x.ndim < 2:
            raise ValueError(
                f"{type(self).__name__} is in multi-step mode and needs x_seq of shape [T, N, ...], got {list(x.shape)}"
            )
        return self.multi_step(x)

    @property
    def coding(self) -> Coding:
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

    def _held_state(self, coding: Coding, x_seq: Tensor) -> tuple[Tensor, ...] | None:
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
