"""A pointwise (1x1) convolution and the neurons behind it as one Triton kernel: their input never goes through memory.

Each program has a tile of positions and output channels, and walks through time. A step's products are summed in
float32, and go to the neurons from registers, unrounded; there the neurons' state is kept, too. It begins at t = 0, and
nothing is left of it: longer sequences, in pieces, are not for this kernel.
"""

# mypy: ignore-errors

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from snnzoo.codings import Coding, Delta, Differential
from snnzoo.ops import triton_launch
from snnzoo.ops.memory import MemoryOrder
from snnzoo.ops.spec import Arguments
from snnzoo.ops.triton_kernels import INTERPRETED, LARGEST_RECIPROCAL, SMALLEST_LEVEL, load_parameter, refine

TILE = {"ROWS": 128, "COLUMNS": 64, "DEPTH": 32}  # positions, output channels, input channels at a time
WARPS, STAGES = 8, 3


@triton.jit(do_not_specialize=["time_steps"])
def pointwise_kernel(
    x_ptr, weight_ptr, residual_ptr, sequence_ptr, theta_ptr, bias_ptr, theta, bias, gamma, power, levels,
    dead_zone, lower, upper,
    positions, channels_in, channels, x_stride, residual_stride, sequence_stride, time_steps,
    KIND: tl.constexpr, CAPPED: tl.constexpr, SCALED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """All steps of one tile. x is `[T, positions, channels_in]`, the weight `[channels, channels_in]`."""
    tiles = tl.cdiv(channels, COLUMNS)  # neighbours share their x
    rows = (tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    depth = tl.arange(0, DEPTH)
    offsets, mask = rows * channels + columns, (rows < positions) & (columns < channels)
    theta = load_parameter(theta_ptr, theta, columns, columns < channels)
    bias = load_parameter(bias_ptr, bias, columns, columns < channels)
    reciprocal = tl.minimum(1.0 / theta, LARGEST_RECIPROCAL)
    m = tl.zeros([ROWS, COLUMNS], tl.float32)
    o = tl.zeros([ROWS, COLUMNS], tl.float32)
    for t in range(time_steps):
        current = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, channels_in, DEPTH):
            here = start + depth
            known = here < channels_in
            x_mask, weight_mask = (rows < positions) & known[None, :], (columns < channels) & known[:, None]
            x = tl.load(x_ptr + rows * channels_in + here[None, :], mask=x_mask, other=0.0)
            weight = tl.load(weight_ptr + columns * channels_in + here[:, None], mask=weight_mask, other=0.0)
            if INTERPRETED:  # which would multiply the bits of bfloat16
                x, weight = x.to(tl.float32), weight.to(tl.float32)
            current = tl.dot(x, weight, current)
        if residual_ptr is not None:
            current += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            residual_ptr += residual_stride
        current = tl.where(t == 0, current + bias, current)
        counts, value, m, o = refine(
            m, o, current, theta, reciprocal, power, 1.0 / power, levels, dead_zone, lower, upper, KIND, True, CAPPED
        )
        power = tl.maximum(power * gamma, SMALLEST_LEVEL)
        y = value if SCALED else counts
        tl.store(sequence_ptr + offsets, y.to(sequence_ptr.dtype.element_ty), mask=mask)
        x_ptr += x_stride
        sequence_ptr += sequence_stride


def refuses(x_seq: Tensor, weight: Tensor, coding: Coding, arguments: Arguments) -> str | None:
    """Return why the kernel does not take `arguments` behind a convolution of `x_seq`; None if it does."""
    if x_seq.dtype not in (torch.float16, torch.bfloat16) or weight.dtype != x_seq.dtype:
        return f"{x_seq.dtype}: only in half precision are convolutions that fast"
    if not isinstance(coding, Delta | Differential) or arguments.absolute:
        return f"the coding {type(coding).__name__}"
    if arguments.t or arguments.state is not None or arguments.keep_state or arguments.output != "sequence":
        return "a sequence in pieces, or its sum"
    if x_seq.ndim != 5 or not x_seq[0].is_contiguous(memory_format=torch.channels_last):
        return "memory that is not channels-last"
    if max(x_seq[0].numel(), x_seq[0, :, 0].numel() * len(weight)) >= triton_launch.WIDE_FROM:
        return "steps that need 64 bits for offsets"
    return triton_launch.refuses(x_seq, coding, arguments, gradient=False)


def forward(x_seq: Tensor, weight: Tensor, coding: Coding, arguments: Arguments) -> Tensor:
    """Return the outputs of neurons behind a convolution, `[T, N, C, H, W]`, channels-last.

    Args:
        x_seq: input of the convolution, `[T, N, channels in, H, W]`.
        weight: of the convolution, `[C, channels in, 1, 1]`.
        coding: of the neurons; `Delta` or `Differential`.
        arguments: of the neurons, as `ops.multi_step_neuron` gives them. `refuses` has passed them.
    """
    time_steps, batch, channels_in, *size = x_seq.shape
    channels, positions = len(weight), batch * math.prod(size)
    order = MemoryOrder((1, 3, 4, 2), (batch, *size, channels))
    sequence = order.empty(x_seq, arguments.out_dtype, time_steps)
    residual = None if arguments.residual is None else order.flatten(arguments.residual)
    refining = triton_launch.refinement(coding, arguments)
    tensors = [value.contiguous() if isinstance(value, Tensor) else None for value in arguments.parameters]
    scalars = [0.0 if isinstance(value, Tensor) else float(value) for value in arguments.parameters]
    tiles = triton.cdiv(positions, TILE["ROWS"]) * triton.cdiv(channels, TILE["COLUMNS"])
    with triton_launch.device_of(x_seq):
        pointwise_kernel[(tiles,)](
            x_seq, weight.reshape(channels, channels_in).contiguous(), residual, sequence, *tensors, *scalars,
            *refining, positions, channels_in, channels, x_seq.stride(0), 0 if residual is None else residual.stride(0),
            sequence.stride(0), time_steps, KIND=triton_launch.KINDS[type(coding)], CAPPED=refining[-1] < math.inf,
            SCALED=arguments.sequence_scaled, **TILE, num_warps=WARPS, num_stages=STAGES, enable_fp_fusion=False,
        )  # fmt: skip
    return sequence
