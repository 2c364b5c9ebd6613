// Recombined attention on CPUs, float32, forward and backward. `native.py` compiles this file and calls it.
//
// A thread takes a block of queries through all heads: scores and maps of the whole block, [H, n, M], then, a few keys
// at a time, what mixing makes of them, and its product with the values. Nothing of the size of all maps exists, and
// what a thread has written comes back from its own cache. The backward computes the maps again from the row's
// log-sum-exp. With A the maps, W = I + coeff and dO the gradient of the output:
//
//     dM[h] = dO[h] V[h]^T                dW[h, j] = sum dM[h] * A[j]          dV[h] = (sum_j W[h, j] A[j])^T dO[h]
//     dA[j] = sum_h W[h, j] dM[h]         dS[j] = A[j] * (dA[j] - rowsum(dA[j] * A[j]))
//     dQ[j] = scale dS[j] K[j]            dK[j] = scale dS[j]^T Q[j]
//
// Legend: B samples, H heads, N queries, M keys, D channels of a key, E of a value, n queries of a block.
// Matrices are padded to whole vectors: Mp keys, Dp and Ep channels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "native_matrices.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr Size LINE = 16;          // floats of a cache line
constexpr Size KEYS = 256;         // keys that are mixed at once
constexpr Size QUERIES = 32;       // of a block, at most: the maps of a head then fit a core's cache
constexpr Size MAPS = 8 << 20;     // entries of the maps that all threads hold at once, at most
constexpr Size MOST_THREADS = 32;  // each has sums of its own in the backward, twice the size of the keys

struct Shape {
    Size batch, heads, queries, keys, channels, value_channels;
};

// A tensor [B, H, rows, channels] whose channels lie side by side; strides in floats.
struct View {
    float* data;
    Size batch, head, row;

    float* at(Size b, Size h, Size r) const { return data + b * batch + h * head + r * row; }
};

// Maps of a block, or a part of them, [H, n, columns]. Were the distances powers of two, as the sizes often are, all
// heads would compete for the same few lines of the nearest cache: rows and heads keep off each other.
struct Stack {
    Size columns, row, head;

    Stack(Size block, Size columns)
        : columns(columns), row(columns + LINE), head((block * row + APART - 1) / APART * APART + TILE_COLUMNS * LINE) {}
    static constexpr Size APART = 64 * LINE;  // floats that are cached in the same place
    Size at(Size h, Size i) const { return h * head + i * row; }
};

// How the work is cut.
struct Plan {
    Size H, N, M, D, E, Mp, Dp, Ep;
    Size block, blocks, threads;
    Stack map, mix;  // all keys, and KEYS of them

    Plan(const Shape& s, Size wanted_threads)
        : H(s.heads), N(s.queries), M(s.keys), D(s.channels), E(s.value_channels),
          Mp(padded(M, PANEL)), Dp(padded(D, VECTOR)), Ep(padded(E, VECTOR)),
          block(block_of(std::min(wanted_threads, MOST_THREADS))), blocks((N + block - 1) / block),
          threads(std::min({wanted_threads, MOST_THREADS, blocks})), map(block, Mp), mix(block, KEYS) {}
    Size block_of(Size threads) const {
        Size share = padded((N + threads - 1) / threads, TILE_ROWS);
        Size room = std::max<Size>(TILE_ROWS, MAPS / (H * Mp * threads) / TILE_ROWS * TILE_ROWS);
        return std::min({QUERIES, share, room});
    }
    Size weights() const { return padded(H * H, LINE); }
    Size panels() const { return padded(H * Mp * D, LINE); }        // keys, packed for scores
    Size value_panels() const { return padded(H * Mp * E, LINE); }  // values, packed alike
    Size key_rows() const { return padded(H * M * Dp, LINE); }
    Size value_rows() const { return padded(H * M * Ep, LINE); }
    Size maps() const { return H * map.head; }
    Size mixed() const { return H * mix.head; }
    Size query_rows() const { return H * padded(block * Dp, LINE); }
    Size out_rows() const { return H * padded(block * Ep, LINE); }
    Size row_sums() const { return padded(H * block, LINE); }
    Size sums() const { return weights() * VECTOR + key_rows() + value_rows(); }
    // Of one thread, and of all together.
    Size forward_room() const { return maps() + mixed() + query_rows() + out_rows() + row_sums() + weights(); }
    Size backward_room() const {
        return sums() + 2 * (maps() + mixed() + query_rows()) + out_rows() + row_sums();
    }
    Size forward_total() const { return weights() + panels() + value_rows() + threads * forward_room(); }
    Size backward_total() const {
        return weights() + panels() + value_panels() + key_rows() + threads * backward_room();
    }
};

// Hands out parts of a buffer, each at the beginning of a cache line.
struct Room {
    float* next;
    float* take(Size count) {
        float* taken = next;
        next += padded(count, LINE);
        return taken;
    }
};

