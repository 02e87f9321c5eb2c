// Attention in F32 without tensor cores: the path that others are compared with. Right and simple, not fast.
//
// Grid: class heads, tiles, of either kind; a warp takes query rows one after another and runs through the keys its row
// sees, 32 at a time, in ascending order. A row's bits never depend on its tile or batch.

#include "attention.cuh"

template <int D>
__device__ __forceinline__ void attend(const float* q, int64_t q_stride, float* out, const float* pool,
                                       int64_t page_stride, const int* table, int table_stride, const int* heads,
                                       const Tile* tiles, const int* header, const uint64_t* masks, int q_heads,
                                       int group, Window window, float scale) {
    constexpr int WARPS = 4, PART = D / 32;
    __shared__ __align__(16) float queries[WARPS][D];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    launch_dependents();
    wait_for_inputs();
    if (static_cast<int>(blockIdx.y) >= header[0]) return;
    const Tile tile = tiles[blockIdx.y];
    const Seen seen(tile, window);
    const int count = tile.rows * group, head = heads[blockIdx.x];
    pool += static_cast<int64_t>(blockIdx.x) * 2 * PAGE * D;
    table += static_cast<int64_t>(tile.slot) * table_stride;
    const Stored stored = stored_of(tile, masks);

    for (int r = warp; r < count; r += WARPS) {
        const Query query = query_of(tile, r / group, masks);
        const int64_t head_row = static_cast<int64_t>(head) * group + r % group;
        const float* from = q + (tile.first_row + r / group) * q_stride + head_row * D;
        for (int c = lane; c < D; c += 32) queries[warp][c] = from[c];
        __syncwarp();

        float most = -INFINITY, sum = 0.0f, acc[PART] = {};
        for (Walk walk(seen, INT32_MAX / BLOCK * BLOCK, 0, 1); !walk.done(); walk.advance()) {
            for (int start = walk.block * BLOCK; start < min((walk.block + 1) * BLOCK, seen.keys); start += 32) {
                const int key = start + lane;
                float score = -INFINITY;
                const int at = key < seen.keys ? stored.at(key) : key;
                const int page = key < seen.keys ? table[at / PAGE] : NO_PAGE;
                const bool seen_here = page >= 0 && sees(query, key, window);
                const float* keys = pool + (page >= 0 ? page * page_stride : 0) + at % PAGE * D;
                if (seen_here) {
                    float dot = 0.0f;
                    for (int c = 0; c < D; c += 4) {
                        const float4 k = *reinterpret_cast<const float4*>(keys + c);
                        const float4 x = *reinterpret_cast<const float4*>(&queries[warp][c]);
                        dot = __fmaf_rn(x.x, k.x, dot);
                        dot = __fmaf_rn(x.y, k.y, dot);
                        dot = __fmaf_rn(x.z, k.z, dot);
                        dot = __fmaf_rn(x.w, k.w, dot);
                    }
                    score = __fmul_rn(dot, scale);
                }
                const float next = fmaxf(most, warp_max(score)), less = finite(next);
                const float fade = exp2f(__fsub_rn(most, less)), weight = exp2f(__fsub_rn(score, less));
                most = next;
                sum = __fmaf_rn(sum, fade, weight);
                for (int c = 0; c < PART; ++c) acc[c] = __fmul_rn(acc[c], fade);
                const unsigned visible = __ballot_sync(0xffffffffu, seen_here);
                for (unsigned rest = visible; rest != 0; rest &= rest - 1) {
                    const int k = __ffs(rest) - 1;
                    const float of = __shfl_sync(0xffffffffu, weight, k);
                    const int its_page = __shfl_sync(0xffffffffu, page, k);
                    const int its_place = __shfl_sync(0xffffffffu, at, k) % PAGE;
                    const float* values = pool + its_page * page_stride + (PAGE + its_place) * D;
                    for (int c = 0; c < PART; ++c) acc[c] = __fmaf_rn(of, values[lane + 32 * c], acc[c]);
                }
            }
        }
        const float by = normaliser(warp_sum(sum));
        float* to = out + ((tile.first_row + r / group) * static_cast<int64_t>(q_heads) + head_row) * D;
        for (int c = 0; c < PART; ++c) to[lane + 32 * c] = normalised(acc[c], by);
        __syncwarp();
    }
}

#define EXPORT_PLAIN(NAME, D)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        NAME(const float* q, int64_t q_stride, float* out, const float* pool, int64_t page_stride, const int* table, \
             int table_stride, const int* heads, const Tile* tiles, const int* header, const uint64_t* masks,        \
             int q_heads, int group, int sink, int recent, float scale) {                                            \
        attend<D>(q, q_stride, out, pool, page_stride, table, table_stride, heads, tiles, header, masks, q_heads,    \
                  group, {sink, recent}, scale);                                                                     \
    }

EXPORT_PLAIN(attention_plain_64_f32, 64)
EXPORT_PLAIN(attention_plain_128_f32, 128)
