// Attention of few rows a sequence over long contexts: decode and verification. Bound by reading keys and values.
//
// Tiles of 16 and 32 query rows; those of 64 are in attention_many.cu, whose warps need not wait for each other.
//
// A block of four warps takes a tile of up to M query rows (rows x group heads that share the keys), one KV head and
// one or more splits of the positions. In a block of 64 keys each warp scores 16 keys for all rows, the warps exchange
// the rows' maxima and weights, and each warp adds up a quarter of the output's columns: every number is computed by
// the same operations in the same order as in attention_many.cu, where one warp does it all.
//
// Grid: split blocks, class heads, tiles. Partial results go to a workspace and are merged in the order of positions by
// the blocks that finish last (as in Flash-Decoding, but without a second launch).

#include "attention_merge.cuh"

template <typename C, int D, int M16> struct Few {
    static constexpr int M = 16 * M16;
    static constexpr int STAGES = 3;
    static constexpr int COLUMNS = D / WARPS;  // of the output, a warp
    static constexpr int TILES = COLUMNS / 8;

    // Shared memory, in bytes. attention/geometry.rs computes the same sum.
    static constexpr int STAGE = Stage<C, D>::BYTES;
    static constexpr int QUERIES = STAGES * STAGE;
    static constexpr int FINE_QUERIES = QUERIES + M * D * 2;
    static constexpr int WEIGHTS = FINE_QUERIES + (IS_CODES<C> ? M * FINE * 2 : 0);
    static constexpr int ROWS = WEIGHTS + M * BLOCK * 2;
    static constexpr int MAXIMA = ROWS + M * 16;
    static constexpr int SUMS = MAXIMA + M * WARPS * 4;
    static constexpr int BYTES = SUMS + M16 * WARPS * 64 * 4;
    static_assert(sizeof(Query) == 16, "a row's place in shared memory");
};

// T: of queries and outputs; C: of keys and values in pages. PATHS: tiles may have a path.
template <typename T, typename C, int D, int M16, bool PATHS>
__device__ __forceinline__ void attend(const T* q, int64_t q_stride, T* out, const C* pool, int64_t page_stride,
                                       const int* table, int table_stride, const int* heads, const Tile* tiles,
                                       const int* header, const uint64_t* masks, float* partials, unsigned* counters,
                                       int q_heads, int group, Window window, float scale) {
    using Plan = Few<C, D, M16>;
    constexpr int STAGES = Plan::STAGES;
    extern __shared__ __align__(128) unsigned char shared[];
    Query* const rows = reinterpret_cast<Query*>(shared + Plan::ROWS);
    float* const maxima = reinterpret_cast<float*>(shared + Plan::MAXIMA);
    float* const sums = reinterpret_cast<float*>(shared + Plan::SUMS);
    const uint32_t base = shared_address(shared);
    const Swizzled<D> queries = {base + Plan::QUERIES};
    const Swizzled<BLOCK> weights = {base + Plan::WEIGHTS};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad_row = lane / 4, quad = lane % 4;

    launch_dependents();
    // Nothing that a step's rows and page tables say is written within the step (embed() sees to it that all before has
    // ended): it is read while the kernel before still runs. Read together: a tile beyond the count is old, but there.
    const int tile_count = header[0], split = header[1], head = heads[blockIdx.y];
    const Tile tile = tiles[blockIdx.z];
    if (static_cast<int>(blockIdx.z) >= tile_count) return;
    const Seen seen(tile, window);
    Walk loading(seen, split, blockIdx.x, gridDim.x);
    // The blocks that share the splits: all, or the first alone where the workspace has no room for partials.
    const int sharers = tile.partials < 0 ? 1 : min(static_cast<int>(gridDim.x), loading.active);
    if (static_cast<int>(blockIdx.x) >= sharers) return;
    loading.step = sharers;
    // In one cluster, with a split each.
    const bool together = sharers > 1 && sharers == loading.active && sharers <= cluster_blocks();
    Walk computing = loading;

    const int count = tile.rows * group;
    q += tile.first_row * q_stride + static_cast<int64_t>(head) * group * D;
    const int64_t out_stride = static_cast<int64_t>(q_heads) * D;
    out += tile.first_row * out_stride + static_cast<int64_t>(head) * group * D;
    const Keys<C, D, PATHS> keys = {pool + static_cast<int64_t>(blockIdx.y) * HEAD<C, D>, page_stride,
                                    table + static_cast<int64_t>(tile.slot) * table_stride, seen.keys,
                                    PATHS ? stored_of(tile, masks) : in_order(), read_once()};

    int4 pages = keys.pages(loading.block);
    auto load = [&](int stage) {
        if (loading.done()) return;
        keys.load({base + stage * Plan::STAGE}, loading.block, pages);
        loading.advance();
        if (!loading.done()) pages = keys.pages(loading.block);
    };
    // Nor are keys and values before the sequence's first row: what is loaded first is mostly those. Before a tree there
    // are at most so many rows.
    constexpr int SEQUENCE_ROWS = 16;
    bool is_waiting = true;
    auto wait_once = [&] {
        if (is_waiting) wait_for_inputs();
        is_waiting = false;
    };
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (!loading.done() && (loading.block + 1) * BLOCK > tile.tree_base - SEQUENCE_ROWS) wait_once();
        load(stage);
    }
    wait_once();
    load_queries<D, Plan::M>(queries, q, q_stride, group, count, C());
    if constexpr (IS_CODES<C>) {
        const uint8_t* columns = reinterpret_cast<const uint8_t*>(heads + gridDim.y);
        load_fine<Plan::M>({base + Plan::FINE_QUERIES}, q, q_stride, group, count, D, columns);
    }
    close_group();
