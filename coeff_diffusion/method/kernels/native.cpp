// Recombined attention on CPUs, float32, forward and backward. `native.py` compiles this file and calls it.
//
// A thread takes a block of queries through all heads: scores and maps of the whole block, [H, n, M], then, a few keys
// at a time, what mixing makes of them, and its product with the values. Nothing of the size of all maps exists, and
// what a thread has written comes back from its own cache. The backward computes the maps again from two numbers a row:
// its largest score, and what the sum of its exponentials is divided by. One number, the log-sum-exp, would be rounded
// as scores are, so that rows of large scores did not sum to one. With A the maps, W = I + coeff and dO the gradient of
// the output:
//
//     dM[h] = dO[h] V[h]^T                dW[h, j] = sum dM[h] * A[j]          dV[h] = (sum_j W[h, j] A[j])^T dO[h]
//     dA[j] = sum_h W[h, j] dM[h]         dS[j] = A[j] * (dA[j] - rowsum(dA[j] * A[j]))
//     dQ[j] = scale dS[j] K[j]            dK[j] = scale dS[j]^T Q[j]
//
// Legend: B samples, H heads, N queries, M keys, D channels of a key, E of a value, n queries of a block.
// Matrices are padded to whole vectors: Mp keys, Dp and Ep channels.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "native_plan.h"

