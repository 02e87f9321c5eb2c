// Attention of many rows a sequence: prefill, and verification in tiles of 64 query rows. Bound by the tensor cores.
//
// A block of four warps takes a tile of M query rows (rows x group heads that share the keys) and one KV head; each
// warp owns its rows: scores, weights and outputs stay in its registers (the design of FlashAttention-2, arXiv
// 2307.08691). Two forms: one runs through the keys at once, with 32 rows a warp; the other has 16 rows a warp and
// merges a partial result every `split` positions, so that its bits equal those of attention_few.cu.
//
// Grid: class heads, tiles; the last tiles, which see most, begin first. For verification as in attention_few.cu: the
// second form, its splits shared by several blocks, rows in chains or trees.

#include "attention_merge.cuh"

template <typename T, typename C, int D, int M16> struct Many {
    static constexpr int M = 16 * M16 * WARPS;
    static constexpr int STAGE = Stage<C, D>::BYTES;
    static constexpr int STAGES = 2;
    // Shared memory, in bytes. attention/geometry.rs computes the same sum. Every warp reads all keys and values: of codes
    // BF16 is made once, for all of them.
    static constexpr int UNPACKED = STAGES * STAGE;
    static constexpr int QUERIES = UNPACKED + (IS_CODES<C> ? Stage<T, D>::BYTES : 0);
    static constexpr int FINE_QUERIES = QUERIES + M * D * 2;
    static constexpr int ROWS = FINE_QUERIES + (IS_CODES<C> ? M * FINE * 2 : 0);
    static constexpr int BYTES = ROWS;  // and 16 a query row for verification
};

