// RoPE with the write of keys and values: one head of one row, by one warp.
#pragma once

#include "fp8.cuh"

// Where the keys and values of one head class lie in one layer.
struct Pool {
    void* base;          // of this layer
    long long page;      // elements from one page to the next
    const int* table;    // [slots][stride] page of a position / 16
    long long stride;
};

// Which elements of a head turn together.
enum RopeStyle { ADJACENT = 0, HALVES = 1, HALVES_TO_ADJACENT = 2 };

struct Rope {
    const float2* angles;  // [positions][dims / 2] cosine and sine, amplitude included
    int dims;
    int style;
};

// The heads of a row's q, k and v, and what is done to them.
struct RopeHeads {
    const float* bias;      // of each element of q, k and v, or null
    const float* q_norm;    // RMS norms of a head (Qwen 3), or null
    const float* k_norm;
    const int* positions;
    const int* slots;       // -1: a row of padding
    const int* stored;      // position at which a row's key and value go: its own, but for rows of trees
    Rope rope;
    Pool full, window;
    const int2* places;     // class and index within the class of each KV head
    int heads, kv_heads;
    float epsilon;
};

// Puts a key or value into its page as codes: lane l holds the pairs l, l + 32, ... of which those before `apart` are so many
// elements apart, and the others neighbours. `head`: its part of the page. The last pairs of keys have second codes.
template <int D>
__device__ __forceinline__ void keep_codes(fp8* head, bool is_k, int offset, const float (&first)[D / 64],
                                           const float (&second)[D / 64], int apart) {
    // Of numbers without a sign, bits are in the order of sizes, and NaN is above all.
    unsigned largest = 0;
#pragma unroll
    for (int e = 0; e < D / 64; ++e) {
        largest = max(largest, __float_as_uint(fabsf(first[e])));
        largest = max(largest, __float_as_uint(fabsf(second[e])));
    }
    const float scale = fp8_scale(__uint_as_float(__reduce_max_sync(0xffffffffu, largest)));
    const int lane = threadIdx.x % 32, nth = (is_k ? 0 : PAGE) + offset;
    fp8* to = head + nth * D;
#pragma unroll
    for (int e = 0; e < D / 64; ++e) {
        const int p = lane + 32 * e;
        const float a = __fdiv_rn(first[e], scale), b = __fdiv_rn(second[e], scale);
        to[p < apart ? p : 2 * p] = {fp8_code(a)};
        to[p < apart ? p + apart : 2 * p + 1] = {fp8_code(b)};
        const int nth_fine = p - (D - FINE) / 2;  // cuda/fine.rs has their columns
        if (is_k && nth_fine >= 0) {
            fp8* fine = head + FINE_AT<D> + offset * FINE + 2 * nth_fine;
            fine[0] = {fp8_code(__fsub_rn(a, fp8_value(fp8_code(a))))};
            fine[1] = {fp8_code(__fsub_rn(b, fp8_value(fp8_code(b))))};
        }
    }
    if (lane == 0) reinterpret_cast<float*>(head + SCALES_AT<D>)[nth] = scale;
}

// Bias, RMS norm and RoPE, in place for q; k and v go to their page, as C. qkv: [rows][(heads + 2 kv_heads) * D], read past
// the first cache: other multiprocessors may have written it in this launch.
template <typename T, int D, typename C = T>
__device__ __forceinline__ void rope_head(T* qkv, int row, int head, const RopeHeads& of) {
    constexpr int EACH = D / 32;
    const int lane = threadIdx.x % 32;
    const int slot = of.slots[row];
    if (slot < 0) return;
    const int position = of.positions[row];
    T* at = qkv + ((size_t)row * (of.heads + 2 * of.kv_heads) + head) * D;
    const bool is_q = head < of.heads, is_k = !is_q && head < of.heads + of.kv_heads;

    // Lane l holds the pairs l, l + 32, ... as (first, second) whatever the style.
    float first[EACH / 2], second[EACH / 2];
    const int pairs = (is_q || is_k) ? of.rope.dims / 2 : 0;
    const bool adjacent = of.rope.style == ADJACENT;
#pragma unroll
    for (int e = 0; e < EACH / 2; ++e) {
        const int p = lane + 32 * e;
        // Pairs beyond the turned dimensions are neighbours, and stay.
        const int a = p < pairs && !adjacent ? p : 2 * p;
        const int b = p < pairs && !adjacent ? p + pairs : 2 * p + 1;
        first[e] = to_float(load_shared_by_all(at + a));
        second[e] = to_float(load_shared_by_all(at + b));
        if (of.bias) {
            first[e] += of.bias[head * D + a];
            second[e] += of.bias[head * D + b];
        }
    }
    const float* norm = is_q ? of.q_norm : is_k ? of.k_norm : nullptr;
    if (norm) {
        float squares = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH / 2; ++e) {
            squares = __fmaf_rn(first[e], first[e], squares);
            squares = __fmaf_rn(second[e], second[e], squares);
        }
        const float scale = rsqrtf(warp_sum(squares) / D + of.epsilon);
#pragma unroll
        for (int e = 0; e < EACH / 2; ++e) {
            const int p = lane + 32 * e;
            const int a = p < pairs && !adjacent ? p : 2 * p;
            const int b = p < pairs && !adjacent ? p + pairs : 2 * p + 1;
            first[e] *= scale * norm[a];
            second[e] *= scale * norm[b];
        }
    }
    T* to = at;
    fp8* codes = nullptr;
    int stored = 0;
    if (!is_q) {
        const int kv = (head - of.heads) % of.kv_heads;
        const int2 place = of.places[kv];
        const Pool pool = place.x == 0 ? of.full : of.window;
        stored = of.stored[row];
        const int page = pool.table[slot * pool.stride + stored / PAGE];
        if (page == NO_PAGE) return;
        if constexpr (IS_CODES<C>)
            codes = (fp8*)pool.base + page * pool.page + place.y * HEAD<C, D>;
        else
            to = (T*)pool.base + page * pool.page + ((size_t)place.y * 2 + (is_k ? 0 : 1)) * PAGE * D +
                 (stored % PAGE) * D;
    }
    // In place, a lane writes what another has read.
    __syncwarp();
#pragma unroll
    for (int e = 0; e < EACH / 2; ++e) {
        const int p = lane + 32 * e;
        float x = first[e], y = second[e];
        if (p < pairs) {
            const float2 turn = of.rope.angles[(size_t)position * pairs + p];
            x = __fmaf_rn(first[e], turn.x, -(second[e] * turn.y));
            y = __fmaf_rn(second[e], turn.x, first[e] * turn.y);
        }
        if constexpr (IS_CODES<C>) {
            if (codes) {
                first[e] = x;
                second[e] = y;
                continue;
            }
        }
        const bool apart = p < pairs && of.rope.style == HALVES;
        to[apart ? p : 2 * p] = from_float<T>(x);
        to[apart ? p + pairs : 2 * p + 1] = from_float<T>(y);
    }
    if constexpr (IS_CODES<C>) {
        if (codes) keep_codes<D>(codes, is_k, stored % PAGE, first, second, of.rope.style == HALVES ? pairs : 0);
    }
}
