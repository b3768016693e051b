"""A pointwise convolution and its neurons in one kernel, where there is one: the door to `triton_pointwise`."""

from __future__ import annotations

from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.ops import backends
from snnzoo.ops.spec import Arguments


def pointwise_neurons(x_seq: Tensor, weight: Tensor, coding: Coding, arguments: Arguments) -> Tensor | None:
    """Return what neurons give behind a 1x1 convolution, `[T, N, C, H, W]`; None where no kernel does both.

    Their input is the convolution's sum in float32, which is not rounded to the dtype of `x_seq` in between.

    Args:
        x_seq: input of the convolution, `[T, N, channels in, H, W]`.
        weight: of the convolution, `[C, channels in, 1, 1]`.
        coding: of the neurons.
        arguments: of the neurons, as `ops.multi_step_neuron` gives them.
    """
    triton = backends.named("triton")
    if backends.forced() not in (None, triton.name) or triton.unavailable() is not None:
        return None
    from snnzoo.ops import triton_pointwise  # imports triton

    if triton_pointwise.refuses(x_seq, weight, coding, arguments) is not None:
        return None
    return triton_pointwise.forward(x_seq, weight, coding, arguments)
