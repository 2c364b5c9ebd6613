// Recombined attention on a GPU, in half precision: no map ever leaves the multiprocessor that forms it.
//
//     out[h] = sum_j W[h, j] softmax(scale * query[j] key[j]^T) value[h]        W = I + coeff
//
// A warp takes 16 queries and a group of G heads; the warps that take the other groups of the same queries are in the
// same block. Pass 1 finds what divides each row of the maps. In pass 2, for C keys at a time, a warp forms the maps of
// its own group and leaves them in shared memory; then it reads those of all groups, adds up W[h, j] maps[j] for its own
// heads h, and multiplies with their values. So every map is formed once a pass, however many heads there are, and the
// sums of a group fit into the registers. While the maps of C keys are mixed, those of the next C are formed.
//
// Maps wait in shared memory as float16, whatever the type of the inputs: they are at most 1, and float16 is eight
// times finer there than bfloat16. Inputs of bfloat16 are mixed in float16 (its error is a fraction of that of rounding
// the sums to bfloat16, which attention does anyway), inputs of float16 in float32.
//
// A thread's part of a tile is what the tensor cores make it: of 16 x 8 numbers, those of row lane / 4, columns
// 2 (lane % 4) and the next, and the same of the row 8 below. Sums of products, [16, 16], are operands of the next
// product as they lie.
//
// Constants: H heads, D channels (a multiple of 8), G heads of a group, R tiles of 16 queries a block, C keys at a time,
// BFLOAT16, EVEN (the number of keys is a multiple of C).
// Heads lie side by side: channel d of head h is number D h + d of a token's row.

constexpr int GROUPS = (H + G - 1) / G, WARPS = GROUPS * R, THREADS = 32 * WARPS;
constexpr int WIDE = D / 16, NARROW = D % 16 / 8;  // a row of queries in products over 16 and over 8 channels
constexpr int QUERY_WORDS = 4 * WIDE + 2 * NARROW;
constexpr int COLUMNS = C / 8, SLICES = C / 16, CHANNELS = D / 8;
constexpr int PIECES = H * D / 8;           // of 16 bytes, in a row of all heads
constexpr int PITCH = 16 * (PIECES | 1);    // bytes; an odd number of pieces: rows begin in different banks
constexpr int ROWS_BYTES = C * PITCH, SLICE_BYTES = 32 * 16, MAPS_BYTES = R * H * SLICES * SLICE_BYTES;
constexpr u32 KEYS_AT = 0, VALUES_AT = 2 * ROWS_BYTES, MAPS_AT = 4 * ROWS_BYTES, WEIGHTS_AT = MAPS_AT + 2 * MAPS_BYTES;
static_assert(D % 8 == 0 && C % 16 == 0, "tiles do not fit");

typedef unsigned short half_bits;

struct Tokens {
    const half_bits* data;
    long long batch, row;  // strides
};

struct Arguments {
    Tokens query, key, value;
    const float* coeff;
    long long coeff_batch;  // stride: 0 for one matrix
    half_bits* out;         // [B, rows, H, D]
    float* stats;           // [B, H, 2, rows] or null: map = exp2(scores - stats[0]) * stats[1]
    int rows, columns;
    float scale;  // on scores, to base 2; positive
};

// C rows of all heads, into shared memory; x begins at this lane's first piece of row 0.
FUNCTION void fetch(u32 to, const half_bits* x, long long stride, int start, int size) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    to += warp * PITCH + lane * 16;
    x += (start + warp) * stride;
#pragma unroll
    for (int row = 0; row < C; row += WARPS) {
        if (C % WARPS == 0 || row + warp < C) {
            const bool inside = EVEN || start + row + warp < size;
            const half_bits* from = inside ? x : x - (start + row + warp) * stride;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += 32)
                if (piece + 32 <= PIECES || lane < PIECES - piece)
                    copy_16_bytes(to + row * PITCH + piece * 16, from + piece * 8, inside);
        }
        x += WARPS * stride;
    }
}