// Rows [count, channels] of one head as panels [Mp / PANEL][channels][PANEL], zeros behind the last.
void pack_panels(const View& from, Size b, Size h, Size count, Size channels, float* to) {
    for (Size start = 0; start < count; start += PANEL, to += channels * PANEL) {
        Size rows = std::min(PANEL, count - start);
        if (rows < PANEL) std::memset(to, 0, sizeof(float) * channels * PANEL);
        for (Size r = 0; r < rows; ++r) {
            const float* row = from.at(b, h, start + r);
            for (Size c = 0; c < channels; ++c) to[c * PANEL + r] = row[c];
        }
    }
}

// Rows [count, channels] times a factor, at a distance of `width` >= channels, zeros between.
void pack_rows(const View& from, Size b, Size h, Size first, Size count, Size channels, Size width, float factor,
               float* to) {
    for (Size r = 0; r < count; ++r, to += width) {
        const float* row = from.at(b, h, first + r);
        for (Size c = 0; c < channels; ++c) to[c] = row[c] * factor;
        for (Size c = channels; c < width; ++c) to[c] = 0;
    }
}

// Row h of the weights, I + coeff.
void add_identity(const float* coeff, Size heads, Size h, float* weight) {
    std::memcpy(weight + h * heads, coeff + h * heads, sizeof(float) * heads);
    weight[h * heads + h] += 1;
}

void unpack_rows(const float* from, Size width, Size count, Size channels, const View& to, Size b, Size h, Size first) {
    for (Size r = 0; r < count; ++r, from += width) std::memcpy(to.at(b, h, first + r), from, sizeof(float) * channels);
}

void forward_block(const Plan& p, float scale, Size b, Size first, const View& query, const float* weight,
                   const float* panels, const float* values, const View& output, float* log_sums, Room room) {
    const Size H = p.H, n = std::min(p.block, p.N - first);
    float* maps = room.take(p.maps());
    float* mixed = room.take(p.mixed());
    float* rows = room.take(p.query_rows());
    float* out = room.take(p.out_rows());
    float* inverse = room.take(p.row_sums());
    float* row_weight = room.take(p.weights());
    for (Size j = 0; j < H; ++j) {
        pack_rows(query, b, j, first, n, p.D, p.D, scale, rows);
        scores(n, p.D, rows, p.D, panels + j * p.Mp * p.D, 0, p.Mp, maps + p.map.at(j, 0), p.map.row);
        for (Size i = 0; i < n; ++i) {
            float* row = maps + p.map.at(j, i);
            float most = largest(row, p.M);
            float total = exponentials(row, p.M, p.Mp, most);
            inverse[j * n + i] = 1 / total;
            if (log_sums) log_sums[(b * H + j) * p.N + first + i] = most + std::log(total);
        }
    }
    for (Size start = 0; start < p.M; start += KEYS) {
        const Size columns = std::min(KEYS, p.Mp - start), keys = std::min(KEYS, p.M - start);
        for (Size i = 0; i < n; ++i) {  // what divides a row of maps is part of its weights
            for (Size h = 0; h < H; ++h)
                for (Size j = 0; j < H; ++j) row_weight[h * H + j] = weight[h * H + j] * inverse[j * n + i];
            product(H, columns, H, row_weight, H, 1, maps + p.map.at(0, i) + start, p.map.head,
                    mixed + p.mix.at(0, i), p.mix.head, false);
        }
        for (Size h = 0; h < H; ++h)
            product(n, p.Ep, keys, mixed + p.mix.at(h, 0), p.mix.row, 1, values + (h * p.M + start) * p.Ep, p.Ep,
                    out + h * n * p.Ep, p.Ep, start > 0);
    }
    for (Size h = 0; h < H; ++h) unpack_rows(out + h * n * p.Ep, p.Ep, n, p.E, output, b, h, first);
}

// What a thread of the backward adds up over its blocks.
struct Sums {
    float *weight, *key, *value;  // [H, H, VECTOR], [H, M, Dp], [H, M, Ep]; null where they are not needed
};

