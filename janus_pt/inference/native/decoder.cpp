// A pass of an encoder or a decoder as one call.
//
// What it computes is defined by the modules of `janus_pt/model`; this is the same for common shapes.
// The structures are those of `structures.py`.

#include <omp.h>

#include <limits>
#include <memory>

#include "attend.h"
#include "best.h"
#include "products.h"

enum NormKind : int64_t { NO_NORM, LAYER_NORM, RMS_NORM };

struct Norm {
    const float *weight, *bias;
    int64_t kind;
    double epsilon;
};

struct Layer {
    Linear qkv, self_out, cross_query, cross_out, fc1, fc2;
    Norm self_norm, cross_norm, final_norm;
};

struct Stack {
    const Layer *layers;
    int64_t num_layers, hidden, ffn, heads, pre_norm, activation, has_cross;
    Norm embed_norm, last_norm;
    const float *tokens;
    // Whether the table of tokens is the output projection's weight, packed.
    int64_t has_packed_tokens;
    const float *positions;
    double token_scale;
};

// Keys and values `[rows, heads, keys, head size]`, by the strides of the first three.
struct KeysValues {
    float *keys, *values;
    int64_t row, head, key;
};

// What may be read, by strides; no `allowed`: everything.
struct Mask {
    const uint8_t *allowed;
    int64_t row, slot, key;
};

// `caches` and `memories`: one a layer. Without caches slots read the contents of this pass. A content slot is
// written to the place `start` or `places[row]`, and on. Of the last layer slots from `first` on are computed.
struct Pass {
    int64_t rows, slots, contents, first, sources, reach, memory_length, start;
    const int64_t *tokens, *positions, *places;
    const KeysValues *caches, *memories;
    Mask self_mask, cross_mask;
    float *output;
    int64_t threads;
};

static void normalize(const Norm &norm, const float *x, float *out, int64_t size) {
    if (norm.kind == NO_NORM) {
        if (out != x) std::memcpy(out, x, size * sizeof(float));
        return;
    }
    Floats sum = {}, squares = {};
    float mean = 0;
    if (norm.kind == LAYER_NORM) {
        for (int64_t i = 0; i < size; i += LANES) sum += *(const Floats *)(x + i);
        mean = total(sum) / size;
    }
    for (int64_t i = 0; i < size; i += LANES) {
        Floats centred = *(const Floats *)(x + i) - mean;
        squares += centred * centred;
    }
    float inverse = 1 / std::sqrt(total(squares) / size + (float)norm.epsilon);
    for (int64_t i = 0; i < size; i += LANES) {
        Floats value = (*(const Floats *)(x + i) - mean) * inverse * *(const Floats *)(norm.weight + i);
        if (norm.bias) value += *(const Floats *)(norm.bias + i);
        *(Floats *)(out + i) = value;
    }
}

static void normalize_rows(const Norm &norm, const float *x, float *out, int64_t rows, int64_t size,
                           const Thread &thread) {
    for (int64_t row = thread.begin(rows); row < thread.end(rows); row++)
        normalize(norm, x + row * size, out + row * size, size);
    thread.wait();
}

// Places for what a pass computes on the way.
struct Room {
    float *x, *normed, *qkv, *attended, *inner, *residual, *scores, *scales;
    int16_t *quantized;
    int64_t keys;
};

struct Job {
    const Stack &stack;
    const Pass &pass;
    const Room &room;
    Thread thread;

    int64_t head_size() const { return stack.hidden / stack.heads; }
    float *scores() const { return room.scores + thread.index * room.keys; }

    void product(const Linear &linear, const float *x, int64_t rows, const Result &result) const {
        multiply(linear, x, rows, result, Quantized{room.quantized, room.scales}, thread);
        thread.wait();
    }

    void embed() const {
        int64_t hidden = stack.hidden, count = pass.rows * pass.slots;
        for (int64_t slot = thread.begin(count); slot < thread.end(count); slot++) {
            int64_t number = pass.tokens[slot], apart = stack.has_packed_tokens ? PANEL : 1;
            // Packed, a token's numbers are in its panel, one of each PANEL.
            int64_t start = stack.has_packed_tokens ? number / PANEL * hidden * PANEL + number % PANEL : number * hidden;
            const float *token = stack.tokens + start;
            const float *position = stack.positions + pass.positions[slot] * hidden;
            float *x = room.x + slot * hidden, scale = stack.token_scale;
            for (int64_t i = 0; i < hidden; i++) x[i] = token[i * apart] * scale + position[i];
            normalize(stack.embed_norm, x, x, hidden);
        }
        thread.wait();
    }