#pragma unroll
    for (int stage = 1; stage < STAGES - 1; ++stage) close_group();
    for (int r = threadIdx.x; r < Plan::M; r += THREADS)
        rows[r] = query_of(tile, r < count ? r / group : tile.rows, masks);

    float most[M16][2], sum[M16][2], acc[M16][Plan::TILES][4];
    // Merged splits, where this block has them all.
    float all_most[M16][2], all_sum[M16][2], all[M16][Plan::TILES][4];
#pragma unroll
    for (int m = 0; m < M16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            most[m][half] = all_most[m][half] = -INFINITY;
            sum[m][half] = all_sum[m][half] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < Plan::TILES; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[m][n][e] = all[m][n][e] = 0.0f;
    }

    int stage = 0;
    while (!computing.done()) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        load(stage == 0 ? STAGES - 1 : stage - 1);
        close_group();
        const Stage<C, D> block = {base + stage * Plan::STAGE};
        stage = stage == STAGES - 1 ? 0 : stage + 1;

        float scores[M16][2][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t right[4];
            load_keys(right, block.keys(), 16 * warp, step);
#pragma unroll
            for (int m = 0; m < M16; ++m) {
                uint32_t left[4];
                load_left(left, queries, 16 * m, step);
                mma(scores[m][0], left, right[0], right[1], T());
                mma(scores[m][1], left, right[2], right[3], T());
            }
        }

        if constexpr (IS_CODES<C>) {
            uint32_t right[4];
            load_keys(right, block.fine(), 16 * warp, 0);
            const float2 by[2] = {block.key_scales(16 * warp + 2 * quad), block.key_scales(16 * warp + 8 + 2 * quad)};
#pragma unroll
            for (int m = 0; m < M16; ++m) {
                uint32_t left[4];
                load_left(left, FineQueries{base + Plan::FINE_QUERIES}, 16 * m);
                mma(scores[m][0], left, right[0], right[1], T());
                mma(scores[m][1], left, right[2], right[3], T());
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) scores[m][n][e] = __fmul_rn(scores[m][n][e], e % 2 ? by[n].y : by[n].x);
            }
        }

        const bool partly = seen.partly(computing.block, window);
