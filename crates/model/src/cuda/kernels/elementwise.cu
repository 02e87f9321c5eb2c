// What happens to rows between the products: embedding, RMS norm, RoPE with the write of keys and values,
// SiLU gate, and the choice of the rows that pick.
//
// The residual stream x is float whatever T is. Rows of a step: token, position and slot of row i in arrays of
// their own; a row of padding (CUDA graphs have a fixed number of rows) has slot -1 and touches no page.
#include "common.cuh"

// x[row] = embedding[tokens[row]]; zeros for padding. One block a row.
template <typename T>
__device__ void embed(const T* embedding, const int* tokens, const int* slots, float* x, int hidden) {
    launch_dependents();
    wait_for_inputs();
    const int row = blockIdx.x;
    const bool there = slots[row] >= 0;
    const T* from = embedding + (size_t)(there ? tokens[row] : 0) * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x)
        x[(size_t)row * hidden + i] = there ? to_float(from[i]) : 0.0f;
}

// out[i] = norm(x[picked[i]]) * weight: RMS norm of chosen rows (picked null: of all). One block a row.
template <typename T>
__device__ void rms_norm(const float* x, const int* picked, const float* weight, T* out, int hidden, float epsilon) {
    __shared__ float scratch[32];
    launch_dependents();
    wait_for_inputs();
    const int row = picked ? picked[blockIdx.x] : blockIdx.x;
    const float* from = x + (size_t)row * hidden;
    T* to = out + (size_t)blockIdx.x * hidden;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) squares = __fmaf_rn(from[i], from[i], squares);
    const float scale = rsqrtf(block_sum(squares, scratch) / hidden + epsilon);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = from_float<T>(from[i] * scale * weight[i]);
}

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

// Of each head of a row's q and k: bias, RMS norm (Qwen 3) and RoPE, in place for q; k and v go to their page.
// qkv: [rows][(heads + 2 kv_heads) * d]. places: class and index within the class of each KV head.
// One warp a head; grid (rows, ceil((heads + 2 kv_heads) / warps)).
template <typename T, int D>
__device__ void rope_and_keep(T* qkv, const float* bias, const float* q_norm, const float* k_norm, const int* positions,
                              const int* slots, Rope rope, Pool full, Pool window, const int2* places, int heads,
                              int kv_heads, float epsilon) {
    constexpr int EACH = D / 32;
    launch_dependents();
    wait_for_inputs();
    const int row = blockIdx.x, lane = threadIdx.x % 32;
    const int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= heads + 2 * kv_heads || slots[row] < 0) return;
    const int position = positions[row];
    T* at = qkv + ((size_t)row * (heads + 2 * kv_heads) + head) * D;
    const bool is_q = head < heads, is_k = !is_q && head < heads + kv_heads;

    // Lane l holds the pairs l, l + 32, ... as (first, second) whatever the style.
    float first[EACH / 2], second[EACH / 2];
    const int pairs = (is_q || is_k) ? rope.dims / 2 : 0;
    const bool adjacent = rope.style == ADJACENT;
#pragma unroll
    for (int e = 0; e < EACH / 2; ++e) {
        const int p = lane + 32 * e;
        // Pairs beyond the turned dimensions are neighbours, and stay.
        const int a = p < pairs && !adjacent ? p : 2 * p;
        const int b = p < pairs && !adjacent ? p + pairs : 2 * p + 1;
        first[e] = to_float(at[a]);
        second[e] = to_float(at[b]);
        if (bias) {
            first[e] += bias[head * D + a];
            second[e] += bias[head * D + b];
        }
    }
    const float* norm = is_q ? q_norm : is_k ? k_norm : nullptr;
    if (norm) {
        float squares = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH / 2; ++e) {
            squares = __fmaf_rn(first[e], first[e], squares);
            squares = __fmaf_rn(second[e], second[e], squares);
        }
        const float scale = rsqrtf(warp_sum(squares) / D + epsilon);
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
    if (!is_q) {
        const int kv = (head - heads) % kv_heads;
        const int2 place = places[kv];
        const Pool pool = place.x == 0 ? full : window;
        const int page = pool.table[slots[row] * pool.stride + position / PAGE];
        if (page == NO_PAGE) return;
        to = (T*)pool.base + page * pool.page + ((size_t)place.y * 2 + (is_k ? 0 : 1)) * PAGE * D +
             (position % PAGE) * D;
    }
    // In place, a lane writes what another has read.
    __syncwarp();
