// A neuron, the depthwise convolution behind it and a neuron behind that, all time steps in one pass over memory, which
// is channels-last. An image is walked through row by row: the last rows of spikes that the convolution reaches, of all
// steps, stay in cache, and what it gives never leaves it.

#include <functional>
#include <numeric>

#include "compiled_neurons.h"

// As `snnzoo.ops.depthwise.Convolution`; two neighbours are what belongs to rows, and to columns.
struct Convolution {
    const T *weight;  // [kernel, kernel, channels]
    int64_t images, size[2], out_size[2], kernel[2], stride[2], padding[2], dilation[2];
};

namespace {

constexpr int64_t LANES = 128 / sizeof(T);   // channels of a block
constexpr int64_t HALF = LANES / 2;          // of a block may be there, without the rest
constexpr int64_t TOGETHER = 4;              // neighbours in a row that share what is loaded of the weights
constexpr int64_t AHEAD = 1024 / sizeof(T);  // elements that are on their way from memory
constexpr int64_t LINE = 64 / sizeof(T);

#ifdef __AVX512F__
constexpr int64_t WIDTH = 64 / sizeof(T);
#else
constexpr int64_t WIDTH = 32 / sizeof(T);
#endif
typedef T Vector __attribute__((vector_size(WIDTH * sizeof(T))));

inline Vector load(const T *from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// x * y + sum, rounded once where the CPU does that in one operation, as convolutions of PyTorch do.
inline Vector multiply_add(Vector x, Vector y, Vector sum) {
#if defined(__FMA__) || defined(__aarch64__)
    for (int64_t i = 0; i < WIDTH; i++) sum[i] = std::fma(x[i], y[i], sum[i]);
    return sum;
#else
    return x * y + sum;
#endif
}

// Zeros at first, in whole lines of cache: vectors that lie across two take twice as long.
class Array {
  public:
    void resize(int64_t size) { lines.resize((size + LINE - 1) / LINE); }
    T *data() { return lines.data()->values; }

  private:
    struct alignas(64) Line {
        T values[LINE] = {};
    };
    std::vector<Line> lines;
};

// The parameters of a block's neurons, of which only so many are there.
struct alignas(64) Block {
    T theta[LANES], bias[LANES] = {}, zeros[LANES] = {}, first[LANES] = {};
    int64_t lanes;

    Block(const Call &call, int64_t channel) : lanes(std::min(LANES, call.channels - channel)) {
        std::fill_n(theta, LANES, T(1));
        std::copy_n(call.theta + channel, lanes, theta);
        std::copy_n(call.bias + channel, lanes, bias);
        if (call.first) std::copy_n(call.first + channel, lanes, first);
    }
};

// Blocks of neurons that are run one after the other: how far apart they are, and where the first is, in all arrays.
struct Places {
    int64_t count, index, index_apart;  // in a step
    const Block *block;
    int64_t block_apart;
    T *x;
    int64_t x_apart, x_stride;  // x_stride, y_stride: from step to step
    T *y;
    int64_t y_apart, y_stride;
};

// All steps of blocks of neurons. Where channels fill no half of a block, it is run in a place of its own.
template <bool SENDS_COUNTS, class Neuron>
void fire(const Call &call, const Neuron &neuron, Places at) {
    alignas(64) T first[LANES], second[LANES], total[LANES], some_x[LANES], some_y[LANES], start[2][LANES];
    for (; at.count > 0; at.count--) {
        const Block &block = *at.block;
        const int64_t lanes = block.lanes;
        const bool is_odd = lanes % HALF;
        const T *before[2] = {block.first, block.zeros};
        for (int k = 0; k < 2; k++) {
            if (!call.before[k]) continue;
            before[k] = call.before[k] + at.index;
            if (is_odd) before[k] = std::copy_n(before[k], lanes, start[k]) - lanes;
        }
        if (is_odd) std::copy_n(block.zeros, LANES, some_x);
        for (int64_t t = 0; t < call.time_steps; t++) {
            const T spike_value = call.spike_values[t], *bias = t < call.biased_steps ? block.bias : block.zeros;
            const T *a_before = call.forgets ? block.zeros : t == 0 ? before[0] : first;
            const T *b_before = t == 0 ? before[1] : second, *x = at.x + t * at.x_stride;
            T *y = is_odd ? some_y : at.y + t * at.y_stride;
            for (int64_t i = 0; i < LANES; i += LINE) __builtin_prefetch(x + AHEAD + i);
            if (is_odd) x = std::copy_n(x, lanes, some_x) - lanes;
            for (int64_t half = 0; half < lanes; half += HALF)
#pragma omp simd
                for (int64_t i = half; i < half + HALF; i++) {
                    T count, a = a_before[i], b = Neuron::STATES > 1 ? b_before[i] : 0;
                    const T value = neuron(x[i] + bias[i], block.theta[i], spike_value, a, b, count);
                    y[i] = SENDS_COUNTS ? count : value;
                    first[i] = a;
                    if (Neuron::STATES > 1) second[i] = b;
                }
            for (int64_t i = 0; call.total && i < lanes; i++) total[i] = t == 0 ? y[i] : total[i] + y[i];
            if (is_odd) std::copy_n(y, lanes, at.y + t * at.y_stride);
        }
        if (call.total) std::copy_n(total, lanes, call.total + at.index);
        if (call.after[0]) std::copy_n(first, lanes, call.after[0] + at.index);
        if (call.after[1]) std::copy_n(second, lanes, call.after[1] + at.index);
        at.index += at.index_apart, at.block += at.block_apart, at.x += at.x_apart, at.y += at.y_apart;
    }
}

using Fire = std::function<void(const Call &, const Places &)>;

// What PIXELS neighbours in a row of the output are, [PIXELS, LANES]. `rows`: where each row of the kernel begins.
template <int64_t PIXELS>
__attribute__((noinline)) void convolve(
    const Convolution &conv, int64_t channels, const T *const *rows, int64_t offset, const T *weight, T *sums
) {
    const int64_t apart = conv.stride[1] * channels, reach = conv.dilation[1] * channels;
    for (int64_t i = 0; i < LANES; i += 2 * WIDTH) {
        Vector low[PIXELS], high[PIXELS];  // as many as it takes to wait for none
#pragma GCC unroll 4
        for (int64_t p = 0; p < PIXELS; p++) low[p] = high[p] = Vector{};
        const T *tap = weight + i;
        for (int64_t row = 0; row < conv.kernel[0]; row++) {
            const T *x = rows[row] + offset + i;
            for (int64_t column = 0; column < conv.kernel[1]; column++, tap += channels, x += reach) {
                const Vector low_tap = load(tap), high_tap = load(tap + WIDTH);
#pragma GCC unroll 4
                for (int64_t p = 0; p < PIXELS; p++) {
                    low[p] = multiply_add(load(x + p * apart), low_tap, low[p]);
                    high[p] = multiply_add(load(x + p * apart + WIDTH), high_tap, high[p]);
                }
            }
        }
#pragma GCC unroll 4
        for (int64_t p = 0; p < PIXELS; p++) {
            std::memcpy(sums + p * LANES + i, &low[p], sizeof low[p]);
            std::memcpy(sums + p * LANES + i + WIDTH, &high[p], sizeof high[p]);
        }
    }
}

// One thread's walk through the channels from `start` to `end`.
class Walk {
  public:
    Walk(const Call &before, const Call &behind, const Convolution &conv, const Fire &fire, int64_t start, int64_t end)
        : before(before), behind(behind), conv(conv), fire(fire), steps(before.time_steps), start(start) {
        for (int64_t channel = start; channel < end; channel += LANES) {
            blocks.emplace_back(before, channel);
            blocks_behind.emplace_back(behind, channel);
        }
        channels = LANES * blocks.size();
        slots = (conv.kernel[0] - 1) * conv.dilation[0] + 1;
        const int64_t taps = conv.kernel[0] * conv.kernel[1], reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1;
        width = std::max(conv.padding[1] + conv.size[1], (conv.out_size[1] - 1) * conv.stride[1] + reach);
        spikes.resize(slots * steps * width * channels);  // what is beside the image stays 0
        zeros.resize(width * channels);
        sums.resize(steps * TOGETHER * LANES);
        weight.resize(taps * channels);
        rows.resize(steps * conv.kernel[0]);
        for (int64_t tap = 0; tap < taps; tap++)
            std::copy(conv.weight + tap * before.channels + start, conv.weight + tap * before.channels + end,
                      weight.data() + tap * channels);
    }

    // Rows `first` to `last` of an image's output.
    void run(int64_t image, int64_t first, int64_t last) {
        int64_t known = first == 0 ? 0 : std::max<int64_t>(0, first_row(first));
        for (int64_t row = first; row < last; row++) {
            const int64_t needed = std::min(conv.size[0], first_row(row) + slots);
            for (; known < needed; known++) fire_row(image, known);
            finish_row(image, row);
        }
        const bool is_end = last == conv.out_size[0];
        for (; is_end && known < conv.size[0]; known++) fire_row(image, known);  // nobody sees it, but for its state
    }

  private:
    const Call &before, &behind;
    const Convolution &conv;
    const Fire &fire;
    const int64_t steps, start;
    int64_t channels, slots, width;
    std::vector<Block> blocks, blocks_behind;
    Array spikes, zeros, sums, weight;  // spikes: [slots, steps, width, channels], a row in each slot
    std::vector<const T *> rows;                 // [steps, kernel]

    int64_t first_row(int64_t out_row) const { return out_row * conv.stride[0] - conv.padding[0]; }

    T *spikes_of(int64_t row, int64_t step) { return spikes.data() + (row % slots * steps + step) * width * channels; }

    void fire_row(int64_t image, int64_t row) {
        int64_t index = (image * conv.size[0] + row) * conv.size[1] * before.channels + start;
        T *x = const_cast<T *>(before.x), *y = spikes_of(row, 0) + conv.padding[1] * channels;
        const int64_t count = blocks.size(), apart = width * channels;
        for (int64_t column = 0; column < conv.size[1]; column++, index += before.channels, y += channels)
            fire(before, {count, index, LANES, blocks.data(), 1, x + index, LANES, before.x_stride, y, LANES, apart});
    }

    void finish_row(int64_t image, int64_t row) {
        for (int64_t t = 0; t < steps; t++)
            for (int64_t k = 0; k < conv.kernel[0]; k++) {
                const int64_t from = first_row(row) + k * conv.dilation[0];
                rows[t * conv.kernel[0] + k] = from >= 0 && from < conv.size[0] ? spikes_of(from, t) : zeros.data();
            }
        int64_t column = 0, index = (image * conv.out_size[0] + row) * conv.out_size[1] * behind.channels + start;
        for (; column + TOGETHER <= conv.out_size[1]; column += TOGETHER, index += TOGETHER * behind.channels)
            finish<TOGETHER>(column, index);
        for (; column < conv.out_size[1]; column++, index += behind.channels) finish<1>(column, index);
    }

    template <int64_t PIXELS>
    void finish(int64_t column, int64_t index) {
        T *sequence = static_cast<T *>(behind.sequence), *sum = sums.data();
        for (const Block &block : blocks_behind) {
            const int64_t channel = (&block - blocks_behind.data()) * LANES;
            const int64_t offset = column * conv.stride[1] * channels + channel;
            for (int64_t t = 0; t < steps; t++)
                convolve<PIXELS>(conv, channels, &rows[t * conv.kernel[0]], offset, weight.data() + channel, sum + t * PIXELS * LANES);
            Places at = {PIXELS, index + channel, behind.channels, &block, 0, sum, LANES, PIXELS * LANES, sum, LANES, PIXELS * LANES};
            if (sequence) at.y = sequence + at.index, at.y_apart = behind.channels, at.y_stride = behind.sequence_stride;
            fire(behind, at);
        }
    }
};

// Threads share images and, where that is too little for them, bands of rows. Rows at the border of two bands fire
// twice, which they must not where their state is kept, or the output takes the place of the input: then threads share
// channels.
void run(const Call &before, const Call &behind, const Convolution &conv, const Fire &fire) {
    const int64_t threads = before.threads, blocks = (before.channels + LANES - 1) / LANES;
    const int64_t wanted = threads / std::gcd(conv.images, threads);  // of each image, as many pieces as leave none idle
    const bool fires_once = before.before[0] || before.after[0] || before.x == behind.sequence;
    const int64_t bands = fires_once ? 1 : std::max<int64_t>(1, std::min(wanted, conv.out_size[0] / 8));
    const int64_t parts = fires_once ? std::min(wanted, blocks) : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < parts * conv.images * bands; item++) {
        const int64_t band = item % bands, image = item / bands % conv.images, part = item / bands / conv.images;
        const int64_t start = part * blocks / parts * LANES, end = (part + 1) * blocks / parts * LANES;
        Walk walk(before, behind, conv, fire, start, std::min(end, before.channels));
        walk.run(image, band * conv.out_size[0] / bands, (band + 1) * conv.out_size[0] / bands);
    }
}

}  // namespace

// Both neurons have the coding and the activation of the first.
extern "C" void snnzoo_depthwise(const Call *before, const Call *behind, const Convolution *conv) {
    with_neuron(*before, [&](const auto &neuron) {
        using Neuron = std::decay_t<decltype(neuron)>;
        const auto step = before->scaled ? fire<false, Neuron> : fire<true, Neuron>;
        run(*before, *behind, *conv, [&](const Call &call, const Places &at) { step(call, neuron, at); });
    });
}
