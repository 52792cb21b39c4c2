// Products of a few rows with a matrix whose weights are packed, in float32 or int8.
//
// A row's numbers are added up in one order, whatever the other rows and their number: its output is
// the same, to the last bit, alone and in a batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "vectors.h"

// Outputs whose weights lie side by side.
constexpr int64_t PANEL = 2 * LANES;
// Rows that stay in a core's cache while all panels pass by; a multiple of the rows of a tile.
constexpr int64_t ROWS_AT_ONCE = 96;
constexpr int64_t TILE_ROWS = 6;

// A thread and its share of the work. All threads go through the same code, and wait for each other.
struct Thread {
    int64_t index, count;
    int64_t begin(int64_t items) const { return items * index / count; }
    int64_t end(int64_t items) const { return items * (index + 1) / count; }
    void wait() const {
#pragma omp barrier
    }
};

// `weight` is packed: see `pack_floats` and `pack_bytes`. `scale`, of each output, if it is int8.
struct Linear {
    const void *weight;
    const float *scale;
    const float *bias;
    int64_t outputs, inputs;
};

enum Activation : int64_t { NONE, RELU, GELU, SILU };

// Not inlined: the sums of a tile need all registers.
static __attribute__((noinline)) Floats gelu_or_silu(Floats x, int64_t activation) {
    return activation == GELU ? gelu(x) : silu(x);
}

static inline Floats activated(Floats x, int64_t activation) {
    if (activation == NONE) return x;
    return activation == RELU ? (x > 0 ? x : Floats{}) : gelu_or_silu(x, activation);
}

// What is done with a product: bias, activation, and a residual `[rows, outputs]`, if there is one.
struct Result {
    float *out;
    const float *residual = nullptr;
    int64_t activation = NONE;
};

// The last outputs, which may fill no vector.
static __attribute__((noinline)) void store_last(const Linear &linear, const Result &result, int64_t row,
                                                 int64_t column, Floats sum) {
    int64_t count = std::min(LANES, linear.outputs - column);
    for (int64_t i = 0; i < count && linear.bias; i++) sum[i] += linear.bias[column + i];
    sum = activated(sum, result.activation);
    for (int64_t i = 0; i < count; i++) {
        int64_t place = row * linear.outputs + column + i;
        result.out[place] = result.residual ? sum[i] + result.residual[place] : sum[i];
    }
}

template <int ROWS, int VECTORS>
static inline __attribute__((always_inline)) void store(const Linear &linear, const Result &result, int64_t row,
                                                        int64_t column, Floats (&sums)[ROWS][VECTORS]) {
    if (column + VECTORS * LANES > linear.outputs) {
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < VECTORS; c++) store_last(linear, result, row + r, column + c * LANES, sums[r][c]);
        return;
    }
#pragma GCC unroll 8
    for (int c = 0; c < VECTORS; c++) {
        int64_t place = row * linear.outputs + column + c * LANES;
        Floats bias = linear.bias ? *(const Floats *)(linear.bias + column + c * LANES) : Floats{};
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++, place += linear.outputs) {
            Floats value = activated(sums[r][c] + bias, result.activation);
            if (result.residual) value += *(const Floats *)(result.residual + place);
            *(Floats *)(result.out + place) = value;
        }
    }
}

// Float32: `[panels][inputs][PANEL]`.
struct FloatRows {
    const float *numbers;
    const Linear &linear;

    template <int ROWS, int PANELS>
    void tile(int64_t row, int64_t panel, const Result &result) const {
        int64_t inputs = linear.inputs;
        const float *x = numbers + row * inputs;
        const float *w = (const float *)linear.weight + panel * inputs * PANEL;
        Floats sums[ROWS][2 * PANELS] = {};
        for (int64_t k = 0; k < inputs; k++) {
            Floats weights[2 * PANELS];
#pragma GCC unroll 8
            for (int c = 0; c < 2 * PANELS; c++)
                weights[c] = *(const Floats *)(w + (c / 2) * inputs * PANEL + k * PANEL + (c % 2) * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                float number = x[r * inputs + k];
#pragma GCC unroll 8
                for (int c = 0; c < 2 * PANELS; c++) sums[r][c] += number * weights[c];
            }
        }
        store(linear, result, row, panel * PANEL, sums);
    }
};

// Eight pairs of whole numbers of 16 bits.
#if defined(__AVX2__)
typedef __m256i Pairs;
#else
typedef int16_t Pairs __attribute__((vector_size(32)));
#endif

static inline Pairs widen(const int8_t *bytes) {
#if defined(__AVX2__)
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)bytes));
#else
    Pairs pairs;
    for (int64_t i = 0; i < 2 * LANES; i++) pairs[i] = bytes[i];
    return pairs;
#endif
}

// `sums` and, in each lane, the sum of the two products of `two` with a pair.
static inline Ints add_products(Ints sums, int32_t two, Pairs pairs) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (Ints)_mm256_dpwssd_epi32((__m256i)sums, _mm256_set1_epi32(two), pairs);
#elif defined(__AVX2__)
    return sums + (Ints)_mm256_madd_epi16(_mm256_set1_epi32(two), pairs);
#else
    int16_t numbers[2];
    std::memcpy(numbers, &two, sizeof two);
    for (int64_t i = 0; i < LANES; i++) sums[i] += numbers[0] * pairs[2 * i] + numbers[1] * pairs[2 * i + 1];
    return sums;
#endif
}

// int8 weights, inputs of 16 bits: `[panels][inputs / 2][PANEL][2]`; what is odd is filled with 0.
struct IntRows {
    const int16_t *numbers;
    const float *scales;
    const Linear &linear;