// Products of 16 queries with C keys of one head; -inf for keys from `size` on.
FUNCTION void multiply_keys(float (*scores)[4], const u32* query, u32 keys, int head, int start, int size) {
    const int lane = threadIdx.x % 32;
    const u32 from = keys + head * D * 2;
    const u32 wide = from + ((lane & 7) + (lane >> 4) * 8) * PITCH + ((lane >> 3) & 1) * 16;
    const u32 narrow = from + ((lane & 7) + ((lane >> 3) & 1) * 8) * PITCH + WIDE * 32;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
    for (int slice = 0; slice < SLICES; slice++) {
#pragma unroll
        for (int k = 0; k < WIDE; k++) {
            u32 key[4];
            load_matrices_4(key, wide + slice * 16 * PITCH + k * 32);
            multiply_16(scores[2 * slice], query + 4 * k, key[0], key[1]);
            multiply_16(scores[2 * slice + 1], query + 4 * k, key[2], key[3]);
        }
        if (NARROW) {
            u32 key[2];
            load_matrices_2(key, narrow + slice * 16 * PITCH);
            multiply_8(scores[2 * slice], query + 4 * WIDE, key[0]);
            multiply_8(scores[2 * slice + 1], query + 4 * WIDE, key[1]);
        }
    }
    if (!EVEN) {
        const int left = size - start - lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            if (8 * n >= left) scores[n][0] = scores[n][2] = from_bits(0xff800000);
            if (8 * n + 1 >= left) scores[n][1] = scores[n][3] = from_bits(0xff800000);
        }
    }
}

KERNEL(THREADS) recombine(const Arguments given) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp % GROUPS, tile = warp / GROUPS;
    const int sample = blockIdx.y, row = (blockIdx.x * R + tile) * 16 + lane / 4;  // and row + 8
    const int rows = given.rows, columns = given.columns, steps = (columns + C - 1) / C;
    const float scale = given.scale;
    const u32 memory = shared_memory();
    const half_bits* keys = given.key.data + sample * given.key.batch + lane * 8;
    const half_bits* values = given.value.data + sample * given.value.batch + lane * 8;

    fetch(memory + KEYS_AT, keys, given.key.row, 0, columns);
    for (int i = threadIdx.x; i < H * GROUPS * G; i += THREADS) {  // weights, [group, j, g]
        const int h = i / G / H * G + i % G, j = i / G % H;
        const float weight = h < H ? given.coeff[sample * given.coeff_batch + h * H + j] + (h == j) : 0.0f;
        store_word(memory + WEIGHTS_AT + 4 * i, BFLOAT16 ? float16_pair(weight, weight) : bits(weight));
    }

    // ---- this warp's queries
    u32 query[G][QUERY_WORDS];
#pragma unroll
    for (int i = 0; i < G; i++) {
        const long long head = min(group * G + i, H - 1) * D + lane % 4 * 2;
        const half_bits* from = given.query.data + sample * given.query.batch + head;
        const half_bits* upper = from + min(row, rows - 1) * given.query.row;
        const half_bits* lower = from + min(row + 8, rows - 1) * given.query.row;
#pragma unroll
        for (int k = 0; k < WIDE + NARROW; k++) {
            query[i][4 * k] = *reinterpret_cast<const u32*>(upper + 16 * k);
            query[i][4 * k + 1] = *reinterpret_cast<const u32*>(lower + 16 * k);
            if (k < WIDE) {
                query[i][4 * k + 2] = *reinterpret_cast<const u32*>(upper + 16 * k + 8);
                query[i][4 * k + 3] = *reinterpret_cast<const u32*>(lower + 16 * k + 8);
            }
        }
    }

    // ---- pass 1: the largest score of every row, and the sum of exponentials; every lane for its own columns at first
    float top[G][2], sum[G][2];
