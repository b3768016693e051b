"""`multi_step_neuron`: one function for everything that fires, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from snnzoo.codings import RELU, Activation, Coding
from snnzoo.ops import autograd, backends, operator, reference
from snnzoo.ops.spec import Arguments, Memo, NeuronOutput, count_events

__all__ = ["multi_step_neuron"]

OUTPUTS = ("sequence", "sum", "both")


def multi_step_neuron(
    x_seq: Tensor,
    coding: Coding,
    *,
    v_threshold: float | Tensor = 1.0,
    bias: float | Tensor = 0.0,
    activation: Activation = RELU,
    absolute: bool = False,
    residual: Tensor | None = None,
    state: tuple[Tensor, ...] | None = None,
    t: int = 0,
    output: str = "sequence",
    scaled: bool = False,
    out_dtype: torch.dtype | None = None,
    keep_state: bool = True,
    out: Tensor | None = None,
    counts_events: bool = False,
    reuse_state: bool = False,
    memo: Memo | None = None,
    rows: Tensor | None = None,
) -> NeuronOutput:
    """Run one layer of neurons over all T steps.

    Args:
        x_seq: input, `[T, N, C, ...]` or, without per-channel parameters, `[T, N, ...]`; contiguous or
            channels-last; a stride-0 time axis is read once.
        coding: what the neurons do.
        v_threshold: theta, positive; scalar or `[C]`.
        bias: added to the input, scalar or `[C]`: at every step, but in codings with `bias_once` at t = 0 only.
        activation: what outputs stand for.
        absolute: whether a coding with `bias_once` sees the signal itself, not its changes: the neuron that encodes
            a network's input. Its bias then enters at every step. Other codings always do.
        residual: a second input of the same shape, added to the first (its time stride may be 0, too).
        state: that of an earlier call, None to start anew.
        t: index of the first step (gamma^t; biases that enter at t = 0).
        output: "sequence", "sum" (over time) or "both".
        scaled: whether an output carries what it is worth, or counts whole units (`Coding.spike_value`).
        out_dtype: of the sequence; None for that of `x_seq`. torch.int8 holds whole units, whatever `scaled`
            says of the sum, which has the dtype of `x_seq`.
        keep_state: False if the final state is of no interest: it is then left out, and not written.
        out: where to write the sequence. It may be `x_seq` or `residual` itself, unless their time stride is 0.
            Not for training.
        counts_events: whether to count the outputs that are not 0, of a sequence `[T, N, C, ...]`.
        reuse_state: whether the memory of `state` may become that of the final one. Not for training.
        memo: where an implementation may keep what is the same from call to call: its owner gives it with this coding,
            this activation and these parameters only, which do not change.
        rows: the places of `x_seq`'s images in `state`, `[N]`, if that is of more. The final state is then that of all,
            in the same memory; or that of `x_seq`'s alone, in new memory. Not for training.

    Returns:
        the outputs and counts asked for, and the final state, in float32 (float64 for float64 input). Gradients
        reach `x_seq`, `residual`, `state` and a learnable 1/tau of `IF` and `LIF`; the others have none.

    Raises:
        ValueError: if shapes do not fit each other, or outputs do not fit `out_dtype` or `out`; or (UsageError) if
            the coding cannot stand for the activation.
        RuntimeError: if `use_backend` asks for an implementation that does not take the call.
    """
    v_threshold, bias = _parameter(v_threshold, x_seq), _parameter(bias, x_seq)
    dtype = out_dtype or (x_seq.dtype if out is None else out.dtype)
    arguments = Arguments(
        v_threshold,
        bias,
        residual,
        state,
        t,
        output,
        scaled,
        dtype,
        keep_state,
        activation,
        absolute,
        out,
        counts_events,
        reuse_state,
        memo,
        rows,
    )
    _check(x_seq, coding, arguments)
    result = _run(x_seq, coding, arguments)
    if out is not None and result.sequence is not None and result.sequence is not out:
        result = result._replace(sequence=out.copy_(result.sequence))
    if counts_events and result.events is None and result.sequence is not None:
        result = result._replace(events=count_events(result.sequence))
    return result


def _run(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    gradient = _needs_gradient(x_seq, coding, arguments)
    if torch.compiler.is_compiling():
        arguments = arguments.of_rows()
        forced = backends.forced()
        reason = operator.refuses(coding, arguments, gradient)
        if forced == "reference" or (forced is None and reason is not None):
            return reference.forward(x_seq, coding, arguments)
        if forced is not None:
            backends.require(forced, reason)
        return operator.call(x_seq, coding, arguments)
    backend = backends.choose(x_seq, coding, arguments, gradient)
    if not backend.finds_rows:
        arguments = arguments.of_rows()
    if backend.name == "reference":
        return backend.forward(x_seq, coding, arguments)  # autograd sees each operation
    if gradient:
        return autograd.run(backend, x_seq, coding, arguments)
    if not torch.is_grad_enabled():  # a context is not free
        return backend.forward(x_seq, coding, arguments)
    with torch.no_grad():
        return backend.forward(x_seq, coding, arguments)


def _needs_gradient(x_seq: Tensor, coding: Coding, arguments: Arguments) -> bool:
    """Return whether autograd must see the call."""
    if not (coding.differentiable and torch.is_grad_enabled()):
        return False
    tensors = (x_seq, arguments.residual, *(arguments.state or ()), getattr(coding, "reciprocal_tau", None))
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def _parameter(value: float | Tensor, x_seq: Tensor) -> float | Tensor:
    """Return a scalar, or `[C]`."""
    if not isinstance(value, Tensor) or value.ndim > 0:
        return value
    return value.expand(x_seq.shape[2]) if x_seq.ndim > 2 else value.item()


def _state_fits(x_seq: Tensor, coding: Coding, state: tuple[Tensor, ...], rows: Tensor | None) -> bool:
    if len(state) != len(coding.state):
        return False
    if rows is None:
        return all(part.shape == x_seq.shape[1:] for part in state)
    return rows.shape == x_seq.shape[1:2] and all(part.shape[1:] == x_seq.shape[2:] for part in state)


def _check(x_seq: Tensor, coding: Coding, arguments: Arguments) -> None:
    residual, state, out = arguments.residual, arguments.state, arguments.out
    if x_seq.ndim < 2 or x_seq.shape[0] == 0:  # a tensor takes a while to tell its len
        raise ValueError(f"x_seq must have the shape [T, N, ...] with T >= 1, got {list(x_seq.shape)}")
    if arguments.output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {arguments.output!r}")
    if arguments.activation is not RELU:
        coding.check_activation(arguments.activation)
    for value in arguments.parameters:
        if isinstance(value, Tensor) and (x_seq.ndim < 3 or value.shape != x_seq.shape[2:3]):
            raise ValueError(
                f"a parameter of {value.numel()} channels does not fit a step of shape {list(x_seq.shape[1:])}: "
                f"expected [N, {value.numel()}, ...]"
            )
    if residual is not None and residual.shape != x_seq.shape:
        raise ValueError(f"residual has shape {list(residual.shape)}, x_seq {list(x_seq.shape)}: they must be equal")
    if state is not None and not _state_fits(x_seq, coding, state, arguments.rows):
        raise ValueError(
            f"the state of {type(coding).__name__} is {', '.join(coding.state)}, each of shape "
            f"{list(x_seq.shape[1:])}, got {[list(part.shape) for part in state]}"
        )
    if out is not None and (arguments.output == "sum" or out.shape != x_seq.shape or out.dtype != arguments.out_dtype):
        raise ValueError(
            f"out must hold a sequence of shape {list(x_seq.shape)} and dtype {arguments.out_dtype}, "
            f"got {list(out.shape)}, {out.dtype} for output={arguments.output!r}"
        )
    if arguments.counts_events and (arguments.output == "sum" or x_seq.ndim < 3):
        raise ValueError(
            f"events are counted of sequences [T, N, C, ...], got output={arguments.output!r} "
            f"of shape {list(x_seq.shape)}"
        )
    if arguments.out_dtype == torch.int8:
        coding.check_int8()