// T: of queries and outputs; C: of keys and values in pages. PATHS: tiles may have a path.
template <typename T, typename C, int D, int M16, bool SPLITS, bool SHARED, bool PATHS = false>
__device__ __forceinline__ void attend(const T* q, int64_t q_stride, T* out, const C* pool, int64_t page_stride,
                                       const int* table, int table_stride, const int* heads, const Tile* tiles,
                                       const int* header, const uint64_t* masks, float* partials, unsigned* counters,
                                       int q_heads, int group, Window window, float scale) {
    static_assert(SPLITS || !SHARED, "only splits are shared");
    using Plan = Many<T, C, D, M16>;
    // Sums of weights are kept for four groups of 16 keys where the bits must equal those of attention_few.cu.
    constexpr int SUMS = SPLITS ? 4 : 1;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    const Swizzled<D> queries = {base + Plan::QUERIES};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad_row = lane / 4, quad = lane % 4;

    launch_dependents();
    wait_for_inputs();
    const int which = SHARED ? blockIdx.y : blockIdx.x, nth = SHARED ? blockIdx.z : blockIdx.y;
    const int tile_count = header[0], split = header[1], head = heads[which];
    if (nth >= tile_count) return;
    const Tile tile = tiles[SHARED ? nth : tile_count - 1 - nth];
    const Seen seen(tile, window);
    Walk loading(seen, SPLITS ? split : INT32_MAX / BLOCK * BLOCK, SHARED ? blockIdx.x : 0, 1);
    int sharers = 1;
    if constexpr (SHARED) {
        // The blocks that share the splits: all, or the first alone where the workspace has no room for partials.
        sharers = tile.partials < 0 ? 1 : min(static_cast<int>(gridDim.x), loading.active);
        if (static_cast<int>(blockIdx.x) >= sharers) return;
        loading.step = sharers;
    }
    Walk computing = loading;

    const int count = tile.rows * group;
    q += tile.first_row * q_stride + static_cast<int64_t>(head) * group * D;
    const int64_t out_stride = static_cast<int64_t>(q_heads) * D;
    out += tile.first_row * out_stride + static_cast<int64_t>(head) * group * D;
    const Keys<C, D, PATHS> keys = {pool + static_cast<int64_t>(which) * HEAD<C, D>, page_stride,
                                    table + static_cast<int64_t>(tile.slot) * table_stride, seen.keys,
                                    PATHS ? stored_of(tile, masks) : in_order(), read_often()};

    load_queries<D, Plan::M>(queries, q, q_stride, group, count, C());
    if constexpr (IS_CODES<C>) {
        const uint8_t* columns = reinterpret_cast<const uint8_t*>(heads + (SHARED ? gridDim.y : gridDim.x));
        load_fine<Plan::M>({base + Plan::FINE_QUERIES}, q, q_stride, group, count, D, columns);
    }
    int4 pages = keys.pages(loading.block);
    auto load = [&](int stage) {
        if (!loading.done()) {
            keys.load({base + stage * Plan::STAGE}, loading.block, pages);
            loading.advance();
            if (!loading.done()) pages = keys.pages(loading.block);
        }
        close_group();
    };
    load(0);
    Query* const rows = reinterpret_cast<Query*>(shared + Plan::ROWS);
    if constexpr (SHARED)
        for (int r = threadIdx.x; r < Plan::M; r += THREADS)
            rows[r] = query_of(tile, r < count ? r / group : tile.rows, masks);

    const int first = 16 * M16 * warp;
    float most[M16][2], sum[M16][2][SUMS], acc[M16][D / 8][4];
    // Merged splits.
    constexpr int MERGED = SPLITS ? D / 8 : 1;
    float all_most[M16][2], all_sum[M16][2], all[M16][MERGED][4];
#pragma unroll
    for (int m = 0; m < M16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            most[m][half] = all_most[m][half] = -INFINITY;
            all_sum[m][half] = 0.0f;
#pragma unroll
            for (int s = 0; s < SUMS; ++s) sum[m][half][s] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[m][n][e] = 0.0f;
#pragma unroll
        for (int n = 0; n < MERGED; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) all[m][n][e] = 0.0f;
    }

    // A row's sum of weights from what its four lanes hold.
    auto total = [&](const float (&of)[SUMS]) {
        float x = of[0];
        if constexpr (SPLITS) x = __fadd_rn(__fadd_rn(of[0], of[1]), __fadd_rn(of[2], of[3]));
        x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, 1));
        return __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, 2));
    };

    for (int stage = 0; !computing.done(); stage ^= 1) {
        wait_groups<0>();
        __syncthreads();
        load(stage ^ 1);
        const Stage<C, D> loaded = {base + stage * Plan::STAGE};
        Stage<T, D> block = {loaded.base};
        if constexpr (IS_CODES<C>) {
            block = {base + Plan::UNPACKED};
            unpack(block.keys(), loaded.keys());
            __syncthreads();
        }

        float scores[M16][BLOCK / 8][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t left[M16][4];
#pragma unroll
            for (int m = 0; m < M16; ++m) load_left(left[m], queries, first + 16 * m, step);
#pragma unroll
            for (int n = 0; n < BLOCK / 8; n += 2) {
                uint32_t right[4];
                load_keys(right, block.keys(), 8 * n, step);
#pragma unroll
                for (int m = 0; m < M16; ++m) {
                    mma(scores[m][n], left[m], right[0], right[1], T());
                    mma(scores[m][n + 1], left[m], right[2], right[3], T());
                }
            }
        }

        if constexpr (IS_CODES<C>) {
            uint32_t left[M16][4];
#pragma unroll
            for (int m = 0; m < M16; ++m) load_left(left[m], FineQueries{base + Plan::FINE_QUERIES}, first + 16 * m);
            uint32_t right[4];
#pragma unroll
            for (int n = 0; n < BLOCK / 8; ++n) {
                if (n % 2 == 0) load_keys(right, loaded.fine(), 8 * n, 0);
                const float2 by = loaded.key_scales(8 * n + 2 * quad);
#pragma unroll
                for (int m = 0; m < M16; ++m) {
                    mma(scores[m][n], left[m], right[n % 2 * 2], right[n % 2 * 2 + 1], T());
#pragma unroll
                    for (int e = 0; e < 4; ++e) scores[m][n][e] = __fmul_rn(scores[m][n][e], e % 2 ? by.y : by.x);
                }
            }
        }

        if (seen.partly(computing.block, window)) {
#pragma unroll
            for (int m = 0; m < M16; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = first + 16 * m + 8 * half + quad_row;
                    Query query = {row < count ? tile.position + row / group : -1, INT32_MAX, 0};
                    if constexpr (SHARED) query = rows[row];
#pragma unroll
                    for (int n = 0; n < BLOCK / 8; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            const int key = computing.block * BLOCK + 8 * n + 2 * quad + e;
                            if (!sees(query, key, window)) scores[m][n][2 * half + e] = -INFINITY;
                        }
                }
        }

#pragma unroll
        for (int m = 0; m < M16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float high = -INFINITY;
#pragma unroll
                for (int n = 0; n < BLOCK / 8; ++n)
                    high = fmaxf(high, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
                const float next = fmaxf(most[m][half], __fmul_rn(high, scale)), less = finite(next);
                const float fade = exp2_fast(__fsub_rn(most[m][half], less));
                most[m][half] = next;
#pragma unroll
                for (int n = 0; n < BLOCK / 8; ++n)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e)
                        scores[m][n][e] = exp2_fast(__fmaf_rn(scores[m][n][e], scale, -less));
                float fresh = 0.0f;
#pragma unroll
                for (int n = 0; n < BLOCK / 8; n += 2) {
                    const float sixteen =
                        __fadd_rn(__fadd_rn(scores[m][n][2 * half], scores[m][n][2 * half + 1]),
                                  __fadd_rn(scores[m][n + 1][2 * half], scores[m][n + 1][2 * half + 1]));
                    if constexpr (SPLITS)
                        sum[m][half][n / 2] = __fmaf_rn(sum[m][half][n / 2], fade, sixteen);
                    else
                        fresh = __fadd_rn(fresh, sixteen);
                }
                if constexpr (!SPLITS) sum[m][half][0] = __fmaf_rn(sum[m][half][0], fade, fresh);
#pragma unroll
                for (int n = 0; n < D / 8; ++n)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) acc[m][n][e] = __fmul_rn(acc[m][n][e], fade);
            }