void backward_block(const Plan& p, float scale, Size b, Size first, const View& grad, const View& query,
                    const float* weight, const float* log_sums, const float* panels, const float* value_panels,
                    const float* key_rows, const View& query_grad, const Sums& sums, Room room) {
    const Size H = p.H, n = std::min(p.block, p.N - first);
    const bool scores_needed = query_grad.data || sums.key;
    float* maps = room.take(p.maps());        // A
    float* map_grads = room.take(p.maps());   // dA
    float* mixed = room.take(p.mixed());
    float* mixed_grads = room.take(p.mixed());  // dM
    float* rows = room.take(p.query_rows());
    float* row_grads = room.take(p.query_rows());
    float* out_grads = room.take(p.out_rows());
    float* row_sums = room.take(p.row_sums());
    for (Size h = 0; h < H; ++h) {
        pack_rows(query, b, h, first, n, p.D, p.Dp, scale, rows + h * n * p.Dp);
        pack_rows(grad, b, h, first, n, p.E, p.Ep, 1, out_grads + h * n * p.Ep);
    }
    std::fill(row_sums, row_sums + H * n, 0.0f);
    for (Size start = 0; start < p.M; start += KEYS) {
        const Size columns = std::min(KEYS, p.Mp - start), keys = std::min(KEYS, p.M - start);
        for (Size h = 0; h < H; ++h) {
            float* map = maps + p.map.at(h, 0) + start;
            scores(n, p.D, rows + h * n * p.Dp, p.Dp, panels + h * p.Mp * p.D, start, columns, map, p.map.row);
            for (Size i = 0; i < n; ++i)
                exponentials(map + i * p.map.row, keys, columns, log_sums[(b * H + h) * p.N + first + i]);
            scores(n, p.E, out_grads + h * n * p.Ep, p.Ep, value_panels + h * p.Mp * p.E, start, columns,
                   mixed_grads + p.mix.at(h, 0), p.mix.row);
        }
        for (Size i = 0; i < n; ++i) {
            const float* map = maps + p.map.at(0, i) + start;  // of the first head
            const float* mixed_grad = mixed_grads + p.mix.at(0, i);
            if (sums.weight) {
                for (Size h = 0; h < H; h += 4)
                    for (Size j = 0; j < H; j += 2)
                        DOTS[std::min<Size>(4, H - h) - 1][std::min<Size>(2, H - j) - 1](
                            mixed_grad + h * p.mix.head, p.mix.head, map + j * p.map.head, p.map.head, columns,
                            sums.weight + (h * H + j) * VECTOR, H);
            }
            if (scores_needed) {
                float* map_grad = map_grads + p.map.at(0, i) + start;
                product(H, columns, H, weight, 1, H, mixed_grad, p.mix.head, map_grad, p.map.head, false);
                for (Size j = 0; j < H; ++j)
                    row_sums[j * n + i] += dot(map_grad + j * p.map.head, map + j * p.map.head, columns);
            }
            if (sums.value)
                product(H, columns, H, weight, H, 1, map, p.map.head, mixed + p.mix.at(0, i), p.mix.head, false);
        }
        if (sums.value)
            for (Size h = 0; h < H; ++h)
                product(keys, p.Ep, n, mixed + p.mix.at(h, 0), 1, p.mix.row, out_grads + h * n * p.Ep, p.Ep,
                        sums.value + (h * p.M + start) * p.Ep, p.Ep, true);
    }
    if (!scores_needed) return;
    for (Size j = 0; j < H; ++j) {
        float* score_grads = mixed;  // dS of one head and some keys
        for (Size start = 0; start < p.M; start += KEYS) {
            const Size columns = std::min(KEYS, p.Mp - start), keys = std::min(KEYS, p.M - start);
            for (Size i = 0; i < n; ++i) {
                const float* map = maps + p.map.at(j, i) + start;
                const float* map_grad = map_grads + p.map.at(j, i) + start;
                for (Size m = 0; m < columns; m += VECTOR)
                    store(score_grads + i * p.mix.row + m, load(map + m) * (load(map_grad + m) - row_sums[j * n + i]));
            }
            if (query_grad.data)
                product(n, p.Dp, keys, score_grads, p.mix.row, 1, key_rows + (j * p.M + start) * p.Dp, p.Dp, row_grads,
                        p.Dp, start > 0);
            if (sums.key)
                product(keys, p.Dp, n, score_grads, 1, p.mix.row, rows + j * n * p.Dp, p.Dp,
                        sums.key + (j * p.M + start) * p.Dp, p.Dp, true);
        }
        if (query_grad.data) {
            for (Size i = 0; i < n * p.Dp; ++i) row_grads[i] *= scale;
            unpack_rows(row_grads, p.Dp, n, p.D, query_grad, b, j, first);
        }
    }
}

// The rows of all threads, added up in order, into a gradient of keys or values.
void add_up(const Sums* sums, float* Sums::*which, Size threads, Size count, Size channels, Size width, Size b, Size h,
            const View& to) {
    for (Size r = 0; r < count; ++r) {
        float* row = to.at(b, h, r);
        const Size at = (h * count + r) * width;
        for (Size c = 0; c < channels; ++c) {
            float total = 0;
            for (Size t = 0; t < threads; ++t) total += (sums[t].*which)[at + c];
            row[c] = total;
        }
    }
}

}  // namespace

