// Eight numbers at once, by the compiler's vectors: it makes of them what the machine has.
#pragma once

#include <cstdint>
#include <limits>

typedef float Floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(32), aligned(4)));
typedef int16_t Shorts __attribute__((vector_size(16), aligned(2)));
constexpr int64_t LANES = 8;
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// Sums of two neighbours: of `a` in the first lanes of each half, of `b` in the others.
static inline Floats pairwise(Floats a, Floats b) {
    Ints even = {0, 2, 8, 10, 4, 6, 12, 14};
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// Lane i: the sum of vector i.
static inline Floats totals(const Floats (&x)[8]) {
    Floats first = pairwise(pairwise(x[0], x[1]), pairwise(x[2], x[3]));
    Floats second = pairwise(pairwise(x[4], x[5]), pairwise(x[6], x[7]));
    Ints low = {0, 1, 2, 3, 8, 9, 10, 11};
    return __builtin_shuffle(first, second, low) + __builtin_shuffle(first, second, low + 4);
}

static inline float total(Floats x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

static inline float largest_of(Floats x) {
    float largest = x[0];
    for (int64_t i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

// The exponential of numbers that are 0 or less, within a rounding or two.
static inline Floats exponential(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    Floats whole = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f - 0.5f, Ints), Floats);
    Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats y = 1.9875691500e-4f * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    return y * (Floats)power;
}

// erf by Abramowitz and Stegun, formula 7.1.26, whose error is below 1.5e-7.
static inline Floats gelu(Floats x) {
    Floats size = (x < 0 ? -x : x) * 0.70710678f;
    Floats t = 1.0f / (1.0f + 0.3275911f * size);
    Floats y = 1.061405429f * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    Floats half_rest = 0.5f * y * t * exponential(-size * size);
    return x * (x < 0 ? half_rest : 1.0f - half_rest);
}

static inline Floats silu(Floats x) {
    Floats power = exponential(x < 0 ? x : -x);
    return x * (x < 0 ? power : Floats{} + 1.0f) / (1.0f + power);
}