#pragma unroll
    for (int i = 0; i < G; i++) {
        top[i][0] = top[i][1] = -1e30f;
        sum[i][0] = sum[i][1] = 0.0f;
    }
    for (int step = 0; step < steps; step++) {
        wait_for_copies();
        meet();
        if (step + 1 < steps) fetch(memory + KEYS_AT + (step + 1) % 2 * ROWS_BYTES, keys, given.key.row, (step + 1) * C, columns);
#pragma unroll
        for (int i = 0; i < G; i++) {
            float scores[COLUMNS][4];
            multiply_keys(scores, query[i], memory + KEYS_AT + step % 2 * ROWS_BYTES, min(group * G + i, H - 1), step * C, columns);
#pragma unroll
            for (int below = 0; below < 2; below++) {
                float most = top[i][below];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) most = fmaxf(most, fmaxf(scores[n][2 * below], scores[n][2 * below + 1]));
                const float shift = most * scale;
                float total = sum[i][below] * exp2_of(top[i][below] * scale - shift);
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
                    total += exp2_of(scores[n][2 * below] * scale - shift) + exp2_of(scores[n][2 * below + 1] * scale - shift);
                top[i][below] = most;
                sum[i][below] = total;
            }
        }
    }
    float shift[G][2];  // map = exp2(scores * scale - shift)
#pragma unroll
    for (int i = 0; i < G; i++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            float most = top[i][below], total = sum[i][below];
#pragma unroll
            for (int mask = 1; mask < 4; mask *= 2) {
                const float other = of_lane_xor(most, mask), rest = of_lane_xor(total, mask), both = fmaxf(most, other);
                total = total * exp2_of((most - both) * scale) + rest * exp2_of((other - both) * scale);
                most = both;
            }
            shift[i][below] = most * scale + log2_of(total);
            const int h = group * G + i, n = row + 8 * below;
            if (given.stats && lane % 4 == 0 && h < H && n < rows) {
                float* stats = given.stats + (static_cast<long long>(sample) * H + h) * 2 * rows + n;
                stats[0] = shift[i][below];
                stats[rows] = 1.0f;
            }
        }

    // ---- pass 2
    const auto form_map = [&](int i, int step) {  // for all warps of these queries
        if (group * G + i < H) {
            float scores[COLUMNS][4];
            multiply_keys(scores, query[i], memory + KEYS_AT + step % 2 * ROWS_BYTES, group * G + i, step * C, columns);
            const u32 to = memory + MAPS_AT + step % 2 * MAPS_BYTES + (tile * H + group * G + i) * SLICES * SLICE_BYTES + lane * 16;
#pragma unroll
            for (int slice = 0; slice < SLICES; slice++) {
                u32 map[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float* pair = scores[2 * slice + e / 2] + e % 2 * 2;
                    map[e] = float16_pair(exp2_of(pair[0] * scale - shift[i][e % 2]), exp2_of(pair[1] * scale - shift[i][e % 2]));
                }
                store_4_words(to + slice * SLICE_BYTES, map);
            }
        }
    };
    float totals[G][CHANNELS][4];
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int n = 0; n < CHANNELS; n++) totals[g][n][0] = totals[g][n][1] = totals[g][n][2] = totals[g][n][3] = 0.0f;
    meet();
    fetch(memory + KEYS_AT, keys, given.key.row, 0, columns);
    fetch(memory + VALUES_AT, values, given.value.row, 0, columns);
    wait_for_copies();
    meet();
    if (steps > 1) fetch(memory + KEYS_AT + ROWS_BYTES, keys, given.key.row, C, columns);