#pragma unroll
        for (int step = 0; step < BLOCK / 16; ++step) {
            uint32_t left[M16][4];
#pragma unroll
            for (int m = 0; m < M16; ++m)
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    float(&of)[4] = scores[m][2 * step + n];
                    if constexpr (IS_CODES<C>) {
                        const float2 by = loaded.value_scales(16 * step + 8 * n + 2 * quad);
#pragma unroll
                        for (int e = 0; e < 4; ++e) of[e] = __fmul_rn(of[e], e % 2 ? by.y : by.x);
                    }
                    left[m][2 * n] = pack<T>(of[0], of[1]);
                    left[m][2 * n + 1] = pack<T>(of[2], of[3]);
                }
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                uint32_t right[4];
                load_values(right, block.values(), 16 * step, 8 * n);
#pragma unroll
                for (int m = 0; m < M16; ++m) {
                    mma(acc[m][n], left[m], right[0], right[1], T());
                    mma(acc[m][n + 1], left[m], right[2], right[3], T());
                }
            }
        }

        const int ordinal = computing.ordinal;
        const bool ended = computing.advance();
        if constexpr (SPLITS) {
            if (!ended) continue;
#pragma unroll
            for (int m = 0; m < M16; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float whole = total(sum[m][half]);
                    const int row = first + 16 * m + 8 * half + quad_row;
                    if (sharers == 1) {
                        const Factors by = merge(all_most[m][half], all_sum[m][half], most[m][half], whole);
#pragma unroll
                        for (int n = 0; n < D / 8; ++n)
#pragma unroll
                            for (int e = 2 * half; e < 2 * half + 2; ++e)
                                all[m][n][e] = merged(all[m][n][e], acc[m][n][e], by);
                    } else if (row < count) {
                        float* to = partials + partial_at<D>(tile, ordinal, count) + row * PARTIAL<D>;
                        each_pair<C>(acc[m], half, [&](int column, float a, float b) {
                            *reinterpret_cast<float2*>(to + LANE_COLUMNS<C> * quad + column) = make_float2(a, b);
                        });
                        if (quad == 0) *reinterpret_cast<float2*>(to + D) = make_float2(most[m][half], whole);
                    }
#pragma unroll
                    for (int n = 0; n < D / 8; ++n) acc[m][n][2 * half] = acc[m][n][2 * half + 1] = 0.0f;
                    most[m][half] = -INFINITY;
#pragma unroll
                    for (int s = 0; s < SUMS; ++s) sum[m][half][s] = 0.0f;
                }
        }
    }
    wait_groups<0>();

    if constexpr (SHARED) {
        if (sharers > 1) {
            merge_together<T, D>(partials + partial_at<D>(tile, 0, count),
                                 counters + 4 * (blockIdx.z * gridDim.y + blockIdx.y), sharers, computing.active, count,
                                 out, out_stride, group);
            return;
        }
    }
