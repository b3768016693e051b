// The neuron equations of `snnzoo.codings`, all time steps in one pass over memory: one tile of neurons after the other,
// whose state stays in cache. Every operation rounds as in the reference, so that results are equal: whoever builds this
// must neither let a product and a sum contract into one operation, nor take arithmetic for associative.

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
    const char *coding, *activation;                     // names, as at the end of this file
    const double *coding_numbers, *activation_numbers;   // their settings
    const double *spike_values;                          // [time_steps], in thresholds
    const T *x, *residual;                               // [time_steps, elements]; residual: or null
    const T *theta, *bias;                               // [channels]
    const T *first, *before[2];                          // the first state, [channels], or the states [elements]; or null
    void *sequence;                                      // what is asked for; or null
    T *total, *after[2];
    int64_t *events;                                     // [time_steps, positions], outputs that are not 0; or null
    int64_t x_stride, residual_stride, sequence_stride;  // from step to step, in elements
    int64_t time_steps, elements, channels, inner;
    int64_t biased_steps;                                // the bias enters in the first so many
    int64_t position_run, positions;                     // element i is at position i / position_run % positions
    int64_t forgets;                                     // whether the first state is 0 before each step
    int64_t scaled, is_int8;                             // is_int8: the sequence, of whole units
    int64_t threads;
};