#pragma unroll
    for (int i = 0; i < G; i++) form_map(i, 0);
    for (int step = 0; step < steps; step++) {
        wait_for_copies();
        meet();
        if (step + 2 < steps) fetch(memory + KEYS_AT + step % 2 * ROWS_BYTES, keys, given.key.row, (step + 2) * C, columns);
        if (step + 1 < steps) fetch(memory + VALUES_AT + (step + 1) % 2 * ROWS_BYTES, values, given.value.row, (step + 1) * C, columns);
        u32 mixed[G][SLICES][BFLOAT16 ? 4 : 8];  // pairs of float16, or the bits of float32
        const u32 maps = memory + MAPS_AT + step % 2 * MAPS_BYTES + tile * H * SLICES * SLICE_BYTES + lane * 16;
#pragma unroll
        for (int i = 0; i < G; i++) {
            // Without a branch, where there are many steps: one after the last is formed of anything and never read.
            if (EVEN || step + 1 < steps) form_map(i, step + 1);
#pragma unroll
            for (int turn = 0; turn < GROUPS; turn++) {
                const int j = i * GROUPS + turn;
                if (j >= H) continue;
                u32 weights[G];
                const u32 weights_at = memory + WEIGHTS_AT + (group * H + j) * G * 4;
#pragma unroll
                for (int g = 0; g < G; g += G % 4 ? 1 : 4) {
                    if (G % 4) weights[g] = load_word(weights_at + 4 * g);
                    else load_4_words(weights + g, weights_at + 4 * g);
                }
#pragma unroll
                for (int slice = 0; slice < SLICES; slice++) {
                    u32 map[4];
                    load_4_words(map, maps + (j * SLICES + slice) * SLICE_BYTES);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        if (BFLOAT16) {
#pragma unroll
                            for (int g = 0; g < G; g++) {
                                u32& to = mixed[g][slice][e];
                                to = fma_float16_pair(weights[g], map[e], j ? to : 0u);
                            }
                        } else {
                            float first, second;
                            split_float16_pair(map[e], first, second);
#pragma unroll
                            for (int g = 0; g < G; g++) {
                                u32* to = mixed[g][slice] + (BFLOAT16 ? 0 : 2 * e);
                                const float weight = from_bits(weights[g]);
                                to[0] = bits(fmaf(weight, first, j ? from_bits(to[0]) : 0.0f));
                                to[1] = bits(fmaf(weight, second, j ? from_bits(to[1]) : 0.0f));
                            }
                        }
                    }
                }
            }
        }
        const u32 from = memory + VALUES_AT + step % 2 * ROWS_BYTES + ((lane & 7) + ((lane >> 3) & 1) * 8) * PITCH;
#pragma unroll
        for (int g = 0; g < G; g++) {
            const u32 head = from + min(group * G + g, H - 1) * D * 2;
#pragma unroll
            for (int slice = 0; slice < SLICES; slice++) {
                u32 map[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float first, second;
                    if (BFLOAT16) {
                        split_float16_pair(mixed[g][slice][e], first, second);
                    } else {
                        first = from_bits(mixed[g][slice][BFLOAT16 ? 0 : 2 * e]);
                        second = from_bits(mixed[g][slice][BFLOAT16 ? 0 : 2 * e + 1]);
                    }
                    map[e] = pair_of_type(first, second);
                }
#pragma unroll
                for (int n = 0; n + 1 < CHANNELS; n += 2) {
                    u32 value[4];
                    load_transposed_4(value, head + slice * 16 * PITCH + n * 16 + (lane >> 4) * 16);
                    multiply_16(totals[g][n], map, value[0], value[1]);
                    multiply_16(totals[g][n + 1], map, value[2], value[3]);
                }
                if (CHANNELS % 2) {
                    u32 value[2];
                    load_transposed_2(value, head + slice * 16 * PITCH + (CHANNELS - 1) * 16);
                    multiply_16(totals[g][CHANNELS - 1], map, value[0], value[1]);
                }
            }
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            const int h = group * G + g, n = row + 8 * below;
            if (h < H && n < rows) {
                half_bits* to = given.out + ((static_cast<long long>(sample) * rows + n) * H + h) * D + lane % 4 * 2;
#pragma unroll
                for (int c = 0; c < CHANNELS; c++)
                    *reinterpret_cast<u32*>(to + 8 * c) = pair_of_type(totals[g][c][2 * below], totals[g][c][2 * below + 1]);
            }
        }
}