#pragma unroll
    for (int e = 0; e < EACH / 2; ++e) {
        const int p = lane + 32 * e;
        float x = first[e], y = second[e];
        if (p < pairs) {
            const float2 turn = rope.angles[(size_t)position * pairs + p];
            x = __fmaf_rn(first[e], turn.x, -(second[e] * turn.y));
            y = __fmaf_rn(second[e], turn.x, first[e] * turn.y);
        }
        const bool apart = p < pairs && rope.style == HALVES;
        to[apart ? p : 2 * p] = from_float<T>(x);
        to[apart ? p + pairs : 2 * p + 1] = from_float<T>(y);
    }
}

// out[row][i] = silu(both[row][i]) * both[row][width + i].
template <typename T> __device__ void silu_mul(const T* both, T* out, int width) {
    launch_dependents();
    wait_for_inputs();
    const int row = blockIdx.x;
    const T* gate = both + (size_t)row * 2 * width;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < width; i += gridDim.y * blockDim.x) {
        const float g = to_float(gate[i]);
        out[(size_t)row * width + i] = from_float<T>(g / (1.0f + __expf(-g)) * to_float(gate[width + i]));
    }
}

// values[i] = mean + scale * u, u in [-1, 1) by the index: weights of a model that has none. They are a part of a
// larger matrix, rows of `width` values that begin `stride` apart from `first` on; indices are of the whole.
template <typename T>
__device__ void fill(T* values, long long count, unsigned long long seed, float mean, float scale, long long width,
                     long long stride, long long first) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const long long at = first + i / width * stride + i % width;
        unsigned long long z = seed + (unsigned long long)at * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        z ^= z >> 31;
        values[i] = from_float<T>(mean + scale * ((float)(z >> 40) / 8388608.0f - 1.0f));
    }
}

// table[slot][index] = page for each of `count` entries (slot, index, page, unused).
extern "C" __global__ void write_table(int* table, long long stride, const int4* entries, int count) {
    launch_dependents();
    wait_for_inputs();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) table[entries[i].x * stride + entries[i].y] = entries[i].z;
}

#define EXPORT(S, T)                                                                                                  \
    extern "C" __global__ void embed_##S(const T* embedding, const int* tokens, const int* slots, float* x,           \
                                         int hidden) {                                                                \
        embed<T>(embedding, tokens, slots, x, hidden);                                                                \
    }                                                                                                                 \
    extern "C" __global__ void rms_norm_##S(const float* x, const int* picked, const float* weight, T* out,           \
                                            int hidden, float epsilon) {                                              \
        rms_norm<T>(x, picked, weight, out, hidden, epsilon);                                                         \
    }                                                                                                                 \
    extern "C" __global__ void silu_mul_##S(const T* both, T* out, int width) { silu_mul<T>(both, out, width); }      \
    extern "C" __global__ void fill_##S(T* values, long long count, unsigned long long seed, float mean, float scale, \
                                        long long width, long long stride, long long first) {                         \
        fill<T>(values, count, seed, mean, scale, width, stride, first);                                              \
    }                                                                                                                 \
    EXPORT_HEAD(S, T, 64)                                                                                             \
    EXPORT_HEAD(S, T, 128)

#define EXPORT_HEAD(S, T, D)                                                                                          \
    extern "C" __global__ void rope_and_keep_##S##_##D(                                                               \
        T* qkv, const float* bias, const float* q_norm, const float* k_norm, const int* positions, const int* slots,  \
        const float2* angles, int dims, int style, void* full, long long full_page, const int* full_table,            \
        long long full_stride, void* window, long long window_page, const int* window_table, long long window_stride, \
        const int2* places, int heads, int kv_heads, float epsilon) {                                                 \
        rope_and_keep<T, D>(qkv, bias, q_norm, k_norm, positions, slots, Rope{angles, dims, style},                   \
                            Pool{full, full_page, full_table, full_stride},                                           \
                            Pool{window, window_page, window_table, window_stride}, places, heads, kv_heads, epsilon);\
    }

EXPORT(f32, float)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
