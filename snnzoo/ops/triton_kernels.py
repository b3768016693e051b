"""The neuron equations as Triton kernels: one pass over all T steps, the state in float32 registers.

The equations are those of the codings, operation by operation, launched without contraction to fused multiply-adds,
so that spikes are equal. A correctly rounded division takes a slow path wherever its dividend is zero, as that of a
neuron at rest is: so nothing is divided, and what the quotient would round to is found from a remainder that is exact
(`nearest_units`, `nearest_power`; for levels of 2^-100 or more). A step lies in memory as
`[outer, channels, inner]` (see `memory`); each program has a block of it, and walks through time.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no fraction bits, so halves round to even
SMALLEST_LEVEL = tl.constexpr(2.0**-100)
HALF_ULP = tl.constexpr(2.0**-24)  # of a float32, times its power of two
LARGEST_RECIPROCAL = tl.constexpr(2.0**126)


@triton.jit
def load_parameter(pointer, scalar, channel, mask):
    """A per-channel parameter, read through the cache, or the scalar where there is no pointer."""
    value = scalar
    if pointer is not None:
        value = tl.load(pointer + channel, mask=mask, other=1.0).to(tl.float32)
    return value


INTERPRETED = tl.constexpr(not isinstance(load_parameter, triton.runtime.JITFunction))


@triton.jit
def load_input(x_ptr, residual_ptr, offsets, mask):
    """x and what is added to it, in float32."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x = x + tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def charge(v, x, reciprocal_tau, rest, LEAKY: tl.constexpr, DECAY_INPUT: tl.constexpr):
    """The potential before firing."""
    if LEAKY:
        leak = v - rest
        if DECAY_INPUT:
            h = v + (x - leak) * reciprocal_tau
        else:
            h = v - leak * reciprocal_tau + x
    else:
        h = v + x
    return h


@triton.jit
def reset(h, theta, rest, HARD: tl.constexpr):
    """v after the step."""
    if HARD:
        v = tl.where(h >= theta, rest, h)
    else:
        v = tl.where(h >= theta, h - theta, h)
    return v


@triton.jit
def signed(v, c, x, theta):
    """An IF neuron that can take a spike back."""
    v = v + x
    counts = tl.where(v >= theta, 1.0, 0.0) - tl.where((v < 0.0) & (c > 0.0), 1.0, 0.0)
    value = counts * theta
    return counts, value, v - value, c + counts


@triton.jit
def remainder(a, n, b):
    """a - n * b, rounded once."""
    if INTERPRETED:  # whose fused multiply-add rounds twice
        result = (a.to(tl.float64) - n.to(tl.float64) * b.to(tl.float64)).to(tl.float32)
    else:
        result = tl.fma(-n, b, a)
    return result


@triton.jit
def power_of_two(x):
    """The largest one that is not above abs(x)."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def nearest_units(r, q, scaled, reciprocal, levels):
    """clip(round(r / q), -levels, levels), halves to even, of a quotient that is rounded to float32 before.

    scaled * reciprocal is that quotient, but for less than a half: it says between which whole numbers the result lies.
    The quotient is rounded to the half between them, and on to the even one, if r is nearer to half * q than `tie`.
    """
    below = tl.maximum(tl.fma(scaled, reciprocal, -0.5), -levels, propagate_nan=tl.PropagateNan.ALL)
    shifted = tl.minimum(below, levels - 1.0, propagate_nan=tl.PropagateNan.ALL) + ROUND
    below = shifted - ROUND
    half = below + 0.5
    tie = q * (power_of_two(half) * HALF_ULP)
    is_odd = shifted.to(tl.int32, bitcast=True) << 31  # as a sign
    tie = (tie.to(tl.int32, bitcast=True) ^ is_odd).to(tl.float32, bitcast=True)
    return below + tl.where(remainder(r, half, q) > tie, 1.0, 0.0)


@triton.jit
def nearest_power(size, theta, estimate):
    """The power of two 2^k, at least 0.75 * 2^k and less than 1.5 * 2^k of which size / theta is, rounded to float32.

    The estimate of the quotient may be off by less than a quarter of it.
    """
    power = power_of_two(estimate)
    border = 1.5 * power
    reached = remainder(size, border, theta) > -theta * (power * HALF_ULP)
    return power + tl.where(reached, power, 0.0)


@triton.jit
def refine(
    m, o, x, theta, reciprocal, power, inverse_power, levels, dead_zone, lower, upper,
    KIND: tl.constexpr, DIFFERENTIAL: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Delta and differential neurons; `levels` is K, or 2^(n-1); what they follow is clamped to lower ... upper.

    The reciprocals are estimates.
    """
    if DIFFERENTIAL:
        m = m + x
    else:
        m = x
    r = tl.maximum(m, lower, propagate_nan=tl.PropagateNan.ALL)
    if CAPPED:
        r = tl.minimum(r, upper, propagate_nan=tl.PropagateNan.ALL)
    r = r - o
    if KIND == "delta":
        q = theta * power
        counts = nearest_units(r, q, r * inverse_power, reciprocal, levels)
        counts = tl.where(tl.abs(r) <= dead_zone * q, 0.0, counts)
        value = counts * q
    else:
        size = tl.minimum(nearest_power(tl.abs(r), theta, tl.abs(r) * reciprocal), 1.0)
        size = tl.where((size * levels >= 1.0) & (r == r), size, 0.0)  # of NaN, none is reached
        size = tl.where(r < 0.0, -size, size)
        counts = size * levels
        value = size * theta
    return counts, value, m, o + value