namespace {

constexpr int64_t TILE = 512;  // all arrays of a tile fit the first cache
constexpr int64_t BLOCK = 64;  // elements that are computed while as many are on their way from memory
constexpr int64_t LINE = 64 / sizeof(T);

struct alignas(64) Tile {
    T theta[TILE], bias[TILE], zeros[TILE], state[2][TILE], output[TILE], total[TILE];
};

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

// What each channel has, for each element of a tile.
void spread(const Call &call, const T *of_channels, T *tile, int64_t start, int64_t length) {
    int64_t channel = start / call.inner % call.channels;
    if (call.inner == 1) {
        for (int64_t run, done = 0; done < length; done += run, channel = 0) {
            run = std::min(call.channels - channel, length - done);
            std::copy_n(of_channels + channel, run, tile + done);
        }
        return;
    }
    for (int64_t run = call.inner - start % call.inner, done = 0; done < length; done += run, run = call.inner) {
        run = std::min(run, length - done);
        std::fill_n(tile + done, run, of_channels[channel]);
        channel = channel + 1 == call.channels ? 0 : channel + 1;
    }
}

void count_events(const Call &call, const T *y, int64_t *events, int64_t start, int64_t length) {
    int64_t position = start / call.position_run % call.positions;
    if (call.position_run == 1) {
        for (int64_t run, done = 0; done < length; done += run, position = 0) {
            run = std::min(call.positions - position, length - done);
            for (int64_t i = 0; i < run; i++) events[position + i] += y[done + i] != 0;
        }
        return;
    }
    const int64_t whole = call.position_run;
    for (int64_t run = whole - start % whole, done = 0; done < length; done += run, run = whole) {
        run = std::min(run, length - done);
        int32_t found = 0;
        for (int64_t i = 0; i < run; i++) found += y[done + i] != 0;
        events[position] += found;
        position = position + 1 == call.positions ? 0 : position + 1;
    }
}

void begin(const Call &call, Tile &tile, int64_t start, int64_t length) {
    spread(call, call.theta, tile.theta, start, length);
    spread(call, call.bias, tile.bias, start, length);
    std::fill_n(tile.state[1], length, T(0));
    if (call.first) spread(call, call.first, tile.state[0], start, length);
    for (int k = 0; k < 2; k++)
        if (call.before[k]) std::copy_n(call.before[k] + start, length, tile.state[k]);
}

// Beside the step's outputs `y`, what else is asked for.
void keep(const Call &call, Tile &tile, const T *y, int64_t *events, int64_t t, int64_t start, int64_t length) {
    if (events) count_events(call, y, events + t * call.positions, start, length);
    if (call.sequence && call.is_int8)
        std::copy_n(y, length, static_cast<int8_t *>(call.sequence) + t * call.sequence_stride + start);
    if (call.total && t == 0) std::copy_n(y, length, tile.total);
    if (call.total && t > 0)
        for (int64_t i = 0; i < length; i++) tile.total[i] = tile.total[i] + y[i];
}

void finish(const Call &call, const Tile &tile, int64_t start, int64_t length) {
    for (int k = 0; k < 2; k++)
        if (call.after[k]) std::copy_n(tile.state[k], length, call.after[k] + start);
    if (call.total) std::copy_n(tile.total, length, call.total + start);
}

template <bool SENDS_COUNTS, class Neuron>
void run_step(const Call &call, Neuron neuron, Tile &tile, int64_t *events, int64_t t, int64_t start, int64_t length) {
    const bool is_last = t + 1 == call.time_steps, writes = call.sequence && !call.is_int8;
    const T spike_value = call.spike_values[t], *theta = tile.theta;
    const T *x = call.x + t * call.x_stride + start;
    const T *residual = call.residual ? call.residual + t * call.residual_stride + start : tile.zeros;
    const T *before = call.forgets ? tile.zeros : tile.state[0];
    const T *bias = t < call.biased_steps ? tile.bias : tile.zeros;
    T *y = writes ? static_cast<T *>(call.sequence) + t * call.sequence_stride + start : tile.output;
    T *first = tile.state[0], *second = tile.state[1];
    // from here to what the next call works on: the next step, or the next tile's first
    const int64_t x_ahead = is_last ? length - t * call.x_stride : call.x_stride;
    const int64_t residual_ahead = is_last ? length - t * call.residual_stride : call.residual_stride;
    const int64_t y_ahead = is_last ? length - t * call.sequence_stride : call.sequence_stride;
    for (int64_t block = 0; block < length; block += BLOCK) {
        const int64_t end = std::min(block + BLOCK, length);
        for (int64_t i = block; i < end; i += LINE) __builtin_prefetch(x + x_ahead + i);
        for (int64_t i = block; call.residual && i < end; i += LINE) __builtin_prefetch(residual + residual_ahead + i);
        for (int64_t i = block; writes && i < end; i += LINE) __builtin_prefetch(y + y_ahead + i, 1);
#pragma omp simd
        for (int64_t i = block; i < end; i++) {
            T count, a = before[i], b = Neuron::STATES > 1 ? second[i] : 0;
            const T value = neuron(x[i] + residual[i] + bias[i], theta[i], spike_value, a, b, count);
            y[i] = SENDS_COUNTS ? count : value;
            first[i] = a;
            if (Neuron::STATES > 1) second[i] = b;
        }
    }
    keep(call, tile, y, events, t, start, length);
}

template <class Neuron>
void run(const Call &call, const Neuron &neuron) {
    const bool sends_counts = !call.scaled || (call.sequence && call.is_int8);
    const auto step = sends_counts ? run_step<true, Neuron> : run_step<false, Neuron>;
#pragma omp parallel num_threads(call.threads)
    {
        Tile tile;
        std::fill_n(tile.zeros, TILE, T(0));
        std::vector<int64_t> events(call.events ? call.time_steps * call.positions : 0);
#pragma omp for schedule(static)
        for (int64_t start = 0; start < call.elements; start += TILE) {
            const int64_t length = std::min(TILE, call.elements - start);
            begin(call, tile, start, length);
            for (int64_t t = 0; t < call.time_steps; t++)
                step(call, neuron, tile, call.events ? events.data() : nullptr, t, start, length);
            finish(call, tile, start, length);
        }
#pragma omp critical
        for (size_t i = 0; i < events.size(); i++) call.events[i] += events[i];
    }
}

template <class Run>
void with_activation(const Call &call, const Run &run_with) {
    const std::string name = call.activation;
    const double *numbers = call.activation_numbers;
    if (name == "clamp") run_with(Clamp{T(numbers[0]), T(numbers[1])});
    if (name == "leaky_relu") run_with(LeakyReLU{T(numbers[0])});
    if (name == "hardswish") run_with(Hardswish{});
    if (name == "hardsigmoid") run_with(Hardsigmoid{});
}

template <class Charging>
void run_charged(const Call &call, Charging charged) {
    const double v_reset = call.coding_numbers[0];
    std::isnan(v_reset) ? run(call, SoftReset<Charging>{charged}) : run(call, HardReset<Charging>{charged, T(v_reset)});
}

}  // namespace

extern "C" void snnzoo_multi_step_neuron(const Call *call) {
    const std::string name = call->coding;
    const double *numbers = call->coding_numbers;
    const T number = numbers[1], rest = std::isnan(numbers[0]) ? 0 : numbers[0];
    if (name == "integrate") run_charged(*call, Charge{});
    if (name == "leak") run_charged(*call, Leak{number, rest});
    if (name == "leak with input") run_charged(*call, LeakWithInput{number, rest});
    if (name == "signed") run(*call, Signed{});
    if (name == "delta")
        with_activation(*call, [&](auto f) { run(*call, Delta<decltype(f)>{f, number, T(numbers[2])}); });
    if (name == "differential")
        with_activation(*call, [&](auto f) { run(*call, Differential<decltype(f)>{f, number}); });
}
