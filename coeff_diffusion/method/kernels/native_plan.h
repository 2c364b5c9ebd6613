// How the work of one call is cut, the memory for it, and how tensors get in and out.
//
// Legend: B samples, H heads, N queries, M keys, D channels of a key, E of a value, n queries of a block.
// Matrices are padded to whole vectors: Mp keys, Dp and Ep channels.

#pragma once

#include <algorithm>
#include <cstring>

#include "native_matrices.h"

namespace {

constexpr Size LINE = 16;          // floats of a cache line
constexpr Size KEYS = 256;         // keys that are mixed at once
constexpr Size FEW = 8;            // channels: what PyTorch adds up at a time where keys are few, and rounds less
constexpr Size QUERIES = 32;       // of a block, at most: the maps of a head then fit a core's cache
constexpr Size MAPS = 8 << 20;     // entries of the maps that all threads hold at once, at most
constexpr Size MOST_THREADS = 32;  // each has sums of its own in the backward, twice the size of the keys
static_assert(KEYS % PANEL == 0 && PANEL % VECTOR == 0 && QUERIES % TILE_ROWS == 0);

struct Shape {
    Size batch, heads, queries, keys, channels, value_channels;
};

// A tensor [B, H, rows, channels] whose channels lie side by side; strides in floats.
struct View {
    float* data;
    Size batch, head, row;

    float* at(Size b, Size h, Size r) const { return data + b * batch + h * head + r * row; }
};

// What makes a row of scores a row of a map: e^(score - most) * inverse.
struct RowScale {
    float most, inverse;
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
    Size piece;      // channels that a score adds up at a time
    Stack map, mix;  // all keys, and KEYS of them

    Plan(const Shape& s, Size wanted_threads)
        : H(s.heads), N(s.queries), M(s.keys), D(s.channels), E(s.value_channels),
          Mp(padded(M, PANEL)), Dp(padded(D, VECTOR)), Ep(padded(E, VECTOR)),
          block(block_of(std::min(wanted_threads, MOST_THREADS))), blocks((N + block - 1) / block),
          threads(std::min({wanted_threads, MOST_THREADS, blocks})),
          piece(M <= PANEL ? FEW : std::max(D, E)), map(block, Mp), mix(block, KEYS) {}
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
        return sums() + 2 * (maps() + mixed() + query_rows()) + out_rows() + row_sums() + weights() * VECTOR;
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

}  // namespace