@triton.jit(do_not_specialize=["time_steps", "t"])
def forward_kernel(
    x_ptr,
    residual_ptr,
    sequence_ptr,
    total_ptr,
    before_0_ptr,
    before_1_ptr,
    after_0_ptr,
    after_1_ptr,
    theta_ptr,
    bias_ptr,
    tau_ptr,
    theta,
    bias,
    reciprocal_tau,
    rest,
    v_init,
    gamma,
    power,
    levels,
    dead_zone,
    lower,
    upper,
    numel,
    channels,
    inner,
    x_stride,
    residual_stride,
    sequence_stride,
    time_steps,
    t,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    DIFFERENTIAL: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All steps of one block of neurons. Pointers are None for what is not there."""
    REFINES: tl.constexpr = KIND == "delta" or KIND == "differential"
    offsets, mask, channel = block_of(numel, channels, inner, WIDE, BLOCK)
    theta = load_parameter(theta_ptr, theta, channel, mask)
    bias = load_parameter(bias_ptr, bias, channel, mask)
    if tau_ptr is not None:
        reciprocal_tau = tl.load(tau_ptr).to(tl.float32)
    first = initial(before_0_ptr, theta, rest, v_init, offsets, mask, BLOCK)
    second = tl.zeros([BLOCK], tl.float32)
    if before_1_ptr is not None:
        second = tl.load(before_1_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    reciprocal = tl.minimum(1.0 / theta, LARGEST_RECIPROCAL)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(time_steps):
        x = load_input(x_ptr, residual_ptr, offsets, mask)
        if REFINES and DIFFERENTIAL:
            x = tl.where(t == 0, x + bias, x)
        else:
            x = x + bias
        if REFINES:
            counts, value, first, second = refine(
                first, second, x, theta, reciprocal, power, 1.0 / power, levels, dead_zone, lower, upper, KIND,
                DIFFERENTIAL, CAPPED,
            )  # fmt: skip
            power = tl.maximum(power * gamma, SMALLEST_LEVEL)
        elif KIND == "signed":
            counts, value, first, second = signed(first, second, x, theta)
        else:
            h = charge(first, x, reciprocal_tau, rest, KIND == "lif", DECAY_INPUT)
            counts = tl.where(h >= theta, 1.0, 0.0)
            value = counts * theta
            first = reset(h, theta, rest, HARD)
        y = value if SCALED else counts
        if sequence_ptr is not None:
            tl.store(sequence_ptr + offsets, y.to(sequence_ptr.dtype.element_ty), mask=mask)
            sequence_ptr += sequence_stride
        if total_ptr is not None:
            total += y
        x_ptr += x_stride
        if residual_ptr is not None:
            residual_ptr += residual_stride
        t += 1
    if total_ptr is not None:
        tl.store(total_ptr + offsets, total.to(total_ptr.dtype.element_ty), mask=mask)
    if after_0_ptr is not None:
        tl.store(after_0_ptr + offsets, first, mask=mask)
    if after_1_ptr is not None:
        tl.store(after_1_ptr + offsets, second, mask=mask)


@triton.jit
def block_of(numel, channels, inner, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The offsets of this program's neurons in a step, which of them exist, and their channels."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    return offsets, offsets < numel, (offsets // inner) % channels


@triton.jit
def initial(before_ptr, theta, rest, v_init, offsets, mask, BLOCK: tl.constexpr):
    """The state before the first step: that of an earlier call, or the coding's."""
    if before_ptr is not None:
        value = tl.load(before_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    else:
        # an infinite theta leaves no NaN behind
        value = tl.zeros([BLOCK], tl.float32) + tl.where(v_init != 0.0, v_init * theta + rest, rest)
    return value


@triton.jit
def surrogate_gradient(x, alpha, SURROGATE: tl.constexpr):
    """The derivative of the primitive, as in `snnzoo.surrogate`."""
    if SURROGATE == "ATan":
        scaled = 1.5707963267948966 * alpha * x
        slope = 0.5 * alpha / (1.0 + scaled * scaled)
    elif SURROGATE == "Sigmoid":
        p = 1.0 / (1.0 + tl.exp(-alpha * x))
        slope = alpha * p * (1.0 - p)
    else:
        tl.static_assert(SURROGATE == "PiecewiseQuadratic")
        slope = tl.maximum(alpha - alpha * alpha * tl.abs(x), 0.0)
    return slope


@triton.jit
def load_gradient(grad_sequence_ptr, grad_total, offsets, mask):
    """That of a step's output, in float32: what reaches the sequence, and the sum over time."""
    grad_s = grad_total
    if grad_sequence_ptr is not None:
        grad_s = grad_s + tl.load(grad_sequence_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    return grad_s


@triton.jit
def walk_back(
    v,
    grad_v,
    grad_tau,
    x_ptr,
    residual_ptr,
    grad_sequence_ptr,
    grad_x_ptr,
    grad_total,
    remaining,
    offsets,
    mask,
    theta,
    spike_value,
    bias,
    reciprocal_tau,
    rest,
    alpha,
    numel,
    x_stride,
    residual_stride,
    grad_stride,
    LEAKY: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    HARD: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
    LEARN_TAU: tl.constexpr,
    STEPS: tl.constexpr,
    IS_FIRST: tl.constexpr,
    SELF: tl.constexpr,
):
    """Forward through STEPS steps by calling itself (SELF), and back through them on return.

    Inlined, that is an unrolled loop that keeps every h[t] in registers until its gradient is due. On the way back each
    step loads what the step before needs ahead of its own store, which the load would have to wait for, and returns it.
    """
    here = mask & (remaining > 0)
    x = load_input(x_ptr, residual_ptr, offsets, here) + bias
    h = charge(v, x, reciprocal_tau, rest, LEAKY, DECAY_INPUT)
    if STEPS > 1:
        next_residual_ptr = residual_ptr
        if residual_ptr is not None:
            next_residual_ptr = residual_ptr + residual_stride
        next_grad_ptr = grad_sequence_ptr
        if grad_sequence_ptr is not None:
            next_grad_ptr = grad_sequence_ptr + grad_stride
        grad_v, grad_tau, grad_s = SELF(
            reset(h, theta, rest, HARD),
            grad_v,
            grad_tau,
            x_ptr + x_stride,
            next_residual_ptr,
            next_grad_ptr,
            grad_x_ptr + numel,
            grad_total,
            remaining - 1,
            offsets,
            mask,
            theta,
            spike_value,
            bias,
            reciprocal_tau,
            rest,
            alpha,
            numel,
            x_stride,
            residual_stride,
            grad_stride,
            LEAKY,
            DECAY_INPUT,
            HARD,
            DETACH,
            SURROGATE,
            LEARN_TAU,
            STEPS - 1,
            False,
            SELF,
        )
    else:
        grad_s = load_gradient(grad_sequence_ptr, grad_total, offsets, here)
    grad_s_before = grad_s
    if not IS_FIRST:
        before_ptr = grad_sequence_ptr
        if grad_sequence_ptr is not None:
            before_ptr = grad_sequence_ptr - grad_stride
        grad_s_before = load_gradient(before_ptr, grad_total, offsets, mask & (remaining >= 0))
    slope = surrogate_gradient(h - theta, alpha, SURROGATE)
    if HARD:
        through = tl.where(h >= theta, 0.0, 1.0)
        if not DETACH:
            through += (rest - h) * slope
    else:
        through = tl.zeros_like(h) + 1.0
        if not DETACH:
            through -= theta * slope
    grad_h = grad_s * spike_value * slope + grad_v * through
    grad_x = grad_h
    before = grad_h
    if LEAKY:
        before = grad_h * (1.0 - reciprocal_tau)
        if DECAY_INPUT:
            grad_x = grad_h * reciprocal_tau
        if LEARN_TAU:
            leak = v - rest
            if DECAY_INPUT:
                leak = leak - x
            grad_tau -= tl.where(here, grad_h * leak, 0.0)
    tl.store(grad_x_ptr + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=here)
    return tl.where(remaining > 0, before, grad_v), grad_tau, grad_s_before


@triton.jit(do_not_specialize=["time_steps"])
def backward_kernel(
    x_ptr,
    residual_ptr,
    before_ptr,
    grad_sequence_ptr,
    grad_total_ptr,
    grad_after_ptr,
    grad_x_ptr,
    grad_before_ptr,
    grad_tau_ptr,
    checkpoint_ptr,
    theta_ptr,
    bias_ptr,
    tau_ptr,
    theta,
    bias,
    reciprocal_tau,
    rest,
    v_init,
    alpha,
    numel,
    channels,
    inner,
    x_stride,
    residual_stride,
    grad_stride,
    time_steps,
    LEAKY: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    HARD: tl.constexpr,
    DETACH: tl.constexpr,
    SCALED: tl.constexpr,
    SURROGATE: tl.constexpr,
    STEPS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of one block of neurons, in groups of STEPS steps; v before each group waits in checkpoints."""
    LEARN_TAU: tl.constexpr = grad_tau_ptr is not None
    offsets, mask, channel = block_of(numel, channels, inner, WIDE, BLOCK)
    theta = load_parameter(theta_ptr, theta, channel, mask)
    bias = load_parameter(bias_ptr, bias, channel, mask)
    spike_value = theta if SCALED else 1.0
    if tau_ptr is not None:
        reciprocal_tau = tl.load(tau_ptr).to(tl.float32)
    v = initial(before_ptr, theta, rest, v_init, offsets, mask, BLOCK)
    earlier = (time_steps - 1) // STEPS  # groups before the last one
    for _group in range(earlier):
        tl.store(checkpoint_ptr + offsets, v, mask=mask)
        checkpoint_ptr += numel
        for _step in range(STEPS):
            x = load_input(x_ptr, residual_ptr, offsets, mask) + bias
            v = reset(charge(v, x, reciprocal_tau, rest, LEAKY, DECAY_INPUT), theta, rest, HARD)
            x_ptr += x_stride
            if residual_ptr is not None:
                residual_ptr += residual_stride
            if grad_sequence_ptr is not None:
                grad_sequence_ptr += grad_stride
            grad_x_ptr += numel
    grad_v = tl.zeros([BLOCK], tl.float32)
    if grad_after_ptr is not None:
        grad_v = tl.load(grad_after_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    grad_total = tl.zeros([BLOCK], tl.float32)
    if grad_total_ptr is not None:
        grad_total = tl.load(grad_total_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    grad_tau = tl.zeros([BLOCK], tl.float32)
    remaining = time_steps - earlier * STEPS
    for group in range(earlier + 1):
        grad_v, grad_tau, _ = walk_back(
            v,
            grad_v,
            grad_tau,
            x_ptr,
            residual_ptr,
            grad_sequence_ptr,
            grad_x_ptr,
            grad_total,
            remaining,
            offsets,
            mask,
            theta,
            spike_value,
            bias,
            reciprocal_tau,
            rest,
            alpha,
            numel,
            x_stride,
            residual_stride,
            grad_stride,
            LEAKY,
            DECAY_INPUT,
            HARD,
            DETACH,
            SURROGATE,
            LEARN_TAU,
            STEPS,
            True,
            walk_back,
        )
        remaining = STEPS
        checkpoint_ptr -= numel
        v = tl.load(checkpoint_ptr + offsets, mask=mask & (group < earlier), other=0.0)
        for _step in tl.static_range(STEPS):  # a product of 32-bit numbers might overflow
            x_ptr -= x_stride
            if residual_ptr is not None:
                residual_ptr -= residual_stride
            if grad_sequence_ptr is not None:
                grad_sequence_ptr -= grad_stride
            grad_x_ptr -= numel
    tl.store(grad_before_ptr + offsets, grad_v, mask=mask)
    if LEARN_TAU:
        tl.store(grad_tau_ptr + tl.program_id(0), tl.sum(grad_tau, axis=0))
