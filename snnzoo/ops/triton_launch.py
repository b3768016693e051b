"""The Triton kernels, launched on tensors: same arguments and results as `cpu`."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from snnzoo.ops import reference
from snnzoo.ops import triton_kernels as kernels
from snnzoo.ops.memory import Layout, layout_of
from snnzoo.ops.spec import IF, LIF, Arguments, Coding, Delta, Differential, Gradients, NeuronOutput, Signed

INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)

MOST_STEPS = 16  # of a backward pass that stay in registers; with a learned 1/tau, half of them
WARPS = 4
WIDE_FROM = 2**31 - 2**16  # neurons of a step: beyond, offsets need 64 bits


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """`ops.multi_step_neuron`, outside autograd."""
    layout = layout_of(x_seq)
    result = layout.allocate(x_seq, coding, arguments)
    if layout.numel == 0:
        return result
    flat = _Flat(layout, x_seq, arguments)
    block = _block(layout, 8)
    gamma, power = 1.0, 1.0
    levels = 0.0
    if isinstance(coding, Delta):
        gamma, levels = coding.gamma, float(coding.levels)
        power = reference.powers(gamma, arguments.t, 1, torch.float32).item()
    elif isinstance(coding, Differential):
        levels = 2.0 ** (coding.levels - 1)
    sequence = None if result.sequence is None else layout.flatten(result.sequence)
    (before_0, before_1), (after_0, after_1) = flat.state, _two(result.state)
    with _on(x_seq):
        kernels.forward_kernel[(triton.cdiv(layout.numel, block),)](
            flat.x,
            flat.residual,
            sequence,
            _flat(layout, result.total),
            before_0,
            before_1,
            _flat(layout, after_0),
            _flat(layout, after_1),
            *flat.tensors,
            _tau_tensor(coding, x_seq),
            *flat.scalars,
            _tau(coding),
            _rest(coding),
            gamma,
            power,
            levels,
            layout.numel,
            layout.channels,
            layout.inner,
            flat.x.stride(0),
            0 if flat.residual is None else flat.residual.stride(0),
            0 if sequence is None else sequence.stride(0),
            len(x_seq),
            arguments.t,
            KIND=_kind(coding),
            HARD=isinstance(coding, IF) and coding.v_reset is not None,
            DECAY_INPUT=isinstance(coding, LIF) and coding.decay_input,
            HALF_START=isinstance(coding, Signed) or (isinstance(coding, IF) and coding.half_start),
            DIFFERENTIAL=reference.enters_once(coding),
            PAYLOAD=arguments.payload if arguments.output == "sum" else arguments.sequence_payload,
            WIDE=layout.numel > WIDE_FROM,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return result


def backward(grads: Gradients, x_seq: Tensor, coding: Coding, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input (and the residual), of the initial v, and of 1/tau, for `IF` and `LIF`.

    The membrane is computed anew, in registers: nothing but the input is kept from the forward pass.
    """
    assert isinstance(coding, IF)
    surrogate: Any = coding.surrogate
    layout, time_steps = layout_of(x_seq), len(x_seq)
    grad_x = layout.empty(x_seq, x_seq.dtype, time_steps)
    grad_v = layout.empty(x_seq, torch.float32)
    if layout.numel == 0:
        return grad_x, grad_v, x_seq.new_zeros((), dtype=torch.float32)
    flat = _Flat(layout, x_seq, arguments)
    block = _block(layout, 4)
    programs = triton.cdiv(layout.numel, block)
    tau = _tau_tensor(coding, x_seq)
    steps = min(MOST_STEPS if tau is None else MOST_STEPS // 2, triton.next_power_of_2(time_steps))
    earlier_groups = (time_steps - 1) // steps
    checkpoints = x_seq.new_empty((max(1, earlier_groups * layout.numel),), dtype=torch.float32)
    grad_tau = None if tau is None else x_seq.new_empty((programs,), dtype=torch.float32)
    per_step = None if grads.sequence is None else layout.flatten(grads.sequence)
    with _on(x_seq):
        kernels.backward_kernel[(programs,)](
            flat.x,
            flat.residual,
            flat.state[0],
            per_step,
            _flat(layout, grads.total),
            _flat(layout, grads.state),
            layout.flatten(grad_x),
            _flat(layout, grad_v),
            grad_tau,
            checkpoints,
            *flat.tensors[:2],
            tau,
            *flat.scalars[:2],
            _tau(coding),
            _rest(coding),
            surrogate.alpha,
            layout.numel,
            layout.channels,
            layout.inner,
            flat.x.stride(0),
            0 if flat.residual is None else flat.residual.stride(0),
            0 if per_step is None else per_step.stride(0),
            time_steps,
            LEAKY=isinstance(coding, LIF),
            DECAY_INPUT=isinstance(coding, LIF) and coding.decay_input,
            HARD=coding.v_reset is not None,
            HALF_START=coding.half_start,
            DETACH=coding.detach_reset,
            PAYLOAD=arguments.payload,
            SURROGATE=type(surrogate).__name__,
            STEPS=steps,
            WIDE=layout.numel > WIDE_FROM,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return grad_x, grad_v, x_seq.new_zeros((), dtype=torch.float32) if grad_tau is None else grad_tau.sum()


class _Flat:
    """The arguments as kernels take them: a step flat in memory order, parameters as `[C]` or scalars."""

    def __init__(self, layout: Layout, x_seq: Tensor, arguments: Arguments) -> None:
        if not (x_seq.is_cuda or INTERPRETED):
            raise RuntimeError(
                f"the triton backend runs on CUDA tensors, got one on {x_seq.device} "
                "(TRITON_INTERPRET=1, set before triton is imported, runs its kernels on a CPU)"
            )
        self.x = layout.flatten(x_seq)
        self.residual = None if arguments.residual is None else layout.flatten(arguments.residual)
        self.state = [_flat(layout, part) for part in _two(arguments.state or ())]
        self.tensors = [value.contiguous() if isinstance(value, Tensor) else None for value in arguments.parameters]
        self.scalars = [0.0 if isinstance(value, Tensor) else float(value) for value in arguments.parameters]


def _flat(layout: Layout, step: Tensor | None) -> Tensor | None:
    return None if step is None else layout.flatten_step(step)


def _two(state: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    first, second = (*state, None, None)[:2]
    return first, second


def _block(layout: Layout, per_thread: int) -> int:
    """Neurons of a program: few where there are few, so that every multiprocessor has some."""
    largest = 32 * WARPS * per_thread
    return largest if layout.numel >= 1024 * largest else largest // 4


def _kind(coding: Coding) -> str:
    return type(coding).__name__.lower()


def _rest(coding: Coding) -> float:
    return (coding.v_reset or 0.0) if isinstance(coding, IF) else 0.0


def _tau_tensor(coding: Coding, x_seq: Tensor) -> Tensor | None:
    tau = getattr(coding, "reciprocal_tau", None)
    return tau.to(x_seq.device) if isinstance(tau, Tensor) else None


def _tau(coding: Coding) -> float:
    tau = getattr(coding, "reciprocal_tau", 0.0)
    return 0.0 if isinstance(tau, Tensor) else float(tau)


def _on(x_seq: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(x_seq.device) if x_seq.is_cuda else contextlib.nullcontext()
