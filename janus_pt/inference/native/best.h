// The best token of each row of hidden states, without keeping the scores of all tokens.
#pragma once

#include "products.h"

// Outputs whose scores exist at once.
constexpr int64_t OUTPUTS_AT_ONCE = 16 * PANEL;

// What is known of a row's tokens so far, in each lane: the highest score, the sum of the exponentials below it,
// the highest score that is allowed, and its token.
struct Running {
    Floats highest, sum, best;
    Ints token;

    void clear() {
        highest = best = Floats{} + LOWEST;
        sum = Floats{};
        token = Ints{};
    }

    // Eight scores from `first` on.
    void add(Floats scores, Floats allowed, int32_t first) {
        Floats higher = scores > highest ? scores : highest;
        Floats weight = scores == LOWEST ? Floats{} : exponential(scores - higher);
        // In the first call there is no highest score yet, and no sum.
        sum = sum * exponential(highest == LOWEST ? Floats{} : highest - higher) + weight;
        highest = higher;
        const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7};
        // Of equal scores the first one.
        token = allowed > best ? lanes + first : token;
        best = allowed > best ? allowed : best;
    }
};

struct BestJob {
    const Linear &linear;
    const float *x;
    int64_t rows;
    // What must not be chosen, `[outputs]`, and the token whose own log-probability is wanted.
    const uint8_t *forbidden;
    int64_t end;
    int64_t *tokens;
    float *scores, *ends;
    // Room: of each thread, for all rows; for some rows' scores; for int8 products.
    Running *running;
    float *some;
    Quantized quantized;
    Thread thread;

    void add_scores(int64_t row, const float *scores, int64_t first, int64_t count, bool has_forbidden) const {
        Running state = running[thread.index * rows + row];
        for (int64_t start = 0; start < count; start += LANES) {
            Floats eight = Floats{} + LOWEST;
            if (start + LANES <= count)
                eight = *(const Floats *)(scores + start);
            else
                for (int64_t i = start; i < count; i++) eight[i - start] = scores[i];
            Floats allowed = eight;
            for (int64_t i = start; has_forbidden && i < std::min(count, start + LANES); i++)
                if (forbidden[first + i]) allowed[i - start] = LOWEST;
            state.add(eight, allowed, first + start);
        }
        running[thread.index * rows + row] = state;
        if (end >= first && end < first + count) ends[row] = scores[end - first];
    }

    // This thread's outputs, some of them at a time.
    void read_outputs(int64_t start, int64_t stop) const {
        int64_t panels = (linear.outputs + PANEL - 1) / PANEL;
        int64_t last = std::min(thread.end(panels) * PANEL, linear.outputs);
        int64_t width = linear.scale ? IntRows::width(linear.inputs) : linear.inputs * sizeof(float);
        for (int64_t first = thread.begin(panels) * PANEL; first < last; first += OUTPUTS_AT_ONCE) {
            int64_t count = std::min(last - first, OUTPUTS_AT_ONCE);
            Linear part = {(const char *)linear.weight + first * width, linear.scale ? linear.scale + first : nullptr,
                           linear.bias ? linear.bias + first : nullptr, count, linear.inputs};
            if (linear.scale)
                multiply_rows(IntRows{quantized.numbers + start * width, quantized.scales + start, part},
                              stop - start, Result{some}, Thread{0, 1});
            else
                multiply_rows(FloatRows{x + start * linear.inputs, part}, stop - start, Result{some}, Thread{0, 1});
            bool has_forbidden = std::memchr(forbidden + first, 1, count) != nullptr;
            for (int64_t row = start; row < stop; row++)
                add_scores(row, some + (row - start) * count, first, count, has_forbidden);
        }
    }

    // All lanes of all threads together.
    void finish(int64_t row) const {
        float highest = LOWEST, best = LOWEST, sum = 0;
        int64_t token = 0;
        for (int64_t other = 0; other < thread.count; other++)
            highest = std::max(highest, largest_of(running[other * rows + row].highest));
        for (int64_t other = 0; other < thread.count; other++) {
            const Running &state = running[other * rows + row];
            Floats weights = state.highest == LOWEST ? Floats{} : exponential(state.highest - highest);
            sum += total(state.sum * weights);
            for (int64_t i = 0; i < LANES; i++) {
                bool is_first = state.best[i] == best && state.token[i] < token;
                if (state.best[i] > best || is_first) token = state.token[i];
                best = std::max(best, state.best[i]);
            }
        }
        const float spread = std::log(sum);
        tokens[row] = token;
        // The highest score first: beside large scores a log-probability near 0 would be lost.
        scores[row] = best - highest - spread;
        ends[row] = ends[row] - highest - spread;
    }

    void run() const {
        for (int64_t row = 0; row < rows; row++) running[thread.index * rows + row].clear();
        if (linear.scale) quantize_rows(linear, x, rows, quantized, thread);
        for (int64_t start = 0; start < rows; start += ROWS_AT_ONCE)
            read_outputs(start, std::min(rows, start + ROWS_AT_ONCE));
        thread.wait();
        for (int64_t row = thread.begin(rows); row < thread.end(rows); row++) finish(row);
    }
};