#pragma unroll
    for (int m = 0; m < M16; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum_of_all = all_sum[m][half];
            if constexpr (!SPLITS) sum_of_all = total(sum[m][half]);
            const int row = first + 16 * m + 8 * half + quad_row;
            if (row >= count) continue;
            const float by = normaliser(sum_of_all);
            T* to = out + row / group * out_stride + row % group * D + LANE_COLUMNS<C> * quad;
            auto put = [&](int column, float a, float b) {
                *reinterpret_cast<uint32_t*>(to + column) = pack<T>(normalised(a, by), normalised(b, by));
            };
            if constexpr (SPLITS)
                each_pair<C>(all[m], half, put);
            else
                each_pair<C>(acc[m], half, put);
        }
}

#define EXPORT_MANY(NAME, T, C, D, M16, SPLITS)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                         \
        NAME(const T* q, int64_t q_stride, T* out, const C* pool, int64_t page_stride, const int* table,             \
             int table_stride, const int* heads, const Tile* tiles, const int* header, int q_heads, int group,       \
             int sink, int recent, float scale) {                                                                    \
        attend<T, C, D, M16, SPLITS, false>(q, q_stride, out, pool, page_stride, table, table_stride, heads, tiles,  \
                                            header, nullptr, nullptr, nullptr, q_heads, group, {sink, recent},       \
                                            scale);                                                                  \
    }

#define EXPORT_FEW64(NAME, T, C, D)                                                                                  \
    EXPORT_ONE64(NAME, T, C, D, false)                                                                               \
    EXPORT_ONE64(NAME##_paths, T, C, D, true)

#define EXPORT_ONE64(NAME, T, C, D, PATHS)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                         \
        NAME(const T* q, int64_t q_stride, T* out, const C* pool, int64_t page_stride, const int* table,             \
             int table_stride, const int* heads, const Tile* tiles, const int* header, const uint64_t* masks,        \
             float* partials, unsigned* counters, int q_heads, int group, int sink, int recent, float scale) {       \
        attend<T, C, D, 1, true, true, PATHS>(q, q_stride, out, pool, page_stride, table, table_stride, heads,       \
                                              tiles, header, masks, partials, counters, q_heads, group,              \
                                              {sink, recent}, scale);                                                \
    }

EXPORT_FEW64(attention_few64_64_bf16, bf16, bf16, 64)
EXPORT_FEW64(attention_few64_128_bf16, bf16, bf16, 128)
EXPORT_FEW64(attention_few64_64_f16, f16, f16, 64)
EXPORT_FEW64(attention_few64_128_f16, f16, f16, 128)
EXPORT_FEW64(attention_few64_64_fp8, bf16, fp8, 64)
EXPORT_FEW64(attention_few64_128_fp8, bf16, fp8, 128)

EXPORT_MANY(attention_many_64_bf16, bf16, bf16, 64, 2, false)
EXPORT_MANY(attention_many_128_bf16, bf16, bf16, 128, 2, false)
EXPORT_MANY(attention_many_64_f16, f16, f16, 64, 2, false)
EXPORT_MANY(attention_many_128_f16, f16, f16, 128, 2, false)
EXPORT_MANY(attention_many_64_fp8, bf16, fp8, 64, 2, false)
EXPORT_MANY(attention_many_128_fp8, bf16, fp8, 128, 2, false)
EXPORT_MANY(attention_splits_64_bf16, bf16, bf16, 64, 1, true)
EXPORT_MANY(attention_splits_128_bf16, bf16, bf16, 128, 1, true)
EXPORT_MANY(attention_splits_64_f16, f16, f16, 64, 1, true)
EXPORT_MANY(attention_splits_128_f16, f16, f16, 128, 1, true)
EXPORT_MANY(attention_splits_64_fp8, bf16, fp8, 64, 1, true)
EXPORT_MANY(attention_splits_128_fp8, bf16, fp8, 128, 1, true)
