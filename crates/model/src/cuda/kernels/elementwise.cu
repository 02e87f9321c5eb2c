// What happens to rows between the products: embedding, RMS norm, RoPE with the write of keys and values,
// SiLU gate, and the choice of the rows that pick.
//
// The residual stream x is float whatever T is. Rows of a step: token, position and slot of row i in arrays of
// their own; a row of padding (CUDA graphs have a fixed number of rows) has slot -1 and touches no page.
#include "rope.cuh"

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

// One warp a head; grid (rows, ceil((heads + 2 kv_heads) / warps)).
template <typename T, int D> __device__ void rope_and_keep(T* qkv, const RopeHeads& of) {
    launch_dependents();
    wait_for_inputs();
    const int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head < of.heads + 2 * of.kv_heads) rope_head<T, D>(qkv, blockIdx.x, head, of);
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
        rope_and_keep<T, D>(qkv, {bias, q_norm, k_norm, positions, slots, {angles, dims, style},                      \
                                  {full, full_page, full_table, full_stride},                                         \
                                  {window, window_page, window_table, window_stride}, places, heads, kv_heads,        \
                                  epsilon});                                                                          \
    }

EXPORT(f32, float)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