#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * m + 8 * half + quad_row;
                if (partly) {
                    const Query query = rows[row];
                    const int key = computing.block * BLOCK + 16 * warp + 2 * quad;
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        if (!sees(query, key + 8 * (e / 2) + e % 2, window))
                            scores[m][e / 2][2 * half + e % 2] = -INFINITY;
                }
                float high = fmaxf(fmaxf(scores[m][0][2 * half], scores[m][0][2 * half + 1]),
                                   fmaxf(scores[m][1][2 * half], scores[m][1][2 * half + 1]));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
                if (quad == 0) maxima[row * WARPS + warp] = high;
            }
        __syncthreads();

        float fade[M16][2];
        float2 value_scales[2];
        if constexpr (IS_CODES<C>)
#pragma unroll
            for (int n = 0; n < 2; ++n) value_scales[n] = block.value_scales(16 * warp + 8 * n + 2 * quad);
#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * m + 8 * half + quad_row;
                const float4 highs = *reinterpret_cast<const float4*>(maxima + row * WARPS);
                const float high = fmaxf(fmaxf(highs.x, highs.y), fmaxf(highs.z, highs.w));
                const float next = fmaxf(most[m][half], __fmul_rn(high, scale)), less = finite(next);
                fade[m][half] = exp2_fast(__fsub_rn(most[m][half], less));
                most[m][half] = next;
                float p[4];
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    p[e] = exp2_fast(__fmaf_rn(scores[m][e / 2][2 * half + e % 2], scale, -less));
                const float fresh = __fadd_rn(__fadd_rn(p[0], p[1]), __fadd_rn(p[2], p[3]));
                sum[m][half] = __fmaf_rn(sum[m][half], fade[m][half], fresh);
                if constexpr (IS_CODES<C>)
#pragma unroll
                    for (int e = 0; e < 4; ++e) p[e] = __fmul_rn(p[e], e % 2 ? value_scales[e / 2].y : value_scales[e / 2].x);
#pragma unroll
                for (int n = 0; n < 2; ++n)
                    asm volatile("st.shared.b32 [%0], %1;" ::"r"(weights.pair(row, 16 * warp + 8 * n + 2 * quad)),
                                 "r"(pack<T>(p[2 * n], p[2 * n + 1]))
                                 : "memory");
            }
        __syncthreads();

#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int n = 0; n < Plan::TILES; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[m][n][e] = __fmul_rn(acc[m][n][e], fade[m][e / 2]);
#pragma unroll
        for (int step = 0; step < BLOCK / 16; ++step) {
            uint32_t left[M16][4];
#pragma unroll
            for (int m = 0; m < M16; ++m) load_left(left[m], weights, 16 * m, step);
#pragma unroll
            for (int n = 0; n < Plan::TILES; n += 2) {
                uint32_t right[4];
                load_values(right, block.values(), 16 * step, Plan::COLUMNS * warp + 8 * n);
#pragma unroll
                for (int m = 0; m < M16; ++m) {
                    mma(acc[m][n], left[m], right[0], right[1], T());
                    mma(acc[m][n + 1], left[m], right[2], right[3], T());
                }
            }
        }

        const int ordinal = computing.ordinal;
        if (!computing.advance()) continue;

        // The split is done: the warps' sums make the rows' sums.
