// Recombined attention on a GPU, in half precision: no map ever leaves the multiprocessor that forms it.
//
//     out[h] = sum_j W[h, j] softmax(scale * query[j] key[j]^T) value[h]        W = I + coeff
//
// A warp takes 16 queries and a group of G heads; the warps that take the other groups of the same queries are in the
// same block. Pass 1 finds what divides each row of the maps; where there are many keys, `row_stats` does, which needs
// few registers and only one head's keys. In pass 2, for C keys at a time, a warp forms the maps of its own group and
// leaves them in shared memory; then it reads those of all groups, adds up W[h, j] maps[j] for its own heads h, and
// multiplies with their values. So every map is formed once a pass, however many heads there are, and the sums of a
// group fit into the registers. A warp that has all heads shares nothing: its maps stay where they are formed.
//
// Maps are float16, whatever the type of the inputs: they are at most 1, and float16 is eight times finer there than
// bfloat16. Inputs of bfloat16 are mixed in float16 (its error is a fraction of that of rounding the sums to bfloat16,
// which attention does anyway), inputs of float16 in float32.

KERNEL(THREADS) recombine(const Arguments given) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp % GROUPS, tile = warp / GROUPS;
    const int sample = blockIdx.y, row = (blockIdx.x * R + tile) * 16 + lane / 4;  // and row + 8
    const int rows = given.rows, columns = given.columns, steps = (columns + C - 1) / C;
    const float scale = given.scale;
    const u32 memory = shared_memory();
    const half_bits* keys = given.key.data + sample * given.key.batch;
    const half_bits* values = given.value.data + sample * given.value.batch;
    const half_bits* queries = given.query.data + sample * given.query.batch;

    if (SHARED) fetch<16 * R, false>(memory + QUERIES_AT, queries, given.query.row, blockIdx.x * R * 16, rows);
    if (!APART) fetch<C, EVEN>(memory, keys, given.key.row, 0, columns);
    for (int i = threadIdx.x; i < H * GROUPS * G; i += THREADS) {  // weights, [group, j, g]
        const int h = i / G / H * G + i % G, j = i / G % H;
        const float weight = h < H ? given.coeff[sample * given.coeff_batch + h * H + j] + (h == j) : 0.0f;
        store_word(memory + WEIGHTS_AT + 4 * i, BFLOAT16 ? float16_pair(weight, weight) : bits(weight));
    }

    // ---- this warp's queries
    u32 words[SHARED ? 1 : G][QUERY_WORDS];
    if (!SHARED) {
#pragma unroll
        for (int i = 0; i < G; i++) {
            const half_bits* head = queries + min(group * G + i, H - 1) * D + lane % 4 * 2;
#pragma unroll
            for (int k = 0; k < WIDE + NARROW; k++)
                read_query(words[SHARED ? 0 : i] + 4 * k, head + min(row, rows - 1) * given.query.row,
                           head + min(row + 8, rows - 1) * given.query.row, k);
        }
    }
    const u32 queries_at = memory + QUERIES_AT + (tile * 16 + (lane & 7) + ((lane >> 3) & 1) * 8) * PITCH;
    const auto scores_of = [&](float (*scores)[COLUMNS][4], int i, u32 keys_at, int step) {  // of the group's head i
        const int head = min(group * G + i, H - 1);
        const auto query = [&](u32* to, int, int k) {
            if (SHARED && k < WIDE) {
                load_matrices_4(to, queries_at + head * D * 2 + k * 32 + (lane >> 4) * 16);
            } else if (SHARED) {
                load_matrices_2(to, queries_at + head * D * 2 + k * 32);
            } else {
#pragma unroll
                for (int e = 0; e < (k < WIDE ? 4 : 2); e++) to[e] = words[SHARED ? 0 : i][4 * k + e];
            }
        };
        multiply_keys(scores, query, keys_at, head, step * C, columns);
    };

    // ---- pass 1, or what it would find
    float shift[G][2];
    if (APART) {
#pragma unroll
        for (int i = 0; i < G; i++)
#pragma unroll
            for (int below = 0; below < 2; below++)
                shift[i][below] = stats_of(given, sample, min(group * G + i, H - 1))[min(row + 8 * below, rows - 1)];
    } else {
        Row sums[G][2];
#pragma unroll
        for (int i = 0; i < G; i++) sums[i][0] = sums[i][1] = {-1e30f, 0.0f};
        for (int step = 0; step < steps; step++) {
            wait_for_copies();
            meet();
            if (step + 1 < steps)
                fetch<C, EVEN>(memory + (step + 1) % 2 * ROWS_BYTES, keys, given.key.row, (step + 1) * C, columns);
#pragma unroll
            for (int i = 0; i < G; i++) {
                float scores[1][COLUMNS][4];
                scores_of(scores, i, memory + step % 2 * ROWS_BYTES, step);
                add_scores(sums[i], scores[0], scale);
            }
        }
#pragma unroll
        for (int i = 0; i < G; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                shift[i][below] = shift_of(sums[i][below], scale);
                if (given.stats && group * G + i < H) store_stats(given, sample, group * G + i, row + 8 * below, shift[i][below]);
            }
    }

    // ---- pass 2
    const auto form_map = [&](u32 (*map)[4], int i, int step) {
        float scores[1][COLUMNS][4];
        scores_of(scores, i, memory + KEYS_AT + step % KEY_PLACES * ROWS_BYTES, step);
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float* pair = scores[0][2 * slice + e / 2] + e % 2 * 2;
                map[slice][e] = float16_pair(exp2_of(pair[0] * scale - shift[i][e % 2]), exp2_of(pair[1] * scale - shift[i][e % 2]));
            }
    };
    const u32 maps_at = memory + MAPS_AT + tile * H * SLICES * SLICE_BYTES + lane * 16;
    const auto share_map = [&](int i, int step) {  // with all warps of these queries
        if (group * G + i >= H) return;
        u32 map[SLICES][4];
        form_map(map, i, step);
        const u32 to = maps_at + (AHEAD ? step % 2 * MAPS_BYTES : 0) + (group * G + i) * SLICES * SLICE_BYTES;
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++) store_4_words(to + slice * SLICE_BYTES, map[slice]);
    };
    float totals[G][CHANNELS][4];
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int n = 0; n < CHANNELS; n++) totals[g][n][0] = totals[g][n][1] = totals[g][n][2] = totals[g][n][3] = 0.0f;
    const auto fetch_keys = [&](int step) {
        if (step < steps)
            fetch<C, EVEN>(memory + KEYS_AT + step % KEY_PLACES * ROWS_BYTES, keys, given.key.row, step * C, columns);
    };
    const auto fetch_values = [&](int step) {
        if (step < steps)
            fetch<C, EVEN>(memory + VALUES_AT + step % VALUE_PLACES * ROWS_BYTES, values, given.value.row, step * C, columns);
    };
    if (!APART) meet();
    fetch_keys(0);
    if (PLACES > 2) fetch_values(0);
    if (AHEAD) {
        wait_for_copies();
        meet();
        fetch_keys(1);
#pragma unroll
        for (int i = 0; i < G; i++) share_map(i, 0);
    }
    for (int step = 0; step < steps; step++) {
        wait_for_copies();
        meet();
        if (AHEAD) fetch_keys(step + 2);
        if (ALONE) fetch_keys(step + 1);
        fetch_values(PLACES > 2 ? step + 1 : step);
        if (!AHEAD && !ALONE) {
#pragma unroll
            for (int i = 0; i < G; i++) share_map(i, step);
            if (PLACES == 2) wait_for_copies();
            meet();
            fetch_keys(step + 1);
        }
        u32 mixed[G][SLICES][BFLOAT16 ? 4 : 8];  // pairs of float16, or the bits of float32
        const u32 maps = maps_at + (AHEAD ? step % 2 * MAPS_BYTES : 0);
#pragma unroll
        for (int i = 0; i < G; i++) {
            u32 own[SLICES][4];
            if (ALONE) form_map(own, i, step);
            // Without a branch, where there are many steps: one after the last is formed of anything and never read.
            if (AHEAD && (EVEN || step + 1 < steps)) share_map(i, step + 1);
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
                    u32* map = own[slice];
                    if (!ALONE) load_4_words(map, maps + (j * SLICES + slice) * SLICE_BYTES);
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
        const u32 from = memory + VALUES_AT + step % VALUE_PLACES * ROWS_BYTES + ((lane & 7) + ((lane >> 3) & 1) * 8) * PITCH;
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
