// Small matrices of float32: one product that everything is made of, and passes over rows.
//
// Vectors are the compiler's own (GCC and Clang), as wide as the CPU's.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

using Size = std::int64_t;

#ifdef __AVX512F__
constexpr int VECTOR = 16;                      // floats
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 5;  // vectors, of 32 registers
#else
constexpr int VECTOR = 8;
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 2;  // of 16
#endif
constexpr Size PANEL = 32;                      // columns that are packed side by side

typedef float Vec __attribute__((vector_size(4 * VECTOR), aligned(4), may_alias));
typedef std::int32_t IntVec __attribute__((vector_size(4 * VECTOR), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
inline Vec broadcast(float x) { return x - Vec{}; }
inline Vec larger(Vec x, Vec y) { return x > y ? x : y; }
inline Size padded(Size count, Size unit) { return (count + unit - 1) / unit * unit; }

inline float sum(Vec x) {
    for (int half = VECTOR / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

// e^x for x <= 0, to about one unit in the last place (the method of the Cephes library); zero below e^-87.
inline Vec exponential(Vec x) {
    x = x < -87.0f ? broadcast(-88.0f) : x;  // whose power below has no bits; NaN stays
    const Vec magic = broadcast(12582912.0f);  // adding it rounds to an integer
    Vec whole = (x * 1.44269504f + magic) - magic;
    Vec rest = x - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    Vec y = broadcast(1.9875691500e-4f);
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * (rest * rest) + rest + 1.0f;
    IntVec bits = (__builtin_convertvector(whole, IntVec) + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

// C[r, :] (+)= sum_i A[r, i] B[i, :] for R rows and C columns of vectors, held in registers. What was there is added
// last: a sum of many products is a sum of short sums then, which rounds less.
// A is read at a + r * a_row + i * a_step.
template <int R, int C>
void tile(Size steps, const float* a, Size a_row, Size a_step, const float* b, Size b_step, float* c, Size c_row,
          bool add) {
    Vec total[R][C] = {};
    for (Size i = 0; i < steps; ++i) {
        Vec row[C];
#pragma GCC unroll 8
        for (int v = 0; v < C; ++v) row[v] = load(b + i * b_step + v * VECTOR);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vec factor = broadcast(a[r * a_row + i * a_step]);
#pragma GCC unroll 8
            for (int v = 0; v < C; ++v) total[r][v] += factor * row[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < C; ++v) {
            float* to = c + r * c_row + v * VECTOR;
            store(to, add ? load(to) + total[r][v] : total[r][v]);
        }
}

using Tile = void (*)(Size, const float*, Size, Size, const float*, Size, float*, Size, bool);
constexpr Tile TILES[4][5] = {
    {tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>, tile<1, 5>},
    {tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>, tile<2, 5>},
    {tile<3, 1>, tile<3, 2>, tile<3, 3>, tile<3, 4>, tile<3, 5>},
    {tile<4, 1>, tile<4, 2>, tile<4, 3>, tile<4, 4>, tile<4, 5>},
};

// C (+)= A B for matrices of any height; `columns` is a multiple of VECTOR.
inline void product(Size rows, Size columns, Size steps, const float* a, Size a_row, Size a_step, const float* b,
                    Size b_step, float* c, Size c_row, bool add) {
    Size wide = columns / VECTOR;
    const Size strips = (wide + TILE_COLUMNS - 1) / TILE_COLUMNS;
    for (Size left = strips, column = 0; left > 0; --left) {  // strips of equal width, as far as it goes
        Size width = (wide + left - 1) / left;
        for (Size row = 0; row < rows; row += TILE_ROWS) {
            Size height = std::min<Size>(TILE_ROWS, rows - row);
            TILES[height - 1][width - 1](steps, a + row * a_row, a_row, a_step, b + column, b_step,
                                         c + row * c_row + column, c_row, add);
        }
        wide -= width;
        column += width * VECTOR;
    }
}

// Rows against the rows that are packed in panels, [.. / PANEL][channels][PANEL], from `first` to first + columns.
// `piece` channels are added up at a time.
void scores(Size count, Size channels, Size piece, const float* rows, Size width, const float* panels, Size first,
            Size columns, float* to, Size to_row) {
    const float* panel = panels + first * channels;
    for (Size start = 0; start < columns; start += PANEL, panel += channels * PANEL)
        for (Size c = 0; c < channels; c += piece)
            product(count, PANEL, std::min(piece, channels - c), rows + c, width, 1, panel + c * PANEL, PANEL,
                    to + start, to_row, c > 0);
}

// x -> e^(x - shift) factor in place for `count` entries, zeros from there to `end`; returns the sum.
inline float exponentials(float* x, Size count, Size end, float shift, float factor) {
    Vec total[2] = {Vec{}, Vec{}};
    Size i = 0;
    for (; i + 2 * VECTOR <= count; i += 2 * VECTOR) {
        for (int part = 0; part < 2; ++part) {
            Vec y = exponential(load(x + i + part * VECTOR) - shift) * factor;
            store(x + i + part * VECTOR, y);
            total[part] += y;
        }
    }
    for (; i + VECTOR <= count; i += VECTOR) {
        Vec y = exponential(load(x + i) - shift) * factor;
        store(x + i, y);
        total[0] += y;
    }
    if (i < count) {
        Vec rest = broadcast(-87.0f);
        for (Size k = i; k < count; ++k) rest[k - i] = x[k] - shift;
        rest = exponential(rest) * factor;
        for (Size k = i; k < count; ++k) total[1][k - i] += x[k] = rest[k - i];
    }
    std::fill(x + count, x + end, 0.0f);
    return sum(total[0] + total[1]);
}

void add(float* x, const float* y, Size count) {
    Size i = 0;
    for (; i + VECTOR <= count; i += VECTOR) store(x + i, load(x + i) + load(y + i));
    for (; i < count; ++i) x[i] += y[i];
}

float largest(const float* x, Size count) {
    Size i = 0;
    float most = -INFINITY;
    if (count >= 4 * VECTOR) {
        Vec part[4] = {load(x), load(x + VECTOR), load(x + 2 * VECTOR), load(x + 3 * VECTOR)};
        for (i = 4 * VECTOR; i + 4 * VECTOR <= count; i += 4 * VECTOR)
            for (int p = 0; p < 4; ++p) part[p] = larger(part[p], load(x + i + p * VECTOR));
        Vec both = larger(larger(part[0], part[1]), larger(part[2], part[3]));
        for (int k = 0; k < VECTOR; ++k) most = std::max(most, both[k]);
    }
    for (; i < count; ++i) most = std::max(most, x[i]);
    return most;
}

float dot(const float* x, const float* y, Size count) {  // count: a multiple of VECTOR
    Vec total[2] = {Vec{}, Vec{}};
    Size i = 0;
    for (; i + 2 * VECTOR <= count; i += 2 * VECTOR)
        for (int p = 0; p < 2; ++p) total[p] += load(x + i + p * VECTOR) * load(y + i + p * VECTOR);
    for (; i < count; i += VECTOR) total[0] += load(x + i) * load(y + i);
    return sum(total[0] + total[1]);
}

// totals[r, c] += x[r, :] * y[c, :], vector by vector, for R rows x and C rows y.
template <int R, int C>
void dots(const float* x, Size x_row, const float* y, Size y_row, Size count, float* totals, Size row) {
    Vec total[R][C] = {};
    for (Size i = 0; i < count; i += VECTOR) {
        Vec right[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) right[c] = load(y + c * y_row + i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vec left = load(x + r * x_row + i);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) total[r][c] += left * right[c];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            float* to = totals + (r * row + c) * VECTOR;
            store(to, load(to) + total[r][c]);
        }
}

// totals[h, j] += x[h, :] * y[j, :], vector by vector, for `count` rows x and as many rows y.
inline void add_dots(Size count, Size columns, const float* x, Size x_row, const float* y, Size y_row, float* totals) {
    using Dots = void (*)(const float*, Size, const float*, Size, Size, float*, Size);
    static constexpr Dots DOTS[4][2] = {
        {dots<1, 1>, dots<1, 2>}, {dots<2, 1>, dots<2, 2>}, {dots<3, 1>, dots<3, 2>}, {dots<4, 1>, dots<4, 2>}};
    for (Size h = 0; h < count; h += 4)
        for (Size j = 0; j < count; j += 2)
            DOTS[std::min<Size>(4, count - h) - 1][std::min<Size>(2, count - j) - 1](
                x + h * x_row, x_row, y + j * y_row, y_row, columns, totals + (h * count + j) * VECTOR, count);
}

}  // namespace