    // Each thread has rows and heads of its own, whose keys and values it also puts into the cache.
    void self_attention(const KeysValues *cache, int64_t first) const {
        int64_t hidden = stack.hidden, size = head_size(), width = 3 * hidden, computed = pass.slots - first;
        int64_t items = pass.rows * stack.heads;
        for (int64_t item = thread.begin(items); item < thread.end(items); item++) {
            int64_t row = item / stack.heads, head = item % stack.heads;
            const float *projected = room.qkv + row * pass.slots * width + head * size;
            const float *keys = projected + hidden, *values = projected + 2 * hidden;
            int64_t stride = width, reach = pass.contents;
            if (cache) {
                float *kept_keys = cache->keys + row * cache->row + head * cache->head;
                float *kept_values = cache->values + row * cache->row + head * cache->head;
                for (int64_t slot = 0; slot < pass.contents; slot++) {
                    int64_t start = pass.places ? pass.places[row] : pass.start;
                    int64_t place = (start + slot) * cache->key;
                    std::memcpy(kept_keys + place, keys + slot * width, size * sizeof(float));
                    std::memcpy(kept_values + place, values + slot * width, size * sizeof(float));
                }
                keys = kept_keys, values = kept_values, stride = cache->key, reach = pass.reach;
            }
            for (int64_t slot = first; slot < pass.slots; slot++) {
                int64_t place = row * computed + slot - first;
                if (head == 0)
                    std::memcpy(room.residual + place * hidden, room.x + (row * pass.slots + slot) * hidden,
                                hidden * sizeof(float));
                const Mask &mask = pass.self_mask;
                const uint8_t *allowed = mask.allowed ? mask.allowed + row * mask.row + slot * mask.slot : nullptr;
                attend(projected + slot * width, keys, values, stride, reach, size, allowed, mask.key, scores(),
                       room.attended + place * hidden + head * size);
            }
        }
        thread.wait();
    }

    // Copies of a source stand together and share its memory. Queries are in `qkv`.
    void cross_attention(const KeysValues &memory, int64_t slots) const {
        int64_t hidden = stack.hidden, size = head_size(), copies = pass.rows / pass.sources;
        int64_t items = pass.rows * stack.heads;
        for (int64_t item = thread.begin(items); item < thread.end(items); item++) {
            int64_t row = item / stack.heads, head = item % stack.heads, source = row / copies;
            const float *keys = memory.keys + source * memory.row + head * memory.head;
            const float *values = memory.values + source * memory.row + head * memory.head;
            const Mask &mask = pass.cross_mask;
            const uint8_t *allowed = mask.allowed ? mask.allowed + source * mask.row : nullptr;
            for (int64_t slot = 0; slot < slots; slot++) {
                int64_t place = (row * slots + slot) * hidden + head * size;
                attend(room.qkv + place, keys, values, memory.key, pass.memory_length, size, allowed, mask.key,
                       scores(), room.attended + place);
            }
        }
        thread.wait();
    }

    // What a sublayer reads: normed before it, or as it is.
    const float *sublayer_input(const Norm &norm, const float *x, int64_t rows) const {
        if (!stack.pre_norm) return x;
        normalize_rows(norm, x, room.normed, rows, stack.hidden, thread);
        return room.normed;
    }

    // A sublayer's last product on `input`, the residual, and the norm behind them: all in `residual`.
    void finish(const Linear &linear, const float *input, const Norm &norm, int64_t rows) const {
        product(linear, input, rows, Result{room.residual, room.residual});
        if (!stack.pre_norm) normalize_rows(norm, room.residual, room.residual, rows, stack.hidden, thread);
    }

    void layer(int64_t number) const {
        const Layer &layer = stack.layers[number];
        bool is_last = number + 1 == stack.num_layers;
        int64_t first = is_last ? pass.first : 0, slots = pass.slots - first;
        int64_t all = pass.rows * pass.slots, computed = pass.rows * slots;
        const float *input = sublayer_input(layer.self_norm, room.x, all);
        product(layer.qkv, input, all, Result{room.qkv});
        self_attention(pass.caches ? pass.caches + number : nullptr, first);
        finish(layer.self_out, room.attended, layer.self_norm, computed);
        if (stack.has_cross) {
            input = sublayer_input(layer.cross_norm, room.residual, computed);
            product(layer.cross_query, input, computed, Result{room.qkv});
            cross_attention(pass.memories[number], slots);
            finish(layer.cross_out, room.attended, layer.cross_norm, computed);
        }
        input = sublayer_input(layer.final_norm, room.residual, computed);
        product(layer.fc1, input, computed, Result{room.inner, nullptr, stack.activation});
        finish(layer.fc2, room.inner, layer.final_norm, computed);
        // The next layer's input; the last layer's is the output.
        const Norm nothing = {nullptr, nullptr, NO_NORM, 0};
        normalize_rows(is_last ? stack.last_norm : nothing, room.residual, is_last ? pass.output : room.x, computed,
                       stack.hidden, thread);
    }