extern "C" {

// Floats of scratch memory that the calls below need.
std::int64_t coeff_forward_room(const Shape* shape, std::int64_t threads) { return Plan(*shape, threads).forward_total(); }
std::int64_t coeff_backward_room(const Shape* shape, std::int64_t threads) { return Plan(*shape, threads).backward_total(); }

// coeff: [H, H] at a distance of coeff_batch from sample to sample. log_sums: [B, H, N], or null.
void coeff_forward(const Shape* shape, float scale, const View* query, const View* key, const View* value,
                   const float* coeff, std::int64_t coeff_batch, const View* output, float* log_sums, float* scratch,
                   std::int64_t threads) {
    const Plan p(*shape, threads);
    Room room{scratch};
    float* weight = room.take(p.weights());
    float* panels = room.take(p.panels());
    float* values = room.take(p.value_rows());
#pragma omp parallel num_threads(p.threads)
    for (Size b = 0; b < shape->batch; ++b) {
#pragma omp for schedule(static)
        for (Size h = 0; h < p.H; ++h) {
            add_identity(coeff + b * coeff_batch, p.H, h, weight);
            pack_panels(*key, b, h, p.M, p.D, panels + h * p.Mp * p.D);
            pack_rows(*value, b, h, 0, p.M, p.E, p.Ep, 1, values + h * p.M * p.Ep);
        }
#pragma omp for schedule(dynamic)
        for (Size block = 0; block < p.blocks; ++block) {
            Size thread = 0;
#ifdef _OPENMP
            thread = omp_get_thread_num();
#endif
            forward_block(p, scale, b, block * p.block, *query, weight, panels, values, *output,
                          log_sums, Room{room.next + thread * p.forward_room()});
        }
    }
}

// Gradients are written where their View has data; weight_grad: [B, H, H], or null.
void coeff_backward(const Shape* shape, float scale, const View* grad, const View* query, const View* key,
                    const View* value, const float* coeff, std::int64_t coeff_batch, const float* log_sums,
                    const View* query_grad, const View* key_grad, const View* value_grad, float* weight_grad,
                    float* scratch, std::int64_t threads) {
    const Plan p(*shape, threads);
    Room room{scratch};
    float* weight = room.take(p.weights());
    float* panels = room.take(p.panels());
    float* value_panels = room.take(p.value_panels());
    float* key_rows = room.take(p.key_rows());
    Sums sums[MOST_THREADS];
    for (Size t = 0; t < p.threads; ++t) {
        Room own{room.next + t * p.backward_room()};
        sums[t].weight = weight_grad ? own.take(p.weights() * VECTOR) : nullptr;
        sums[t].key = key_grad->data ? own.take(p.key_rows()) : nullptr;
        sums[t].value = value_grad->data ? own.take(p.value_rows()) : nullptr;
    }
#pragma omp parallel num_threads(p.threads)
    for (Size b = 0; b < shape->batch; ++b) {
#pragma omp for schedule(static)
        for (Size h = 0; h < p.H; ++h) {
            add_identity(coeff + b * coeff_batch, p.H, h, weight);
            pack_panels(*key, b, h, p.M, p.D, panels + h * p.Mp * p.D);
            pack_panels(*value, b, h, p.M, p.E, value_panels + h * p.Mp * p.E);
            if (query_grad->data) pack_rows(*key, b, h, 0, p.M, p.D, p.Dp, 1, key_rows + h * p.M * p.Dp);
        }
#pragma omp for schedule(static)
        for (Size t = 0; t < p.threads; ++t) {  // the same blocks by the same sums every time: bitwise the same result
            if (sums[t].weight) std::fill_n(sums[t].weight, p.H * p.H * VECTOR, 0.0f);
            if (sums[t].key) std::fill_n(sums[t].key, p.key_rows(), 0.0f);
            if (sums[t].value) std::fill_n(sums[t].value, p.value_rows(), 0.0f);
            for (Size block = t * p.blocks / p.threads; block < (t + 1) * p.blocks / p.threads; ++block)
                backward_block(p, scale, b, block * p.block, *grad, *query, weight, log_sums, panels, value_panels,
                               key_rows, *query_grad, sums[t], Room{room.next + t * p.backward_room() + p.sums()});
        }
#pragma omp for schedule(static)
        for (Size h = 0; h < p.H; ++h) {
            if (key_grad->data) add_up(sums, &Sums::key, p.threads, p.M, p.D, p.Dp, b, h, *key_grad);
            if (value_grad->data) add_up(sums, &Sums::value, p.threads, p.M, p.E, p.Ep, b, h, *value_grad);
            for (Size j = 0; weight_grad && j < p.H; ++j) {
                float total = 0;
                for (Size t = 0; t < p.threads; ++t)
                    total += sum(load(sums[t].weight + (h * p.H + j) * VECTOR));
                weight_grad[(b * p.H + h) * p.H + j] = total;
            }
        }
    }
}

}  // extern "C"
