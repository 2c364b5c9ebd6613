// What makes the scores of a row a map, for layers of many keys: before `cuda_recombine.cu`, which then needs no pass of
// its own. A warp takes a few queries of one head, so that registers suffice for many warps, which hide each other's
// waits; it takes two tiles of them, because keys of one tile would have to be read as fast as exponentials are formed.

KERNEL(THREADS) row_stats(const Arguments given) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sample = blockIdx.y, head = blockIdx.z;
    const int row = (blockIdx.x * R + warp * TILES) * 16 + lane / 4;  // and row + 8, of the first tile
    const int columns = given.columns, steps = (columns + C - 1) / C;
    const u32 memory = shared_memory();
    const half_bits* keys = given.key.data + sample * given.key.batch + head * D;
    const half_bits* queries = given.query.data + sample * given.query.batch + head * D + lane % 4 * 2;
    const auto query_row = [&](int n) { return queries + min(n, given.rows - 1) * given.query.row; };

    fetch<C, EVEN>(memory, keys, given.key.row, 0, columns);
    u32 words[TILES][QUERY_WORDS];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int k = 0; k < WIDE + NARROW; k++)
            read_query(words[tile] + 4 * k, query_row(row + 16 * tile), query_row(row + 16 * tile + 8), k);
    const auto query = [&](u32* to, int tile, int k) {
#pragma unroll
        for (int e = 0; e < (k < WIDE ? 4 : 2); e++) to[e] = words[tile][4 * k + e];
    };
    Row sums[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) sums[tile][0] = sums[tile][1] = {-1e30f, 0.0f};
    for (int step = 0; step < steps; step++) {
        wait_for_copies();
        meet();
        if (step + 1 < steps) fetch<C, EVEN>(memory + (step + 1) % 2 * ROWS_BYTES, keys, given.key.row, (step + 1) * C, columns);
        float scores[TILES][COLUMNS][4];
        multiply_keys(scores, query, memory + step % 2 * ROWS_BYTES, 0, step * C, columns);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) add_scores(sums[tile], scores[tile], given.scale);
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int below = 0; below < 2; below++)
            store_stats(given, sample, head, row + 16 * tile + 8 * below, shift_of(sums[tile][below], given.scale));
}
