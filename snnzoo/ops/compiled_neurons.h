// The neuron equations of `snnzoo.codings`, and what a call of theirs is given. Every operation rounds as in the
// reference, so that results are equal: whoever builds this must neither let a product and a sum contract into one
// operation, nor take arithmetic for associative.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

using T = SNNZOO_DTYPE;  // float or double

// A call, field by field as `snnzoo.ops.compiled.Call`. A step of `elements` neurons is, in memory,
// [outer, channels, inner].
struct Call {
    const char *coding, *activation;                     // names, as in `with_neuron` and `with_activation`
    const double *coding_numbers, *activation_numbers;   // their settings
    const double *spike_values;                          // [time_steps], in thresholds
    const T *x, *residual;                               // [time_steps, elements]; residual: or null
    const T *theta, *bias;                               // [channels]
    const T *first, *before[2];                          // the first state, [channels], or the states [elements]; or null
    void *sequence;                                      // what is asked for; or null
    T *total, *after[2];
    int64_t *events;                                     // [time_steps, positions], outputs that are not 0; or null
    const int64_t *rows;                                 // [outer], where in the states; null if these are of so many
    int64_t x_stride, residual_stride, sequence_stride;  // from step to step, in elements
    int64_t time_steps, elements, channels, inner;
    int64_t biased_steps;                                // the bias enters in the first so many
    int64_t position_run, positions;                     // element i is at position i / position_run % positions
    int64_t row_elements;                                // elements / outer
    int64_t forgets;                                     // whether the first state is 0 before each step
    int64_t scaled, is_int8;                             // is_int8: the sequence, of whole units
    int64_t threads;
};

namespace {

// Activations: f(m), operation by operation as in PyTorch.

struct Clamp {
    T minimum, maximum;

    T operator()(T m) const {
        const T low = m < minimum ? minimum : m;
        return low > maximum ? maximum : low;
    }
};

struct LeakyReLU {
    T slope;

    T operator()(T m) const { return m > 0 ? m : m * slope; }
};

struct Hardsigmoid {
    static T six_times(T m) { return Clamp{0, 6}(m + 3); }

    T operator()(T m) const { return six_times(m) / 6; }
};

struct Hardswish {
    T operator()(T m) const { return m * Hardsigmoid::six_times(m) / 6; }
};

// Codings: one step of one neuron. `count` becomes its output in whole units; what that is worth is returned.

struct Charge {
    T operator()(T v, T x) const { return v + x; }
};

struct Leak {
    T reciprocal_tau, rest;

    T operator()(T v, T x) const { return v - (v - rest) * reciprocal_tau + x; }
};

struct LeakWithInput {
    T reciprocal_tau, rest;

    T operator()(T v, T x) const { return v + (x - (v - rest)) * reciprocal_tau; }
};

template <class Charging>
struct SoftReset {
    static constexpr int STATES = 1;
    Charging charged;

    T operator()(T x, T theta, T, T &v, T &, T &count) const {
        const T h = charged(v, x);
        count = h >= theta ? 1 : 0;
        const T value = count * theta;
        v = h - value;
        return value;
    }
};

template <class Charging>
struct HardReset {
    static constexpr int STATES = 1;
    Charging charged;
    T v_reset;

    T operator()(T x, T theta, T, T &v, T &, T &count) const {
        const T h = charged(v, x);
        count = h >= theta ? 1 : 0;
        v = count * v_reset + (1 - count) * h;
        return count * theta;
    }
};

struct Signed {
    static constexpr int STATES = 2;

    T operator()(T x, T theta, T, T &v, T &c, T &count) const {
        const T h = v + x;
        count = T(h >= theta) - T((h < 0) & (c > 0));
        const T value = count * theta;
        v = h - value;
        c = c + count;
        return value;
    }
};

template <class Activation>
struct Delta {
    static constexpr int STATES = 2;
    Activation activation;
    T levels, dead_zone;

    T operator()(T x, T theta, T spike_value, T &m, T &o, T &count) const {
        const T q = theta * spike_value, margin = dead_zone * q;
        m = m + x;
        const T r = activation(m) - o;
        count = Clamp{-levels, levels}(std::rint(r / q));
        count = std::abs(r) <= margin ? 0 : count;
        const T value = count * q;
        o = o + value;
        return value;
    }
};

// The largest power of two 2^-k with r >= 0.75 * 2^-k = 1.5 * 2^-(k+1) is r's exponent, or the next if its mantissa is
// 1.5 or more: adding half a mantissa carries into the exponent just then.
template <class Activation>
struct Differential {
    static constexpr int STATES = 2;
    Activation activation;
    T smallest;

    T operator()(T x, T theta, T, T &m, T &o, T &count) const {
        using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
        constexpr int MANTISSA = std::numeric_limits<T>::digits - 1;
        constexpr Bits HALF = Bits(1) << (MANTISSA - 1), EXPONENT = (~Bits(0) >> (MANTISSA + 1)) << MANTISSA;
        m = m + x;
        const T r = (activation(m) - o) / theta, size = std::abs(r);
        Bits bits;
        std::memcpy(&bits, &size, sizeof bits);
        bits = (bits + HALF) & EXPONENT;
        T power;
        std::memcpy(&power, &bits, sizeof bits);
        power = std::copysign(power > 1 ? 1 : power < smallest ? 0 : power, r);
        const T value = power * theta;
        count = power / smallest;
        o = o + value;
        return value;
    }
};

template <class Run>
void with_activation(const Call &call, const Run &run_with) {
    const std::string name = call.activation;
    const double *numbers = call.activation_numbers;
    if (name == "clamp") run_with(Clamp{T(numbers[0]), T(numbers[1])});
    if (name == "leaky_relu") run_with(LeakyReLU{T(numbers[0])});
    if (name == "hardswish") run_with(Hardswish{});
    if (name == "hardsigmoid") run_with(Hardsigmoid{});
}

template <class Charging, class Run>
void with_reset(const Call &call, Charging charged, const Run &run_with) {
    const double v_reset = call.coding_numbers[0];
    if (std::isnan(v_reset)) run_with(SoftReset<Charging>{charged});
    if (!std::isnan(v_reset)) run_with(HardReset<Charging>{charged, T(v_reset)});
}

// Gives `run_with` the neuron that a call names.
template <class Run>
void with_neuron(const Call &call, const Run &run_with) {
    const std::string name = call.coding;
    const double *numbers = call.coding_numbers;
    const T number = numbers[1], rest = std::isnan(numbers[0]) ? 0 : numbers[0];
    if (name == "integrate") with_reset(call, Charge{}, run_with);
    if (name == "leak") with_reset(call, Leak{number, rest}, run_with);
    if (name == "leak with input") with_reset(call, LeakWithInput{number, rest}, run_with);
    if (name == "signed") run_with(Signed{});
    if (name == "delta")
        with_activation(call, [&](auto f) { run_with(Delta<decltype(f)>{f, number, T(numbers[2])}); });
    if (name == "differential")
        with_activation(call, [&](auto f) { run_with(Differential<decltype(f)>{f, number}); });
}

}  // namespace