#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                sums[((m * 2 + half) * WARPS + warp) * 32 + lane] = sum[m][half];
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float* of = sums + (m * 2 + half) * WARPS * 32 + lane;
                float total = __fadd_rn(__fadd_rn(of[0], of[32]), __fadd_rn(of[64], of[96]));
                total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, 1));
                total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, 2));
                const int row = 16 * m + 8 * half + quad_row;
                if (sharers == 1) {
                    const Factors by = merge(all_most[m][half], all_sum[m][half], most[m][half], total);
#pragma unroll
                    for (int n = 0; n < Plan::TILES; ++n)
#pragma unroll
                        for (int e = 2 * half; e < 2 * half + 2; ++e)
                            all[m][n][e] = merged(all[m][n][e], acc[m][n][e], by);
                } else if (row < count) {
                    // All have done with the last block's values.
                    float* to = together ? reinterpret_cast<float*>(shared) : partials + partial_at<D>(tile, ordinal, count);
                    to += row * PARTIAL<D>;
                    each_pair<C>(acc[m], half, [&](int column, float a, float b) {
                        *reinterpret_cast<float2*>(to + Plan::COLUMNS * warp + LANE_COLUMNS<C> * quad + column) =
                            make_float2(a, b);
                    });
                    if (warp == 0 && quad == 0)
                        *reinterpret_cast<float2*>(to + D) = make_float2(most[m][half], total);
                }
                most[m][half] = -INFINITY;
                sum[m][half] = 0.0f;
#pragma unroll
                for (int n = 0; n < Plan::TILES; ++n) acc[m][n][2 * half] = acc[m][n][2 * half + 1] = 0.0f;
            }
    }
    wait_groups<0>();

    if (sharers == 1) {
#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * m + 8 * half + quad_row;
                if (row >= count) continue;
                const float by = normaliser(all_sum[m][half]);
                T* to = out + row / group * out_stride + row % group * D + Plan::COLUMNS * warp + LANE_COLUMNS<C> * quad;
                each_pair<C>(all[m], half, [&](int column, float a, float b) {
                    *reinterpret_cast<uint32_t*>(to + column) = pack<T>(normalised(a, by), normalised(b, by));
                });
            }
        return;
    }

    if (together) {
        merge_in_cluster<T, D>(reinterpret_cast<float*>(shared), sharers, count, out, out_stride, group);
        return;
    }
    merge_together<T, D>(partials + partial_at<D>(tile, 0, count),
                         counters + 4 * (blockIdx.z * gridDim.y + blockIdx.y), sharers, computing.active, count, out,
                         out_stride, group);
}

#define EXPORT_FEW(NAME, T, C, D, M16)                                                                               \
    EXPORT_ONE(NAME, T, C, D, M16, false)                                                                            \
    EXPORT_ONE(NAME##_paths, T, C, D, M16, true)

#define EXPORT_ONE(NAME, T, C, D, M16, PATHS)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                         \
        NAME(const T* q, int64_t q_stride, T* out, const C* pool, int64_t page_stride, const int* table,             \
             int table_stride, const int* heads, const Tile* tiles, const int* header, const uint64_t* masks,        \
             float* partials, unsigned* counters, int q_heads, int group, int sink, int recent, float scale) {       \
        attend<T, C, D, M16, PATHS>(q, q_stride, out, pool, page_stride, table, table_stride, heads, tiles, header,  \
                                    masks, partials, counters, q_heads, group, {sink, recent}, scale);               \
    }

EXPORT_FEW(attention_few16_64_bf16, bf16, bf16, 64, 1)
EXPORT_FEW(attention_few32_64_bf16, bf16, bf16, 64, 2)
EXPORT_FEW(attention_few16_128_bf16, bf16, bf16, 128, 1)
EXPORT_FEW(attention_few32_128_bf16, bf16, bf16, 128, 2)
EXPORT_FEW(attention_few16_64_f16, f16, f16, 64, 1)
EXPORT_FEW(attention_few32_64_f16, f16, f16, 64, 2)
EXPORT_FEW(attention_few16_128_f16, f16, f16, 128, 1)
EXPORT_FEW(attention_few32_128_f16, f16, f16, 128, 2)
EXPORT_FEW(attention_few16_64_fp8, bf16, fp8, 64, 1)
EXPORT_FEW(attention_few32_64_fp8, bf16, fp8, 64, 2)
EXPORT_FEW(attention_few16_128_fp8, bf16, fp8, 128, 1)
EXPORT_FEW(attention_few32_128_fp8, bf16, fp8, 128, 2)
