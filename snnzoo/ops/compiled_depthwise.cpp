// A neuron, the depthwise convolution behind it and a neuron behind that, all time steps in one pass over memory, which
// is channels-last. A block of channels of an image is walked through row by row: the last rows of spikes that the
// convolution reaches, of all steps, stay in cache, and what it gives never leaves it.

#include <functional>

#include "compiled_neurons.h"

// As `snnzoo.ops.depthwise.Convolution`; two neighbours are what belongs to rows, and to columns.
struct Convolution {
    const T *weight;  // [kernel, kernel, channels]
    int64_t images, size[2], out_size[2], kernel[2], stride[2], padding[2], dilation[2];
};

namespace {

constexpr int64_t LANES = 128 / sizeof(T);  // channels of a block: two lines of cache at each position
constexpr int64_t TOGETHER = 4;             // neighbours in a row that share what is loaded of the weights
constexpr int64_t AHEAD = 8;                // positions, on their way from memory
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

// The parameters of a block's neurons.
struct Parameters {
    T theta[LANES], bias[LANES], zeros[LANES] = {}, first[LANES];
    int64_t lanes;

    void load(const Call &call, int64_t channel) {
        lanes = std::min(LANES, call.channels - channel);
        std::copy_n(call.theta + channel, lanes, theta);
        std::copy_n(call.bias + channel, lanes, bias);
        if (call.first) std::copy_n(call.first + channel, lanes, first);
    }
};

// Positions of a row, one after the other: where a block of theirs begins, and how far apart they and steps are.
struct Place {
    T *data;
    int64_t apart, step;
};

// All steps of a block's neurons at `count` positions. `index`: of the block at the first of them, in a step.
template <bool SENDS_COUNTS, class Neuron>
void fire(
    const Call &call, const Neuron &neuron, const Parameters &parameters, int64_t index, int64_t count, Place in, Place out
) {
    alignas(64) T first[LANES], second[LANES], total[LANES];
    const int64_t lanes = parameters.lanes;
    for (; count > 0; count--, index += call.channels, in.data += in.apart, out.data += out.apart) {
        std::copy_n(call.before[0] ? call.before[0] + index : parameters.first, lanes, first);
        std::fill_n(second, lanes, T(0));
        if (call.before[1]) std::copy_n(call.before[1] + index, lanes, second);
        for (int64_t t = 0; t < call.time_steps; t++) {
            const T spike_value = call.spike_values[t], *x = in.data + t * in.step;
            const T *bias = t < call.biased_steps ? parameters.bias : parameters.zeros;
            T *y = out.data + t * out.step;
            if (call.forgets) std::fill_n(first, lanes, T(0));
            for (int64_t i = 0; i < lanes; i += LINE) __builtin_prefetch(x + AHEAD * in.apart + i);
#pragma omp simd
            for (int64_t i = 0; i < lanes; i++) {
                T count, a = first[i], b = Neuron::STATES > 1 ? second[i] : 0;
                const T value = neuron(x[i] + bias[i], parameters.theta[i], spike_value, a, b, count);
                y[i] = SENDS_COUNTS ? count : value;
                first[i] = a;
                if (Neuron::STATES > 1) second[i] = b;
            }
            for (int64_t i = 0; call.total && i < lanes; i++) total[i] = t == 0 ? y[i] : total[i] + y[i];
        }
        if (call.total) std::copy_n(total, lanes, call.total + index);
        if (call.after[0]) std::copy_n(first, lanes, call.after[0] + index);
        if (call.after[1]) std::copy_n(second, lanes, call.after[1] + index);
    }
}

using Fire = std::function<void(const Call &, const Parameters &, int64_t, int64_t, Place, Place)>;

// What PIXELS neighbours in a row of the output are, [PIXELS, LANES]. `rows`: where each row of the kernel begins.
template <int64_t PIXELS>
__attribute__((noinline)) void convolve(const Convolution &conv, const T *const *rows, const T *weight, T *sums) {
    const int64_t apart = conv.stride[1] * LANES, reach = conv.dilation[1] * LANES;
    for (int64_t i = 0; i < LANES; i += WIDTH) {
        Vector sum[PIXELS] = {};
        const T *tap = weight + i;
        for (int64_t row = 0; row < conv.kernel[0]; row++) {
            const T *x = rows[row] + i;
            for (int64_t column = 0; column < conv.kernel[1]; column++, tap += LANES, x += reach)
                for (int64_t p = 0; p < PIXELS; p++) sum[p] = multiply_add(load(x + p * apart), load(tap), sum[p]);
        }
        for (int64_t p = 0; p < PIXELS; p++) std::memcpy(sums + p * LANES + i, &sum[p], sizeof sum[p]);
    }
}

// One thread's walk through blocks.
class Walk {
  public:
    Walk(const Call &before, const Call &behind, const Convolution &conv, const Fire &fire)
        : before(before), behind(behind), conv(conv), fire(fire), steps(before.time_steps) {
        slots = (conv.kernel[0] - 1) * conv.dilation[0] + 1;
        const int64_t reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1;
        width = std::max(conv.padding[1] + conv.size[1], (conv.out_size[1] - 1) * conv.stride[1] + reach) * LANES;
        spikes.resize(slots * steps * width);  // what is beside the image stays 0
        zeros.resize(width);
        sums.resize(steps * TOGETHER * LANES);
        weight.resize(conv.kernel[0] * conv.kernel[1] * LANES);
        rows.resize(conv.kernel[0]);
    }

