// What the kernels of recombined attention on a GPU are made of; see `cuda_recombine.cu` and `cuda_row_stats.cu`.
//
// A thread's part of a tile is what the tensor cores make it: of 16 x 8 numbers, those of row lane / 4, columns
// 2 (lane % 4) and the next, and the same of the row 8 below. Sums of products, [16, 16], are operands of the next
// product as they lie.
//
// Constants: H heads, D channels (a multiple of 8), G heads of a group, R tiles of 16 queries a block, C keys at a time,
// BFLOAT16, EVEN (the number of keys is a multiple of C), STATS (`cuda_row_stats.cu`: blocks are of one head), and
// those of `cuda_recombine.cu` alone: SHARED (queries wait in shared memory, else in registers), PLACES (where C rows
// wait: two for values and two for keys, or two and one, or one and one), APART (the rows' statistics were found by `cuda_row_stats.cu`).
// Heads lie side by side: channel d of head h is number D h + d of a token's row.

constexpr int STAGED = STATS ? 1 : H;  // heads whose rows are in shared memory
constexpr int TILES = STATS ? 2 : 1;   // of 16 queries, that a warp takes
constexpr int GROUPS = (STAGED + G - 1) / G, WARPS = GROUPS * R / TILES, THREADS = 32 * WARPS;
constexpr bool ALONE = GROUPS == 1;  // no map is anybody else's
constexpr int WIDE = D / 16, NARROW = D % 16 / 8;  // a row of queries in products over 16 and over 8 channels
constexpr int QUERY_WORDS = 4 * WIDE + 2 * NARROW;
constexpr int COLUMNS = C / 8, SLICES = C / 16, CHANNELS = D / 8;
constexpr int PIECES = STAGED * D / 8;      // of 16 bytes, in a row
constexpr int PITCH = 16 * (PIECES | 1);    // bytes; an odd number of pieces: rows begin in different banks
constexpr int ROWS_BYTES = C * PITCH, SLICE_BYTES = 32 * 16, MAPS_BYTES = R * H * SLICES * SLICE_BYTES;
constexpr bool AHEAD = PLACES == 4 && !ALONE;  // maps of the next keys are formed while those of these are mixed
constexpr int KEY_PLACES = PLACES == 4 ? 2 : 1, VALUE_PLACES = PLACES - KEY_PLACES, MAP_PLACES = ALONE ? 0 : KEY_PLACES;
constexpr u32 VALUES_AT = 0, KEYS_AT = VALUE_PLACES * ROWS_BYTES;  // pass 1 has keys in the first two places
constexpr u32 MAPS_AT = PLACES * ROWS_BYTES, QUERIES_AT = MAPS_AT + MAP_PLACES * MAPS_BYTES;
constexpr u32 WEIGHTS_AT = QUERIES_AT + (SHARED ? 16 * R * PITCH : 0);
static_assert(D % 8 == 0 && C % 16 == 0 && R % TILES == 0 && (!ALONE || PLACES == 4), "tiles do not fit");

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

// Rows of all heads (in `row_stats`, of one), into shared memory; from x, row 0. Outside of `size` rows: zeros.
template <int COUNT, bool WHOLE>
FUNCTION void fetch(u32 to, const half_bits* x, long long stride, int start, int size) {
    if (STATS) {
#pragma unroll
        for (int first = 0; first < COUNT * PIECES; first += THREADS) {
            const int i = first + threadIdx.x, row = i / PIECES, piece = i % PIECES;
            const bool inside = WHOLE || start + row < size;
            if (COUNT * PIECES % THREADS == 0 || i < COUNT * PIECES)
                copy_16_bytes(to + row * PITCH + piece * 16, x + (inside ? start + row : 0) * stride + piece * 8, inside);
        }
        return;
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    to += warp * PITCH + lane * 16;
    x += (start + warp) * stride + lane * 8;
#pragma unroll
    for (int row = 0; row < COUNT; row += WARPS) {
        if (COUNT % WARPS == 0 || row + warp < COUNT) {
            const bool inside = WHOLE || start + row + warp < size;
            const half_bits* from = inside ? x : x - (start + row + warp) * stride;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += 32)
                if (piece + 32 <= PIECES || lane < PIECES - piece)
                    copy_16_bytes(to + row * PITCH + piece * 16, from + piece * 8, inside);
        }
        x += WARPS * stride;
    }
}

