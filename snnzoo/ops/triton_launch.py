"""The Triton kernels, launched on tensors: same arguments and results as `cpu`."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch import Tensor

from snnzoo.codings import IF, LIF, RELU, Coding, Delta, Differential, Rate, Signed
from snnzoo.codings.activations import Clamp
from snnzoo.ops import triton_kernels as kernels
from snnzoo.ops.memory import MemoryOrder, memory_order
from snnzoo.ops.spec import MOST_THRESHOLDS, Arguments, Gradients, NeuronOutput
from snnzoo.surrogate import ATan, PiecewiseQuadratic, Sigmoid

INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)

MOST_STEPS = 16  # of a backward pass that stay in registers; with a learned 1/tau, half of them
MOST_LEVELS = 1 << 16  # for which `triton_kernels.nearest_units` is proven
WARPS = 4
WIDE_FROM = 2**31 - 2**16  # neurons of a step: beyond, offsets need 64 bits

KINDS: dict[type[Coding], str] = {
    IF: "if",
    LIF: "lif",
    Rate: "if",
    Signed: "signed",
    Delta: "delta",
    Differential: "differential",
}
SURROGATES = {ATan: "ATan", Sigmoid: "Sigmoid", PiecewiseQuadratic: "PiecewiseQuadratic"}


def refuses(x_seq: Tensor, coding: Coding, arguments: Arguments, gradient: bool) -> str | None:
    """Return why the kernels do not take the call; None if they do."""
    if not (x_seq.is_cuda or INTERPRETED):
        return f"tensors on {x_seq.device} (TRITON_INTERPRET=1, set before triton is imported, runs kernels on a CPU)"
    if x_seq.dtype == torch.float64:
        return "float64: the state of kernels is float32"
    if type(coding) not in KINDS:
        return f"the coding {type(coding).__name__}, for which there is no kernel"
    if gradient and isinstance(coding, IF) and type(coding.surrogate) not in SURROGATES:
        return f"gradients of the surrogate {type(coding.surrogate).__name__}, for which there is no kernel"
    if isinstance(coding, Delta) and coding.levels > MOST_LEVELS:
        return f"more than {MOST_LEVELS} levels"
    if isinstance(coding, Differential) and coding.levels > MOST_THRESHOLDS:
        return f"more than {MOST_THRESHOLDS} thresholds"
    if arguments.activation != RELU and type(arguments.activation) is not Clamp:
        return f"the activation {arguments.activation}, for which there is no kernel"
    return None


def probe() -> None:
    """Launch a kernel on one neuron: raises what keeps kernels from being compiled or launched here."""
    forward(
        torch.zeros(1, 1, device="cuda"), IF(), Arguments(1.0, 0.0, None, None, 0, "sum", False, torch.float32, False)
    )


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Return what `ops.multi_step_neuron` does, outside autograd."""
    order = memory_order(x_seq)
    result = order.allocate(x_seq, coding, arguments)
    if order.numel == 0:
        return result
    flat = _FlatArguments(order, x_seq, arguments)
    block = _block(order, 8)
    refining = refinement(coding, arguments)
    sequence = _flat(order, result.sequence)
    (before_0, before_1), (after_0, after_1) = flat.state, _pair(result.state)
    with device_of(x_seq):
        kernels.forward_kernel[(triton.cdiv(order.numel, block),)](
            flat.x,
            flat.residual,
            sequence,
            _flat_step(order, result.total),
            before_0,
            before_1,
            _flat_step(order, after_0),
            _flat_step(order, after_1),
            *flat.tensors,
            _tau_tensor(coding, x_seq),
            *flat.scalars,
            _tau(coding),
            *_start(coding),
            *refining,
            order.numel,
            order.channels,
            order.inner,
            flat.x.stride(0),
            0 if flat.residual is None else flat.residual.stride(0),
            0 if sequence is None else sequence.stride(0),
            len(x_seq),
            arguments.t,
            KIND=KINDS[type(coding)],
            HARD=isinstance(coding, IF) and coding.v_reset is not None,
            DECAY_INPUT=isinstance(coding, LIF) and coding.decay_input,
            DIFFERENTIAL=coding.bias_once and not arguments.absolute,
            CAPPED=refining[-1] < math.inf,
            SCALED=arguments.scaled if arguments.output == "sum" else arguments.sequence_scaled,
            WIDE=order.numel > WIDE_FROM,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return result


def refinement(coding: Coding, arguments: Arguments) -> tuple[float, ...]:
    """Return what kernels take of neurons that refine: gamma, power, levels, dead_zone, lower and upper."""
    activation = arguments.activation
    lower, upper = (activation.minimum, activation.maximum) if isinstance(activation, Clamp) else (0.0, math.inf)
    gamma, power = (coding.spike_value(t, torch.float32) for t in (1, arguments.t))  # rounded
    return gamma, power, float(coding.largest_unit), float(getattr(coding, "dead_zone", 0.5)), lower, upper


def backward(grads: Gradients, x_seq: Tensor, coding: Coding, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input (and the residual), of the initial v, and of 1/tau, of the IF family.

    The membrane is computed anew, in registers: nothing but the input is kept from the forward pass.
    """
    assert isinstance(coding, IF)
    surrogate: Any = coding.surrogate
    order, time_steps = memory_order(x_seq), len(x_seq)
    grad_x = order.empty(x_seq, x_seq.dtype, time_steps)
    grad_v = order.empty(x_seq, torch.float32)
    if order.numel == 0:
        return grad_x, grad_v, x_seq.new_zeros((), dtype=torch.float32)
    flat = _FlatArguments(order, x_seq, arguments)
    block = _block(order, 4)
    programs = triton.cdiv(order.numel, block)
    tau = _tau_tensor(coding, x_seq)
    steps = min(MOST_STEPS if tau is None else MOST_STEPS // 2, triton.next_power_of_2(time_steps))
    earlier_groups = (time_steps - 1) // steps
    checkpoints = x_seq.new_empty((max(1, earlier_groups * order.numel),), dtype=torch.float32)
    grad_tau = None if tau is None else x_seq.new_empty((programs,), dtype=torch.float32)
    per_step = _flat(order, grads.sequence)
    with device_of(x_seq):
        kernels.backward_kernel[(programs,)](
            flat.x,
            flat.residual,
            flat.state[0],
            per_step,
            _flat_step(order, grads.total),
            _flat_step(order, grads.state),
            grad_x,
            _flat_step(order, grad_v),
            grad_tau,
            checkpoints,
            *flat.tensors,
            tau,
            *flat.scalars,
            _tau(coding),
            *_start(coding),
            surrogate.alpha,
            order.numel,
            order.channels,
            order.inner,
            flat.x.stride(0),
            0 if flat.residual is None else flat.residual.stride(0),
            0 if per_step is None else per_step.stride(0),
            time_steps,
            LEAKY=isinstance(coding, LIF),
            DECAY_INPUT=isinstance(coding, LIF) and coding.decay_input,
            HARD=coding.v_reset is not None,
            DETACH=coding.detach_reset,
            SCALED=arguments.scaled,
            SURROGATE=SURROGATES[type(surrogate)],
            STEPS=steps,
            WIDE=order.numel > WIDE_FROM,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return grad_x, grad_v, x_seq.new_zeros((), dtype=torch.float32) if grad_tau is None else grad_tau.sum()


class _FlatArguments:
    """The arguments as kernels take them: a step flat in memory order, parameters as `[C]` or scalars."""

    def __init__(self, order: MemoryOrder, x_seq: Tensor, arguments: Arguments) -> None:
        self.x = order.laid(x_seq)
        self.residual = _flat(order, arguments.residual)
        self.state = [_flat_step(order, part) for part in _pair(arguments.state or ())]
        self.tensors = [value.contiguous() if isinstance(value, Tensor) else None for value in arguments.parameters]
        self.scalars = [0.0 if isinstance(value, Tensor) else float(value) for value in arguments.parameters]


def _flat(order: MemoryOrder, x_seq: Tensor | None) -> Tensor | None:
    """A sequence as kernels take it: of what lies in this order, they need no more than the address."""
    return None if x_seq is None else order.laid(x_seq)


def _flat_step(order: MemoryOrder, step: Tensor | None) -> Tensor | None:
    return None if step is None else order.laid_step(step)


def _pair(state: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Return two state tensors, None for those that a coding has not."""
    first, second = (*state, None, None)[:2]
    return first, second


def _block(order: MemoryOrder, per_thread: int) -> int:
    """Neurons of a program: few where there are few, so that every multiprocessor has some."""
    largest = 32 * WARPS * per_thread
    return largest if order.numel >= 1024 * largest else largest // 4


def _start(coding: Coding) -> tuple[float, float]:
    """Return where v rests, and how many thresholds above it starts."""
    return float(getattr(coding, "rest", 0.0)), float(getattr(coding, "v_init", 0.0))


def _tau_tensor(coding: Coding, x_seq: Tensor) -> Tensor | None:
    tau = getattr(coding, "reciprocal_tau", None)
    return tau.to(x_seq.device) if isinstance(tau, Tensor) else None


def _tau(coding: Coding) -> float:
    tau = getattr(coding, "reciprocal_tau", 0.0)
    return 0.0 if isinstance(tau, Tensor) else float(tau)


def device_of(x_seq: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(x_seq.device) if x_seq.is_cuda else contextlib.nullcontext()
