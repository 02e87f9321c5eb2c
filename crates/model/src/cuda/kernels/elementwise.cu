// What happens to rows between the products: embedding, RMS norm, RoPE with the write of keys and values,
// SiLU gate, and the choice of the rows that pick.
//
// The residual stream x is float whatever T is. Rows of a step: token, position and slot of row i in arrays of
// their own; a row of padding (CUDA graphs have a fixed number of rows) has slot -1 and touches no page.
#include "rope.cuh"

// Values that are read and written together.
template <typename T, int N> struct alignas(N * sizeof(T)) Several {
    T of[N];
};

// x[row] = embedding[tokens[row]]; zeros for padding. One block a row. The first kernel of a step: nothing behind it begins
// before it has ended, and with it all that came before the step.
template <typename T>
__device__ void embed(const T* embedding, const int* tokens, const int* slots, float* x, int hidden) {
    wait_for_inputs();
    const int row = blockIdx.x;
    const bool there = slots[row] >= 0;
    const T* from = embedding + (size_t)(there ? tokens[row] : 0) * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x)
        x[(size_t)row * hidden + i] = there ? to_float(from[i]) : 0.0f;
}

// out[i] = norm(x[picked[i]]) * weight: RMS norm of chosen rows (picked null: of all), of a width
// that four divides. One block a row.
template <typename T>
__device__ void rms_norm(const float* x, const int* picked, const float* weight, T* out, int hidden, float epsilon) {
    __shared__ float scratch[32];
    launch_dependents();
    wait_for_inputs();
    const int row = picked ? picked[blockIdx.x] : blockIdx.x;
    const float* from = x + (size_t)row * hidden;
    T* to = out + (size_t)blockIdx.x * hidden;
    // What a thread reads first it keeps; rows that are longer are read again.
    constexpr int KEPT = 2;
    const int quads = hidden / 4;
    float4 kept[KEPT];
    float squares = 0.0f;
    auto add = [&](float4 v) {
        squares = __fmaf_rn(v.x, v.x, squares);
        squares = __fmaf_rn(v.y, v.y, squares);
        squares = __fmaf_rn(v.z, v.z, squares);
        squares = __fmaf_rn(v.w, v.w, squares);
    };
    auto at = [&](int i) { return reinterpret_cast<const float4*>(from)[i]; };
#pragma unroll
    for (int e = 0; e < KEPT; ++e) {
        const int i = threadIdx.x + e * blockDim.x;
        kept[e] = i < quads ? at(i) : make_float4(0, 0, 0, 0);
        add(kept[e]);
    }
    for (int i = threadIdx.x + KEPT * blockDim.x; i < quads; i += blockDim.x) add(at(i));
    const float scale = rsqrtf(block_sum(squares, scratch) / hidden + epsilon);
    auto put = [&](int i, float4 v) {
        const float4 w = reinterpret_cast<const float4*>(weight)[i];
        Several<T, 4> out = {{from_float<T>(v.x * scale * w.x), from_float<T>(v.y * scale * w.y),
                              from_float<T>(v.z * scale * w.z), from_float<T>(v.w * scale * w.w)}};
        reinterpret_cast<Several<T, 4>*>(to)[i] = out;
    };
#pragma unroll
    for (int e = 0; e < KEPT; ++e) {
        const int i = threadIdx.x + e * blockDim.x;
        if (i < quads) put(i, kept[e]);
    }
    for (int i = threadIdx.x + KEPT * blockDim.x; i < quads; i += blockDim.x) put(i, at(i));
}

// One warp a head; grid (rows, ceil((heads + 2 kv_heads) / warps)).
template <typename T, int D, typename C> __device__ void rope_and_keep(T* qkv, const RopeHeads& of) {
    launch_dependents();
    wait_for_inputs();
    const int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head < of.heads + 2 * of.kv_heads) rope_head<T, D, C>(qkv, blockIdx.x, head, of);
}

// out[row][i] = silu(both[row][i]) * both[row][width + i], of a width that eight divides.
template <typename T> __device__ void silu_mul(const T* both, T* out, int width) {
    constexpr int N = 16 / sizeof(T);
    launch_dependents();
    wait_for_inputs();
    const auto* gate = reinterpret_cast<const Several<T, N>*>(both + (size_t)blockIdx.x * 2 * width);
    auto* to = reinterpret_cast<Several<T, N>*>(out + (size_t)blockIdx.x * width);
    const int all = width / N;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < all; i += gridDim.y * blockDim.x) {
        const Several<T, N> g = gate[i], u = gate[all + i];
        Several<T, N> both;
#pragma unroll
        for (int e = 0; e < N; ++e) {
            const float x = to_float(g.of[e]);
            both.of[e] = from_float<T>(x / (1.0f + __expf(-x)) * to_float(u.of[e]));
        }
        to[i] = both;
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

// tokens[i] = what row tokens[i] of a draw gave, of (token, status) pairs; 0 for what is no token: whoever drew finds that out.
extern "C" __global__ void take_tokens(int* tokens, const int2* drawn, int count, int vocab) {
    launch_dependents();
    wait_for_inputs();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int token = drawn[tokens[i]].x;
    tokens[i] = token >= 0 && token < vocab ? token : 0;
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
    EXPORT_HEAD(S, T, 64, T)                                                                                          \
    EXPORT_HEAD(S, T, 128, T)

// C: elements of pages.
#define EXPORT_HEAD(S, T, D, C)                                                                                       \
    extern "C" __global__ void rope_and_keep_##S##_##D(                                                               \
        T* qkv, const float* bias, const float* q_norm, const float* k_norm, const int* positions, const int* slots,  \
        const int* stored, const float2* angles, int dims, int style, void* full, long long full_page,                \
        const int* full_table, long long full_stride, void* window, long long window_page, const int* window_table,   \
        long long window_stride, const int2* places, int heads, int kv_heads, float epsilon) {                        \
        rope_and_keep<T, D, C>(qkv, {bias, q_norm, k_norm, positions, slots, stored, {angles, dims, style},           \
                                  {full, full_page, full_table, full_stride},                                         \
                                  {window, window_page, window_table, window_stride}, places, heads, kv_heads,        \
                                  epsilon});                                                                          \
    }

EXPORT(f32, float)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
EXPORT_HEAD(fp8, bf16, 64, fp8)
EXPORT_HEAD(fp8, bf16, 128, fp8)