// Products of TILES times 16 queries with C keys of one head; -inf for keys from `size` on. query(words, tile, k):
// channels 16 k.. of a tile.
template <typename Query>
FUNCTION void multiply_keys(float (*scores)[COLUMNS][4], const Query& query, u32 keys, int head, int start, int size) {
    const int lane = threadIdx.x % 32;
    const u32 from = keys + head * D * 2;
    const u32 wide = from + ((lane & 7) + (lane >> 4) * 8) * PITCH + ((lane >> 3) & 1) * 16;
    const u32 narrow = from + ((lane & 7) + ((lane >> 3) & 1) * 8) * PITCH + WIDE * 32;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
            scores[tile][n][0] = scores[tile][n][1] = scores[tile][n][2] = scores[tile][n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDE + NARROW; k++) {
        u32 words[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) query(words[tile], tile, k);
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++) {
            u32 key[4];
            if (k < WIDE) load_matrices_4(key, wide + slice * 16 * PITCH + k * 32);
            else load_matrices_2(key, narrow + slice * 16 * PITCH);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                float* first = scores[tile][2 * slice];
                float* second = scores[tile][2 * slice + 1];
                if (k < WIDE) {
                    multiply_16(first, words[tile], key[0], key[1]);
                    multiply_16(second, words[tile], key[2], key[3]);
                } else {
                    multiply_8(first, words[tile], key[0]);
                    multiply_8(second, words[tile], key[1]);
                }
            }
        }
    }
    if (!EVEN) {
        const int left = size - start - lane % 4 * 2;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                float* score = scores[tile][n];
                if (8 * n >= left) score[0] = score[2] = from_bits(0xff800000);
                if (8 * n + 1 >= left) score[1] = score[3] = from_bits(0xff800000);
            }
    }
}

// This lane's part of channels 16 k.. of 16 queries of a head; `upper` and `lower`: its rows, from its first channel on.
FUNCTION void read_query(u32* words, const half_bits* upper, const half_bits* lower, int k) {
    words[0] = *reinterpret_cast<const u32*>(upper + 16 * k);
    words[1] = *reinterpret_cast<const u32*>(lower + 16 * k);
    if (k < WIDE) {
        words[2] = *reinterpret_cast<const u32*>(upper + 16 * k + 8);
        words[3] = *reinterpret_cast<const u32*>(lower + 16 * k + 8);
    }
}

// ---- pass 1: the largest score of every row, and the sum of exponentials; every lane for its own columns at first

struct Row {
    float top, sum;
};

FUNCTION void add_scores(Row* rows, const float (*scores)[4], float scale) {  // to a lane's two rows
#pragma unroll
    for (int below = 0; below < 2; below++) {
        Row& row = rows[below];
        float most = row.top;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) most = fmaxf(most, fmaxf(scores[n][2 * below], scores[n][2 * below + 1]));
        const float shift = most * scale;
        float total = row.sum * exp2_of(row.top * scale - shift);
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
            total += exp2_of(scores[n][2 * below] * scale - shift) + exp2_of(scores[n][2 * below + 1] * scale - shift);
        row = {most, total};
    }
}

// What makes scores to maps: map = exp2(scores * scale - shift).
FUNCTION float shift_of(const Row& row, float scale) {
    float most = row.top, total = row.sum;
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
        const float other = of_lane_xor(most, mask), rest = of_lane_xor(total, mask), both = fmaxf(most, other);
        total = total * exp2_of((most - both) * scale) + rest * exp2_of((other - both) * scale);
        most = both;
    }
    return most * scale + log2_of(total);
}

FUNCTION float* stats_of(const Arguments& given, int sample, int head) {
    return given.stats + (static_cast<long long>(sample) * H + head) * 2 * given.rows;
}

FUNCTION void store_stats(const Arguments& given, int sample, int head, int row, float shift) {
    if (threadIdx.x % 4 == 0 && row < given.rows) {
        float* stats = stats_of(given, sample, head) + row;
        stats[0] = shift;
        stats[given.rows] = 1.0f;
    }
}