    void run() const {
        embed();
        for (int64_t number = 0; number < stack.num_layers; number++) layer(number);
    }
};

// Memory that a calling thread keeps between passes.
static char *reserve(size_t bytes) {
    static thread_local std::unique_ptr<char[]> memory;
    static thread_local size_t size = 0;
    if (bytes > size) {
        memory.reset();
        memory.reset(new char[bytes]);
        size = bytes;
    }
    return memory.get();
}

static Room make_room(const Stack &stack, const Pass &pass) {
    int64_t rows = pass.rows * pass.slots, hidden = stack.hidden, widest = std::max(stack.ffn, hidden);
    Room room;
    room.keys = (std::max(std::max(pass.reach, pass.contents), pass.memory_length) + LANES) / LANES * LANES;
    int64_t floats = rows * (7 * hidden + widest) + pass.threads * room.keys + rows;
    float *next = (float *)reserve(floats * sizeof(float) + rows * (widest + 1) * sizeof(int16_t));
    auto take = [&next](int64_t count) {
        float *taken = next;
        next += count;
        return taken;
    };
    room.x = take(rows * hidden);
    room.normed = take(rows * hidden);
    room.qkv = take(rows * 3 * hidden);
    room.attended = take(rows * hidden);
    room.residual = take(rows * hidden);
    room.inner = take(rows * widest);
    room.scores = take(pass.threads * room.keys);
    room.scales = take(rows);
    room.quantized = (int16_t *)next;
    return room;
}

extern "C" {

void janus_run(const Stack *stack, const Pass *pass) {
    Room room = make_room(*stack, *pass);
#pragma omp parallel num_threads(pass->threads)
    Job{*stack, *pass, room, Thread{omp_get_thread_num(), omp_get_num_threads()}}.run();
}

void janus_multiply(const Linear *linear, const float *x, int64_t rows, float *out, int64_t threads) {
    int64_t width = IntRows::width(linear->inputs);
    char *memory = linear->scale ? reserve(rows * (sizeof(float) + width * sizeof(int16_t))) : nullptr;
    Quantized room = {(int16_t *)(memory + rows * sizeof(float)), (float *)memory};
#pragma omp parallel num_threads(threads)
    multiply(*linear, x, rows, Result{out}, room, Thread{omp_get_thread_num(), omp_get_num_threads()});
}

// See `BestJob`.
void janus_best(const Linear *linear, const float *x, int64_t rows, const uint8_t *forbidden, int64_t end,
                int64_t *tokens, float *scores, float *ends, int64_t threads) {
    int64_t width = IntRows::width(linear->inputs), some = ROWS_AT_ONCE * OUTPUTS_AT_ONCE;
    size_t bytes = threads * (rows * sizeof(Running) + some * sizeof(float));
    if (linear->scale) bytes += rows * (sizeof(float) + width * sizeof(int16_t));
    Running *running = (Running *)reserve(bytes);
    float *scores_of_some = (float *)(running + threads * rows), *scales = scores_of_some + threads * some;
    Quantized quantized = {(int16_t *)(scales + rows), scales};
#pragma omp parallel num_threads(threads)
    {
        Thread thread = {omp_get_thread_num(), omp_get_num_threads()};
        BestJob{*linear, x, rows, forbidden, end, tokens, scores, ends, running, scores_of_some + thread.index * some,
                quantized, thread}
            .run();
    }
}

// `weight [outputs, inputs]` as `FloatRows` reads it.
void janus_pack_floats(const float *weight, int64_t outputs, int64_t inputs, float *packed) {
    int64_t panels = (outputs + PANEL - 1) / PANEL;
    for (int64_t output = 0; output < panels * PANEL; output++)
        for (int64_t k = 0; k < inputs; k++)
            packed[output / PANEL * inputs * PANEL + k * PANEL + output % PANEL] =
                output < outputs ? weight[output * inputs + k] : 0;
}

// `weight [outputs, inputs]` as `IntRows` reads it, and each output's scale.
void janus_pack_bytes(const float *weight, int64_t outputs, int64_t inputs, int8_t *packed, float *scales) {
    int64_t panels = (outputs + PANEL - 1) / PANEL, width = IntRows::width(inputs);
    for (int64_t output = 0; output < panels * PANEL; output++) {
        float largest = 0;
        for (int64_t k = 0; k < inputs && output < outputs; k++)
            largest = std::max(largest, std::fabs(weight[output * inputs + k]));
        scales[output] = largest / 127;
        int8_t *panel = packed + output / PANEL * width * PANEL;
        for (int64_t k = 0; k < width; k++) {
            bool is_weight = largest > 0 && k < inputs;
            float level = is_weight ? weight[output * inputs + k] / largest * 127 : 0;
            panel[k / 2 * 2 * PANEL + output % PANEL * 2 + k % 2] = (int8_t)std::lrintf(level);
        }
    }
}
}