    static int64_t width(int64_t inputs) { return (inputs + 1) / 2 * 2; }

    template <int ROWS, int PANELS>
    void tile(int64_t row, int64_t panel, const Result &result) const {
        int64_t pairs = width(linear.inputs) / 2;
        const int16_t *x = numbers + row * pairs * 2;
        const int8_t *w = (const int8_t *)linear.weight + panel * pairs * PANEL * 2;
        Ints sums[ROWS][2 * PANELS] = {};
        for (int64_t k = 0; k < pairs; k++) {
            Pairs weights[2 * PANELS];
#pragma GCC unroll 8
            for (int c = 0; c < 2 * PANELS; c++)
                weights[c] = widen(w + ((c / 2) * pairs + k) * PANEL * 2 + (c % 2) * 2 * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                int32_t two;
                std::memcpy(&two, x + (r * pairs + k) * 2, sizeof two);
#pragma GCC unroll 8
                for (int c = 0; c < 2 * PANELS; c++) sums[r][c] = add_products(sums[r][c], two, weights[c]);
            }
        }
        Floats scaled[ROWS][2 * PANELS];
#pragma GCC unroll 8
        for (int c = 0; c < 2 * PANELS; c++) {
            // There are as many scales as the panels have outputs.
            Floats scale = *(const Floats *)(linear.scale + panel * PANEL + c * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
                scaled[r][c] = __builtin_convertvector(sums[r][c], Floats) * (scales[row + r] * scale);
        }
        store(linear, result, row, panel * PANEL, scaled);
    }
};

// Few rows take several panels at once, so that enough sums are under way.
template <int ROWS, int PANELS, class Rows>
static inline void strip(const Rows &rows, int64_t row, int64_t panel, int64_t last, const Result &result) {
    for (; panel + PANELS <= last; panel += PANELS) rows.template tile<ROWS, PANELS>(row, panel, result);
    for (; panel < last; panel++) rows.template tile<ROWS, 1>(row, panel, result);
}

template <class Rows>
static void multiply_rows(const Rows &rows, int64_t count, const Result &result, const Thread &thread) {
    int64_t panels = (rows.linear.outputs + PANEL - 1) / PANEL;
    int64_t first = thread.begin(panels), last = thread.end(panels);
    if (count <= 3) {
        if (count == 1) strip<1, 4>(rows, 0, first, last, result);
        if (count == 2) strip<2, 2>(rows, 0, first, last, result);
        if (count == 3) strip<3, 2>(rows, 0, first, last, result);
        return;
    }
    for (int64_t start = 0; start < count; start += ROWS_AT_ONCE) {
        int64_t stop = std::min(count, start + ROWS_AT_ONCE);
        for (int64_t panel = first; panel < last; panel++) {
            int64_t row = start;
            for (; row + TILE_ROWS <= stop; row += TILE_ROWS) rows.template tile<TILE_ROWS, 1>(row, panel, result);
            switch (stop - row) {
                case 5: rows.template tile<5, 1>(row, panel, result); break;
                case 4: rows.template tile<4, 1>(row, panel, result); break;
                case 3: rows.template tile<3, 1>(row, panel, result); break;
                case 2: rows.template tile<2, 1>(row, panel, result); break;
                case 1: rows.template tile<1, 1>(row, panel, result); break;
            }
        }
    }
}

// The largest input in 16 bits, such that no sum of products with weights up to 127 leaves 32 bits.
static inline float largest_level(int64_t inputs) { return std::min(32767.0, 2147483647.0 / 127 / (double)inputs); }

static void quantize_row(const float *x, int64_t inputs, int16_t *out, float *scale) {
    Floats largest_of_lanes = {};
    float largest = 0;
    int64_t k = 0;
    for (; k + LANES <= inputs; k += LANES) {
        Floats number = *(const Floats *)(x + k), size = number < 0 ? -number : number;
        largest_of_lanes = size > largest_of_lanes ? size : largest_of_lanes;
    }
    for (int64_t i = 0; i < LANES; i++) largest = std::max(largest, largest_of_lanes[i]);
    for (; k < inputs; k++) largest = std::max(largest, std::fabs(x[k]));
    float level = std::floor(largest_level(inputs));
    float inverse = largest > 0 ? level / largest : 0;
    // Numbers this large have no fraction: adding one rounds, and the lowest bits are the whole number.
    const float whole = 12582912;
    for (k = 0; k + LANES <= inputs; k += LANES) {
        Ints rounded = (Ints)(*(const Floats *)(x + k) * inverse + whole);
        *(Shorts *)(out + k) = __builtin_convertvector(rounded, Shorts);
    }
    for (; k < inputs; k++) out[k] = (int16_t)std::lrintf(x[k] * inverse);
    if (inputs % 2) out[inputs] = 0;
    *scale = largest / level;
}

// Room that int8 products of some rows need.
struct Quantized {
    int16_t *numbers;
    float *scales;
};

static void quantize_rows(const Linear &linear, const float *x, int64_t count, Quantized room, const Thread &thread) {
    int64_t width = IntRows::width(linear.inputs);
    for (int64_t row = thread.begin(count); row < thread.end(count); row++)
        quantize_row(x + row * linear.inputs, linear.inputs, room.numbers + row * width, room.scales + row);
    thread.wait();
}

// `x [count, inputs]` times the weights. All threads come here together; nobody waits at the end.
static void multiply(const Linear &linear, const float *x, int64_t count, const Result &result, Quantized room,
                     const Thread &thread) {
    if (!linear.scale) return multiply_rows(FloatRows{x, linear}, count, result, thread);
    quantize_rows(linear, x, count, room, thread);
    multiply_rows(IntRows{room.numbers, room.scales, linear}, count, result, thread);
}
