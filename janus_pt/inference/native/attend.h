// What one query reads from keys and values, and the functions of numbers that it takes.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "vectors.h"

template <int VECTORS>
static inline __attribute__((always_inline)) Floats product_of(const float *query, const float *key, int64_t size) {
    Floats sum = *(const Floats *)query * *(const Floats *)key;
    int64_t stop = VECTORS ? VECTORS * LANES : size;
#pragma GCC unroll 8
    for (int64_t i = LANES; i < stop; i += LANES) sum += *(const Floats *)(query + i) * *(const Floats *)(key + i);
    return sum;
}

// `weights`: the scores of `count` keys, rounded up to LANES; hidden ones are -inf. Returns the largest.
template <int VECTORS>
static float score_keys(const float *query, const float *keys, int64_t stride, int64_t count, int64_t size,
                        const uint8_t *allowed, int64_t allowed_stride, float *weights) {
    float scale = 1 / std::sqrt((float)size);
    Floats highest = Floats{} + LOWEST;
    for (int64_t first = 0; first < count; first += LANES) {
        Floats sums[LANES];
#pragma GCC unroll 8
        for (int64_t i = 0; i < LANES; i++) {
            // Behind the last key: that one again, which is hidden below.
            int64_t key = first + i < count ? first + i : count - 1;
            sums[i] = product_of<VECTORS>(query, keys + key * stride, size);
        }
        Floats scores = totals(sums) * scale;
        for (int64_t i = 0; i < LANES; i++)
            if (first + i >= count || (allowed && !allowed[(first + i) * allowed_stride])) scores[i] = LOWEST;
        *(Floats *)(weights + first) = scores;
        highest = scores > highest ? scores : highest;
    }
    return largest_of(highest);
}

template <int VECTORS>
static inline void weighted_sum(const float *weights, const float *values, int64_t stride, int64_t count, float *out,
                                float factor) {
    Floats sums[VECTORS] = {};
    for (int64_t key = 0; key < count; key++)
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; i++) sums[i] += weights[key] * *(const Floats *)(values + key * stride + i * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; i++) *(Floats *)(out + i * LANES) = sums[i] * factor;
}

// Of `count` keys, `stride` numbers apart, of which those are hidden that are not `allowed`; `weights` is room for all.
static void attend(const float *query, const float *keys, const float *values, int64_t stride, int64_t count,
                   int64_t size, const uint8_t *allowed, int64_t allowed_stride, float *weights, float *out) {
    auto score = size == 64 ? score_keys<8> : size == 32 ? score_keys<4> : score_keys<0>;
    float largest = score(query, keys, stride, count, size, allowed, allowed_stride, weights);
    // A row of padding reads nothing, and nobody reads it.
    if (largest == LOWEST) largest = 0;
    Floats sum = {};
    for (int64_t key = 0; key < count; key += LANES) {
        Floats score = *(Floats *)(weights + key);
        Floats weight = score == LOWEST ? Floats{} : exponential(score - largest);
        *(Floats *)(weights + key) = weight;
        sum += weight;
    }
    float factor = 1 / total(sum);
    int64_t i = 0;
    for (; i + 8 * LANES <= size; i += 8 * LANES) weighted_sum<8>(weights, values + i, stride, count, out + i, factor);
    for (; i + 4 * LANES <= size; i += 4 * LANES) weighted_sum<4>(weights, values + i, stride, count, out + i, factor);
    for (; i < size; i += LANES) weighted_sum<1>(weights, values + i, stride, count, out + i, factor);
}
