// What makes the scores of a row a map, for layers of many keys: before `cuda_recombine.cu`, which then needs no pass of
// its own. A warp takes 16 queries of one head, so that it needs few registers and many warps hide each other's waits.

KERNEL(THREADS) row_stats(const Arguments given) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int sample = blockIdx.y, head = blockIdx.z, row = (blockIdx.x * R + warp) * 16 + lane / 4;  // and row + 8
    const int columns = given.columns, steps = (columns + C - 1) / C;
    const u32 memory = shared_memory();
    const half_bits* keys = given.key.data + sample * given.key.batch + head * D;
    const half_bits* queries = given.query.data + sample * given.query.batch + head * D + lane % 4 * 2;

    fetch<C, EVEN>(memory, keys, given.key.row, 0, columns);
    u32 words[QUERY_WORDS];
#pragma unroll
    for (int k = 0; k < WIDE + NARROW; k++)
        read_query(words + 4 * k, queries + min(row, given.rows - 1) * given.query.row,
                   queries + min(row + 8, given.rows - 1) * given.query.row, k);
    const auto query = [&](int k, u32* to) {
#pragma unroll
        for (int e = 0; e < (k < WIDE ? 4 : 2); e++) to[e] = words[4 * k + e];
    };
    Row sums[2] = {{-1e30f, 0.0f}, {-1e30f, 0.0f}};
    for (int step = 0; step < steps; step++) {
        wait_for_copies();
        meet();
        if (step + 1 < steps) fetch<C, EVEN>(memory + (step + 1) % 2 * ROWS_BYTES, keys, given.key.row, (step + 1) * C, columns);
        float scores[COLUMNS][4];
        multiply_keys(scores, query, memory + step % 2 * ROWS_BYTES, 0, step * C, columns);
        add_scores(sums, scores, given.scale);
    }
#pragma unroll
    for (int below = 0; below < 2; below++)
        store_stats(given, sample, head, row + 8 * below, shift_of(sums[below], given.scale));
}
