// Neurons, all time steps in one pass over memory: one tile of neurons after the other, whose state stays in cache.

#include "compiled_neurons.h"

namespace {

constexpr int64_t TILE = 512;  // all arrays of a tile fit the first cache
constexpr int64_t BLOCK = 64;  // elements that are computed while as many are on their way from memory
constexpr int64_t LINE = 64 / sizeof(T);

struct alignas(64) Tile {
    T theta[TILE], bias[TILE], first[TILE], zeros[TILE], state[2][TILE], output[TILE], total[TILE];
    int64_t channel = -1;  // of the first element that theta, bias and first were spread for
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

// Calls `copy(place in the states, place in the tile, elements)` for each run of a tile that lies together there.
template <class Copy>
void by_rows(const Call &call, int64_t start, int64_t length, const Copy &copy) {
    if (!call.rows) return copy(start, 0, length);
    for (int64_t run, done = 0; done < length; done += run) {
        const int64_t row = (start + done) / call.row_elements, column = (start + done) % call.row_elements;
        run = std::min(call.row_elements - column, length - done);
        copy(call.rows[row] * call.row_elements + column, done, run);
    }
}

void begin(const Call &call, Tile &tile, int64_t start, int64_t length) {
    const int64_t channel = start % call.channels;
    if (call.inner > 1 || channel != tile.channel) {  // else as in the tile before
        spread(call, call.theta, tile.theta, start, length);
        spread(call, call.bias, tile.bias, start, length);
        if (call.first) spread(call, call.first, tile.first, start, length);
        tile.channel = channel;
    }
    std::fill_n(tile.state[1], length, T(0));
    if (call.first) std::copy_n(tile.first, length, tile.state[0]);
    for (int k = 0; k < 2; k++)
        if (call.before[k])
            by_rows(call, start, length, [&](int64_t from, int64_t to, int64_t run) {
                std::copy_n(call.before[k] + from, run, tile.state[k] + to);
            });
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
        if (call.after[k])
            by_rows(call, start, length, [&](int64_t to, int64_t from, int64_t run) {
                std::copy_n(tile.state[k] + from, run, call.after[k] + to);
            });
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

}  // namespace

extern "C" void snnzoo_multi_step_neuron(const Call *call) {
    with_neuron(*call, [&](const auto &neuron) { run(*call, neuron); });
}
