"""The neuron equations on a CPU: those of `reference`, in place and chunk by chunk, so that the state stays in cache.

Every operation is elementwise and rounds as in `reference`, so that results are equal. Nothing is allocated per
step. A neuron is a function `step(t, x, y)` that takes its input from `x` and writes its output to `y`, which may
be the same memory: it has taken in all of `x` before it writes to `y`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snnzoo.codings import IF, LIF, Coding, Delta, Differential, Rate, Signed
from snnzoo.ops.memory import MemoryOrder, memory_order
from snnzoo.ops.reference import bias_is_past
from snnzoo.ops.spec import MOST_THRESHOLDS, Arguments, Gradients, NeuronOutput, state_dtype

CHUNK = 1 << 18  # elements: enough to be worth the call of an operation, few enough to stay in cache

Parameter = float | Tensor  # a scalar, or one that broadcasts over a chunk
Step = Callable[[int, Tensor, Tensor], None]


class Rows:
    """Memory as `[rows, length]`, such that a per-channel parameter is `[rows, 1]` or `[1, length]`."""

    def __init__(self, order: MemoryOrder, arguments: Arguments, elements: int) -> None:
        """Cut into chunks of about `elements`."""
        per_channel = any(isinstance(value, Tensor) for value in arguments.parameters)
        self.order = order
        self.along_rows = per_channel and order.inner > 1
        self.repeats = 1  # of all channels, in a row
        self.length = 1
        if self.along_rows:
            self.length = order.inner
        elif per_channel:
            self.repeats = math.gcd(order.numel // order.channels, 64)  # short rows are slow
            self.length = order.channels * self.repeats
        self.number = order.numel // self.length
        self.in_a_chunk = max(1, elements // self.length)

    def chunks(self) -> Iterator[slice]:
        for start in range(0, self.number, self.in_a_chunk):
            yield slice(start, min(start + self.in_a_chunk, self.number))

    def of_step(self, step: Tensor) -> Tensor:
        """`[N, C, ...]` as `[rows, length]`."""
        return self.order.flatten_step(step).view(self.number, self.length)

    def of_sequence(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, ...]` as `[T, rows, length]`."""
        return self.order.flatten(x_seq).unflatten(1, (self.number, self.length))

    def of_parameter(self, value: Parameter, dtype: torch.dtype) -> Parameter:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().to(dtype)
        if self.along_rows:
            return value.repeat(self.number // len(value)).unsqueeze(1)
        return value.repeat(self.repeats).unsqueeze(0)

    def cut(self, value: Parameter, chunk: slice) -> Parameter:
        return value[chunk] if isinstance(value, Tensor) and self.along_rows else value


def refuses(x_seq: Tensor, coding: Coding, arguments: Arguments, gradient: bool) -> str | None:
    """Return why this implementation does not take the call; None if it does."""
    if x_seq.device.type != "cpu":
        return f"tensors on {x_seq.device}"
    if type(coding) not in STEPS:
        return f"the coding {type(coding).__name__}, for which it has no step"
    if isinstance(coding, Differential) and coding.levels > MOST_THRESHOLDS:
        return f"more than {MOST_THRESHOLDS} thresholds"
    if arguments.activation.per_channel:
        return f"{arguments.activation}, which differs from channel to channel"
    return None


def forward(x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
    """Return what `ops.multi_step_neuron` does, outside autograd."""
    order = memory_order(x_seq)
    result = order.allocate(x_seq, coding, arguments)
    if order.numel > 0:
        rows = Rows(order, arguments, CHUNK)
        worker = _Worker(rows, x_seq, coding, arguments, result)
        for chunk in rows.chunks():
            worker.run(chunk)
    return result


def backward(grads: Gradients, x_seq: Tensor, coding: Coding, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input (and the residual), of the initial v, and of 1/tau, of the IF family.

    The membrane is computed anew, chunk by chunk: nothing but the input is kept from the forward pass.
    """
    assert isinstance(coding, IF)
    order, dtype = memory_order(x_seq), state_dtype(x_seq.dtype)
    grad_x = order.empty(x_seq, x_seq.dtype, len(x_seq))
    grad_v = order.empty(x_seq, dtype)
    grad_tau = x_seq.new_zeros((), dtype=dtype)
    if order.numel > 0:
        rows = Rows(order, arguments, min(CHUNK // 2, 8 * CHUNK // len(x_seq)))
        worker = _Worker(rows, x_seq, coding, arguments, NeuronOutput(grad_x, None, (grad_v,)))
        flat = Gradients(
            None if grads.sequence is None else rows.of_sequence(grads.sequence),
            *(None if grad is None else rows.of_step(grad) for grad in grads[1:]),
        )
        for chunk in rows.chunks():
            grad_tau += worker.run_backward(chunk, flat)
    return grad_x, grad_v, grad_tau


class _Worker:
    """Runs one chunk after the other, in the same scratch memory."""

    def __init__(self, rows: Rows, x_seq: Tensor, coding: Coding, arguments: Arguments, result: NeuronOutput) -> None:
        self.rows, self.coding, self.arguments = rows, coding, arguments
        self.dtype = state_dtype(x_seq.dtype)
        self.x = rows.of_sequence(x_seq)
        self.residual = None if arguments.residual is None else rows.of_sequence(arguments.residual)
        self.sequence = None if result.sequence is None else rows.of_sequence(result.sequence)
        self.total = None if result.total is None else rows.of_step(result.total)
        self.before = [rows.of_step(part) for part in arguments.state or ()]
        self.after = [rows.of_step(part) for part in result.state]
        self.parameters = [rows.of_parameter(value, self.dtype) for value in arguments.parameters]
        shape = (4 + len(coding.state), min(rows.in_a_chunk, rows.number), rows.length)
        self.scratch = x_seq.new_empty(shape, dtype=self.dtype)

    def run(self, chunk: slice) -> None:
        """All steps of the rows `chunk`."""
        entry, output, work, added, *held = self.scratch[:, : chunk.stop - chunk.start].unbind(0)
        theta, bias = (self.rows.cut(value, chunk) for value in self.parameters)
        state = tuple(part[chunk] for part in self.after or ()) or tuple(held)
        self._start(state, theta, chunk)
        neuron = STEPS[type(self.coding)](self.coding, theta, self.arguments, len(self.x), state, work)
        direct = self.sequence if self.sequence is not None and self.sequence.dtype == self.dtype else None
        for step, x in enumerate(self.x[:, chunk].unbind(0)):
            shift = 0.0 if bias_is_past(self.coding, self.arguments, self.arguments.t + step) else bias
            residual = None if self.residual is None else self.residual[step, chunk]
            y = output if direct is None else direct[step, chunk]
            neuron(step, _enter(x, residual, shift, entry), y)
            if self.sequence is not None and direct is None:
                self.sequence[step, chunk].copy_(y)
            if self.total is not None:
                added.copy_(y) if step == 0 else added.add_(y)
        if self.total is not None:
            self.total[chunk].copy_(added)

    def run_backward(self, chunk: slice, grads: Gradients) -> Tensor:
        """The same, backwards, into what a forward pass takes for the sequence and the final v.

        Returns:
            the gradient of 1/tau, as far as these rows have part in it.
        """
        coding, sequence = self.coding, self.sequence
        assert isinstance(coding, IF)
        assert sequence is not None
        entry, spikes, work, v = self.scratch[:4, : chunk.stop - chunk.start].unbind(0)
        theta, bias = (self.rows.cut(value, chunk) for value in self.parameters)
        value = theta if self.arguments.scaled else 1.0
        self._start((v,), theta, chunk)
        neuron = _integrate_and_fire(coding, theta, replace(self.arguments, scaled=False), len(self.x), (v,), work)

        def enter(step: int) -> Tensor:
            residual = None if self.residual is None else self.residual[step, chunk]
            return _enter(self.x[step, chunk], residual, bias, entry)

        before = v.new_empty((len(self.x), *v.shape))  # v[t - 1]
        for step in range(len(self.x)):
            before[step].copy_(v)
            neuron(step, enter(step), spikes)
        zero = v.new_zeros(())
        grad_v = torch.zeros_like(v) if grads.state is None else grads.state[chunk]
        grad_tau = zero.clone()
        for step in reversed(range(len(self.x))):
            x = enter(step)
            _charge(coding, v.copy_(before[step]), x, work)
            reaching = (None if grads.sequence is None else grads.sequence[step], grads.total)
            grad_s = sum((grad[chunk].to(v.dtype) for grad in reaching if grad is not None), start=zero)
            grad_h = coding.step_backward(v, theta, grad_s * value, grad_v)
            grad_x, grad_v, to_tau = coding.charge_backward(before[step], x, grad_h)
            sequence[step, chunk].copy_(grad_x)
            if to_tau is not None:
                grad_tau += to_tau.sum()
        self.after[0][chunk].copy_(grad_v)
        return grad_tau

    def _start(self, state: tuple[Tensor, ...], theta: Parameter, chunk: slice) -> None:
        if self.before:
            for part, before in zip(state, self.before, strict=True):
                if part.data_ptr() != before[chunk].data_ptr():  # the same memory, if the state is reused
                    part.copy_(before[chunk])
            return
        first = self.coding.initial(theta)
        state[0].copy_(first) if isinstance(first, Tensor) else state[0].fill_(first)
        for part in state[1:]:
            part.zero_()


def _enter(x: Tensor, residual: Tensor | None, shift: Parameter, entry: Tensor) -> Tensor:
    """The input with all that is added to it: in `entry`, or `x` itself where that is nothing."""
    shifted = isinstance(shift, Tensor) or shift != 0
    if x.dtype != entry.dtype:
        x = entry.copy_(x)
    if residual is not None:
        x = torch.add(x, residual.to(entry.dtype), out=entry)
    return torch.add(x, shift, out=entry) if shifted else x


def _is_scaled(arguments: Arguments) -> bool:
    return arguments.scaled if arguments.output == "sum" else arguments.sequence_scaled


def _values(counts: Tensor, spike_value: Parameter, scaled: bool, work: Tensor) -> Tensor:
    """Return what `counts` are worth: in their place if the output is to carry that, else in `work`."""
    return torch.mul(counts, spike_value, out=counts if scaled else work)


def _charge(coding: IF, v: Tensor, x: Tensor, work: Tensor) -> None:
    if not isinstance(coding, LIF):
        v.add_(x)
        return
    leak = torch.sub(v, coding.rest, out=work) if coding.rest else v
    if coding.decay_input:
        v.add_(torch.sub(x, leak, out=work).mul_(coding.reciprocal_tau))
    else:
        v.sub_(torch.mul(leak, coding.reciprocal_tau, out=work)).add_(x)


def _integrate_and_fire(
    coding: IF, theta: Parameter, arguments: Arguments, time_steps: int, state: tuple[Tensor, ...], work: Tensor
) -> Step:
    (v,), scaled = state, _is_scaled(arguments)

    def step(_: int, x: Tensor, y: Tensor) -> None:
        _charge(coding, v, x, work)
        torch.ge(v, theta, out=y)
        if coding.v_reset is not None:
            v.addcmul_(v, y, value=-1)  # exact, as y is 0 or 1
            if coding.v_reset:
                v.add_(y, alpha=coding.v_reset)
            if scaled:
                y.mul_(theta)
        elif isinstance(theta, Tensor) or scaled:
            v.sub_(_values(y, theta, scaled, work))
        else:
            v.sub_(y, alpha=theta)

    return step


def _signed(
    coding: Signed, theta: Parameter, arguments: Arguments, time_steps: int, state: tuple[Tensor, ...], work: Tensor
) -> Step:
    (v, c), scaled = state, _is_scaled(arguments)

    def step(_: int, x: Tensor, y: Tensor) -> None:
        v.add_(x)
        torch.gt(c, 0, out=work)
        work.mul_(torch.lt(v, 0, out=y))
        torch.ge(v, theta, out=y).sub_(work)
        c.add_(y)
        v.sub_(_values(y, theta, scaled, work))

    return step


def _accumulate(m: Tensor, x: Tensor, arguments: Arguments) -> None:
    m.copy_(x) if arguments.absolute else m.add_(x)


def _delta(
    coding: Delta, theta: Parameter, arguments: Arguments, time_steps: int, state: tuple[Tensor, ...], work: Tensor
) -> Step:
    (m, o), scaled, dtype = state, _is_scaled(arguments), work.dtype
    shares = [coding.spike_value(arguments.t + step, dtype) for step in range(time_steps)]
    levels: Sequence[Parameter]
    if isinstance(theta, Tensor):
        levels = [theta * share for share in shares]
    else:
        levels = (torch.tensor(shares, dtype=dtype) * theta).tolist()  # rounded as products of tensors
    margins = [(torch.as_tensor(level, dtype=dtype) * coding.dead_zone) for level in levels]

    def step(t: int, x: Tensor, y: Tensor) -> None:
        _accumulate(m, x, arguments)
        arguments.activation(m, out=y).sub_(o)
        waits = y.abs() <= margins[t] if coding.dead_zone > 0.5 else None  # below half a level nothing is sent anyway
        y.div_(levels[t]).round_().clamp_(-coding.levels, coding.levels)
        if waits is not None:
            y.masked_fill_(waits, 0.0)
        o.add_(_values(y, levels[t], scaled, work))

    return step


def _differential(
    coding: Differential,
    theta: Parameter,
    arguments: Arguments,
    time_steps: int,
    state: tuple[Tensor, ...],
    work: Tensor,
) -> Step:
    """The largest power of two 2^-k with r >= 0.75 * 2^-k = 1.5 * 2^-(k+1) is r's exponent, or the next if its
    mantissa is 1.5 or more: adding half a mantissa carries into the exponent just then."""
    (m, o), scaled = state, _is_scaled(arguments)
    double = m.dtype == torch.float64
    integer = torch.int64 if double else torch.int32
    half, exponent = (1 << 51, 0x7FF << 52) if double else (1 << 22, 0xFF << 23)
    below = 0.75 * 2.0 ** -(coding.levels - 1)

    def step(_: int, x: Tensor, y: Tensor) -> None:
        _accumulate(m, x, arguments)
        arguments.activation(m, out=y).sub_(o).div_(theta)
        torch.abs(y, out=work).view(integer).add_(half).bitwise_and_(exponent)
        torch.threshold_(work.clamp_(max=1), below, 0.0)
        torch.copysign(work, y, out=y)
        o.add_(_values(y, theta, scaled, work))
        if not scaled:
            y.mul_(2.0 ** (coding.levels - 1))

    return step


# (coding, theta, arguments, time_steps, state, scratch) -> step; a subclass may have another equation: it is not here
STEPS: dict[type[Coding], Callable[..., Step]] = {
    IF: _integrate_and_fire,
    LIF: _integrate_and_fire,
    Rate: _integrate_and_fire,
    Signed: _signed,
    Delta: _delta,
    Differential: _differential,
}
