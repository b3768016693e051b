"""How a sequence lies in memory: every implementation walks over a step in the order of its addresses.

Whatever its memory format (contiguous, channels-last ...), a dense step `[N, C, ...]` is, in memory,
`[outer, C, inner]`: element i belongs to channel `i // inner % C`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnzoo.codings import Coding
from snnzoo.ops.spec import Arguments, NeuronOutput, state_dtype

KEPT_BYTES = 31 << 20  # a block of a CPU's memory that glibc's malloc can be made to keep: less than 32 MiB


def keep_freed_memory() -> None:
    """Let malloc keep blocks of up to `KEPT_BYTES` that are freed, as it does once it has seen one of that size.

    Else it gives them back and takes them anew from the system, page by page, which takes as long as a convolution.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


@dataclass(frozen=True)
class MemoryOrder:
    """That of one step.

    `order`: its dimensions from the slowest to the fastest, those of the sequence (1 is N, 2 is C ...);
    `shape`: its sizes in that order.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]

    @functools.cached_property
    def channels(self) -> int:
        return self.shape[self.order.index(2)] if len(self.order) > 1 else 1

    @functools.cached_property
    def inner(self) -> int:
        """The number of neighbours in memory that share a channel."""
        return math.prod(self.shape[self.order.index(2) + 1 :]) if len(self.order) > 1 else 1

    @property
    def position_run(self) -> int | None:
        """The number of neighbours in memory at one position `[...]` of `[N, C, ...]`; None if positions are shuffled.

        Element i is then at position `i // position_run` modulo the number of positions.
        """
        places = [self.order.index(d) for d in range(3, 1 + len(self.order))]
        if not places:
            return self.numel
        in_order = places == list(range(places[0], places[0] + len(places)))
        return math.prod(self.shape[places[-1] + 1 :]) if in_order else None

    @functools.cached_property
    def numel(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def step(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes of a dense step, `[N, C, ...]`, and its strides."""
        sizes, strides, apart = [0] * len(self.order), [0] * len(self.order), 1
        for d, size in zip(reversed(self.order), reversed(self.shape), strict=True):
            sizes[d - 1], strides[d - 1], apart = size, apart, apart * size
        return tuple(sizes), tuple(strides)

    def has(self, x: Tensor) -> bool:
        """Return whether a step, or each step of a sequence, lies in memory in this order, densely."""
        return x.stride()[-len(self.order) :] == self.step[1]

    def empty(self, like: Tensor, dtype: torch.dtype, steps: int | None = None) -> Tensor:
        """An uninitialised step, or sequence of `steps`, on the device of `like`: no view, so it may be changed."""
        sizes, strides = self.step
        if steps is not None:
            sizes, strides = (steps, *sizes), (self.numel, *strides)
        return like.new_empty_strided(sizes, strides, dtype=dtype)

    def flatten_step(self, step: Tensor) -> Tensor:
        """`[N, C, ...]` as `[outer * C * inner]` in this order: a view where it has it already, else a copy."""
        return step.permute([d - 1 for d in self.order]).reshape(-1).contiguous()

    def flatten(self, x_seq: Tensor) -> Tensor:
        """`[T, N, C, ...]` as `[T, outer * C * inner]`; what repeats in time (stride 0) is not copied T times."""
        if x_seq.stride(0) == 0:
            return self.flatten_step(x_seq[0]).expand(len(x_seq), -1)
        flat = x_seq.permute(0, *self.order).reshape(len(x_seq), -1)
        return flat if flat[0].is_contiguous() else flat.contiguous()

    def laid_step(self, step: Tensor) -> Tensor:
        """A step whose address is all that a kernel needs: itself where it has this order already, else flattened."""
        return step if self.has(step) else self.flatten_step(step)

    def laid(self, x_seq: Tensor) -> Tensor:
        """A sequence of which a kernel needs no more than the address and `stride(0)`, likewise."""
        return x_seq if self.has(x_seq) else self.flatten(x_seq)

    def holds_some_of(self, state: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        """Whether a kernel can go on with some images of a larger state where they are, one after the other."""
        return self.order[0] == 1 and all(part.dtype == dtype and self.has(part) for part in state)

    def _fits(self, out: Tensor) -> bool:
        """Whether `flatten(out)` is a view."""
        steps_apart = out.shape[0] == 1 or abs(out.stride(0)) >= self.numel
        return steps_apart and (self.has(out) or self._fits_step(out[0]))

    def _fits_step(self, step: Tensor) -> bool:
        """Whether `flatten_step(step)` is a view."""
        return self.has(step) or step.permute([d - 1 for d in self.order]).is_contiguous()

    def allocate(self, x_seq: Tensor, coding: Coding, arguments: Arguments) -> NeuronOutput:
        """Memory for what is asked for: `arguments.out`, where it has this order, and new memory."""
        sequence = total = None
        if arguments.output != "sum":
            out = arguments.out
            if out is not None and self._fits(out):
                sequence = out
            else:
                sequence = self.empty(x_seq, arguments.out_dtype, x_seq.shape[0])
        if arguments.output != "sequence":
            total = self.empty(x_seq, x_seq.dtype)
        return NeuronOutput(sequence, total, self.allocate_state(x_seq, coding, arguments))

    def allocate_state(self, x_seq: Tensor, coding: Coding, arguments: Arguments) -> tuple[Tensor, ...]:
        """Memory for the final state, if it is asked for: that of the one before, where it may be, or new memory."""
        if not arguments.keep_state:
            return ()
        if arguments.rows is not None:
            assert arguments.state is not None
            return arguments.state
        dtype = state_dtype(x_seq.dtype)
        given = arguments.state or () if arguments.reuse_state else ()
        if given and all(part.dtype == dtype and self._fits_step(part) for part in given):
            return given
        return tuple(self.empty(x_seq, dtype) for _ in coding.state)

    def arrange(self, x_seq: Tensor, result: NeuronOutput) -> NeuronOutput:
        """Return a copy of a result for `x_seq` in this order."""
        sequence, total, state, _ = result
        return NeuronOutput(
            None if sequence is None else self.empty(x_seq, sequence.dtype, len(sequence)).copy_(sequence),
            None if total is None else self.empty(x_seq, total.dtype).copy_(total),
            tuple(self.empty(x_seq, part.dtype).copy_(part) for part in state),
        )


def memory_order(x_seq: Tensor) -> MemoryOrder:
    """Return that of `x_seq [T, N, ...]` where its steps are dense, else contiguous."""
    shape, strides = x_seq.shape, x_seq.stride()
    # sizes of other classes may be symbols of torch.compile
    return (_known_order if type(x_seq) in (Tensor, nn.Parameter) else _order)(shape, strides)


def _order(shape: tuple[int, ...], strides: tuple[int, ...]) -> MemoryOrder:
    order = tuple(sorted(range(1, len(shape)), key=lambda d: -strides[d]))
    apart = 1
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != apart:
            order = tuple(range(1, len(shape)))
            break
        apart *= shape[d]
    return MemoryOrder(order, tuple(shape[d] for d in order))


_known_order = functools.lru_cache(maxsize=1024)(_order)