    // Rows `start` to `end` of the output, of the block of an image that begins at `channel`.
    void run(int64_t image, int64_t channel, int64_t start, int64_t end) {
        this->image = image, this->channel = channel;
        parameters[0].load(before, channel);
        parameters[1].load(behind, channel);
        for (int64_t tap = 0; tap < conv.kernel[0] * conv.kernel[1]; tap++)
            std::copy_n(conv.weight + tap * before.channels + channel, parameters[0].lanes, &weight[tap * LANES]);
        const bool is_last = end == conv.out_size[0];
        int64_t known = start == 0 ? 0 : std::max<int64_t>(0, first_row(start));
        for (int64_t row = start; row < end; row++) {
            const int64_t needed = std::min(conv.size[0], first_row(row) + slots);
            for (; known < needed; known++) fire_row(known);
            finish_row(row);
        }
        for (; is_last && known < conv.size[0]; known++) fire_row(known);  // nobody sees it, but for its state
    }

  private:
    const Call &before, &behind;
    const Convolution &conv;
    const Fire &fire;
    const int64_t steps;
    int64_t slots, width, image = 0, channel = 0;
    Parameters parameters[2];
    std::vector<T> spikes, zeros, sums, weight;  // spikes: [slots, steps, width, LANES], a row of the image in each slot
    std::vector<const T *> rows;

    int64_t first_row(int64_t out_row) const { return out_row * conv.stride[0] - conv.padding[0]; }

    T *spikes_of(int64_t row, int64_t step) { return spikes.data() + (row % slots * steps + step) * width; }

    void fire_row(int64_t row) {
        const int64_t index = (image * conv.size[0] + row) * conv.size[1] * before.channels + channel;
        const Place in = {const_cast<T *>(before.x) + index, before.channels, before.x_stride};
        fire(before, parameters[0], index, conv.size[1], in, {spikes_of(row, 0) + conv.padding[1] * LANES, LANES, width});
    }

    void finish_row(int64_t row) {
        int64_t column = 0;
        for (; column + TOGETHER <= conv.out_size[1]; column += TOGETHER) finish<TOGETHER>(row, column);
        for (; column < conv.out_size[1]; column++) finish<1>(row, column);
    }

    template <int64_t PIXELS>
    void finish(int64_t row, int64_t column) {
        const Place in = {sums.data(), LANES, PIXELS * LANES};
        for (int64_t t = 0; t < steps; t++) {
            for (int64_t k = 0; k < conv.kernel[0]; k++) {
                const int64_t from = first_row(row) + k * conv.dilation[0];
                const bool is_inside = from >= 0 && from < conv.size[0];
                rows[k] = (is_inside ? spikes_of(from, t) : zeros.data()) + column * conv.stride[1] * LANES;
            }
            convolve<PIXELS>(conv, rows.data(), weight.data(), in.data + t * in.step);
        }
        const int64_t index = ((image * conv.out_size[0] + row) * conv.out_size[1] + column) * behind.channels + channel;
        T *sequence = static_cast<T *>(behind.sequence);
        const Place out = {sequence + index, behind.channels, behind.sequence_stride};
        fire(behind, parameters[1], index, PIXELS, in, sequence ? out : in);
    }
};

// Threads share images, blocks of channels and, where that is too little for them, bands of rows. Rows at the border of
// two bands fire twice, which they must not where their state is kept.
void run(const Call &before, const Call &behind, const Convolution &conv, const Fire &fire) {
    const int64_t blocks = (before.channels + LANES - 1) / LANES, items = conv.images * blocks;
    const int64_t wanted = before.before[0] || before.after[0] ? 1 : (4 * before.threads + items - 1) / items;
    const int64_t bands = std::max<int64_t>(1, std::min(wanted, conv.out_size[0] / 8));
#pragma omp parallel num_threads(before.threads)
    {
        Walk walk(before, behind, conv, fire);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items * bands; item++) {
            const int64_t band = item / blocks % bands, image = item / blocks / bands;
            const int64_t start = band * conv.out_size[0] / bands, end = (band + 1) * conv.out_size[0] / bands;
            walk.run(image, item % blocks * LANES, start, end);
        }
    }
}

}  // namespace

// Both neurons have the coding and the activation of the first.
extern "C" void snnzoo_depthwise(const Call *before, const Call *behind, const Convolution *conv) {
    with_neuron(*before, [&](const auto &neuron) {
        using Neuron = std::decay_t<decltype(neuron)>;
        const auto step = before->scaled ? fire<false, Neuron> : fire<true, Neuron>;
        run(*before, *behind, *conv, [&](const Call &call, auto &&...rest) { step(call, neuron, rest...); });
    });
}