namespace {

void forward_block(const Plan& p, float scale, Size b, Size first, const View& query, const float* weight,
                   const float* panels, const float* values, const View& mask, const View& output, RowScale* saved,
                   Room room) {
    const Size H = p.H, n = std::min(p.block, p.N - first);
    float* maps = room.take(p.maps());
    float* mixed = room.take(p.mixed());
    float* rows = room.take(p.query_rows());
    float* out = room.take(p.out_rows());
    float* inverse = room.take(p.row_sums());
    float* row_weight = room.take(p.weights());
    for (Size j = 0; j < H; ++j) {
        pack_rows(query, b, j, first, n, p.D, p.D, scale, rows);
        scores(n, p.D, p.piece, rows, p.D, panels + j * p.Mp * p.D, 0, p.Mp, maps + p.map.at(j, 0), p.map.row);
        for (Size i = 0; i < n; ++i) {
            float* row = maps + p.map.at(j, i);
            if (mask.data) add(row, mask.at(b, j, first + i), p.M);
            RowScale scale{largest(row, p.M), 0};
            if (mask.data && scale.most == -INFINITY) scale.most = 0;  // it may attend to nothing: zeros
            float total = exponentials(row, p.M, p.Mp, scale.most, 1);
            if (total != 0) scale.inverse = 1 / total;
            inverse[j * n + i] = scale.inverse;
            if (saved) saved[(b * H + j) * p.N + first + i] = scale;
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

struct Backward {
    const Plan& p;
    float scale;
    View grad, query, mask, query_grad;
    const RowScale* saved;
    const float *weight, *panels, *value_panels, *key_rows;

    // Adds the block of queries that begins with `first` to the sums, and writes the gradients of these queries.
    void block(Size b, Size first, const Sums& sums, Room room) const {
        const Size H = p.H, n = std::min(p.block, p.N - first);
        const bool scores_needed = query_grad.data || sums.key;
        float* maps = room.take(p.maps());          // A
        float* map_grads = room.take(p.maps());     // dA
        float* mixed = room.take(p.mixed());        // W A, of KEYS keys
        float* mixed_grads = room.take(p.mixed());  // dM
        float* rows = room.take(p.query_rows());
        float* out_grads = room.take(p.out_rows());
        float* row_sums = room.take(p.row_sums());
        float* weight_grads = room.take(p.weights() * VECTOR);
        for (Size h = 0; h < H; ++h) {
            pack_rows(query, b, h, first, n, p.D, p.Dp, scale, rows + h * n * p.Dp);
            pack_rows(grad, b, h, first, n, p.E, p.Ep, 1, out_grads + h * n * p.Ep);
        }
        std::fill_n(row_sums, H * n, 0.0f);
        std::fill_n(weight_grads, H * H * VECTOR, 0.0f);
        for (Size start = 0; start < p.M; start += KEYS) {
            const Size columns = std::min(KEYS, p.Mp - start), keys = std::min(KEYS, p.M - start);
            for (Size h = 0; h < H; ++h) {
                float* map = maps + p.map.at(h, 0) + start;
                scores(n, p.D, p.piece, rows + h * n * p.Dp, p.Dp, panels + h * p.Mp * p.D, start, columns, map,
                       p.map.row);
                for (Size i = 0; i < n; ++i) {
                    const RowScale of = saved[(b * H + h) * p.N + first + i];
                    if (mask.data) add(map + i * p.map.row, mask.at(b, h, first + i) + start, keys);
                    exponentials(map + i * p.map.row, keys, columns, of.most, of.inverse);
                }
                scores(n, p.E, p.piece, out_grads + h * n * p.Ep, p.Ep, value_panels + h * p.Mp * p.E, start, columns,
                       mixed_grads + p.mix.at(h, 0), p.mix.row);
            }
            for (Size i = 0; i < n; ++i) {  // pointers to the first head's rows; p.map.head and p.mix.head lead on
                const float* map = maps + p.map.at(0, i) + start;
                const float* mixed_grad = mixed_grads + p.mix.at(0, i);
                if (sums.weight) add_dots(H, columns, mixed_grad, p.mix.head, map, p.map.head, weight_grads);
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
        if (sums.weight)
            for (Size i = 0; i < H * H * VECTOR; ++i) sums.weight[i] += weight_grads[i];
        if (!scores_needed) return;
        for (Size j = 0; j < H; ++j)
            scores_of(b, j, first, n, maps, map_grads, row_sums + j * n, rows + j * n * p.Dp, mixed, sums, room);
    }

    // One head: from the gradients of its scores, dS, to those of its queries and keys.
    void scores_of(Size b, Size j, Size first, Size n, const float* maps, const float* map_grads, const float* row_sums,
                   const float* rows, float* score_grads, const Sums& sums, Room room) const {
        float* row_grads = room.take(p.query_rows());
        for (Size start = 0; start < p.M; start += KEYS) {
            const Size columns = std::min(KEYS, p.Mp - start), keys = std::min(KEYS, p.M - start);
            for (Size i = 0; i < n; ++i) {
                const float* map = maps + p.map.at(j, i) + start;
                const float* map_grad = map_grads + p.map.at(j, i) + start;
                const float row_sum = row_sums[i];
                float* score_grad = score_grads + i * p.mix.row;
                for (Size m = 0; m < columns; m += VECTOR)
                    store(score_grad + m, load(map + m) * (load(map_grad + m) - row_sum));
            }
            if (query_grad.data)
                product(n, p.Dp, keys, score_grads, p.mix.row, 1, key_rows + (j * p.M + start) * p.Dp, p.Dp, row_grads,
                        p.Dp, start > 0);
            if (sums.key)
                product(keys, p.Dp, n, score_grads, 1, p.mix.row, rows, p.Dp, sums.key + (j * p.M + start) * p.Dp, p.Dp,
                        true);
        }
        if (!query_grad.data) return;
        for (Size i = 0; i < n * p.Dp; ++i) row_grads[i] *= scale;
        unpack_rows(row_grads, p.Dp, n, p.D, query_grad, b, j, first);
    }
};

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

// coeff: [H, H] at a distance of coeff_batch from sample to sample. mask: [B, H, N, M], added to the scores, or without
// data. saved: [B, H, N], for the backward, or null.
void coeff_forward(const Shape* shape, float scale, const View* query, const View* key, const View* value,
                   const float* coeff, std::int64_t coeff_batch, const View* mask, const View* output, RowScale* saved,
                   float* scratch, std::int64_t threads) {
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
            const Size thread = omp_get_thread_num();
            forward_block(p, scale, b, block * p.block, *query, weight, panels, values, *mask, *output,
                          saved, Room{room.next + thread * p.forward_room()});
        }
    }
}

// Gradients are written where their View has data; weight_grad: [B, H, H], or null.
void coeff_backward(const Shape* shape, float scale, const View* grad, const View* query, const View* key,
                    const View* value, const float* coeff, std::int64_t coeff_batch, const View* mask,
                    const RowScale* saved, const View* query_grad, const View* key_grad, const View* value_grad, float* weight_grad,
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
    const Backward backward{p,     scale,  *grad,  *query,       *mask,   *query_grad,
                            saved, weight, panels, value_panels, key_rows};
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
                backward.block(b, block * p.block, sums[t],
                               Room{room.next + t * p.backward_room() + p.sums()});
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
