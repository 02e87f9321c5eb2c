// Products of few rows with quantised matrices, y = x W^T, in one pass over the weights; and whole matrices as T.
//
// A block computes 32 outputs of up to 16 rows; its warps split k and are added up in order. Quants go to the tensor
// cores as exact values of T, with x as it is; what is theirs of a scale is applied to float sums of 32 inputs:
//   Q4_K  sum_j d sc_j P_j - dmin m_j X_j, P_j = sum_i q_i x_i and X_j = sum_i x_i (a product with ones).
//   Q8_0  sum_j d_j P_j;   FP8  scale * sum.
// A row's bits do not depend on the rows beside it.
#include "quantised.cuh"

// d = a b + c.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    const float (&c)[4], bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    const float (&c)[4], f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// A lane's share of a tile.
template <Format F> struct Share {
    uint4 quants[4];
    uint4 scales[2];  // Q4_K: scales and minima of outputs g and g + 8; Q8_0: x and y of [0], four halves each.
    unsigned d[2];    // Q4_K: d and dmin.

    __device__ __forceinline__ void load(const unsigned char* tile) {
        unsigned lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) quants[i] = __ldcs(reinterpret_cast<const uint4*>(tile + i * 512) + lane);
        const unsigned char* after = tile + QUANTS;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if constexpr (F == Q4_K) {
                scales[h] = __ldcs(reinterpret_cast<const uint4*>(after) + g + 8 * h);
                d[h] = __ldcs(reinterpret_cast<const unsigned*>(after + 256) + g + 8 * h);
            } else if constexpr (F == Q8_0) {
                uint2 halves = __ldcs(reinterpret_cast<const uint2*>(after) + g + 8 * h);
                scales[h].x = halves.x;
                scales[h].y = halves.y;
            }
        }
    }
};

// The A operand of one step.
template <Format F, typename T>
__device__ __forceinline__ void operand(const Share<F>& share, int sub, int step, unsigned (&a)[4]) {
    if constexpr (F == Q4_K) {
        const uint4& q = share.quants[sub / 2];
        unsigned word = sub % 2 ? (step ? q.w : q.z) : (step ? q.y : q.x);
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = nibbles(word >> 4 * i & 0x000f000fu, T());
    } else {
        const uint4& q = share.quants[sub];
        unsigned first = step ? q.z : q.x, second = step ? q.w : q.y;
        if constexpr (F == Q8_0) {
            uint2 one = int8_pairs(first, T()), two = int8_pairs(second, T());
            a[0] = one.x, a[1] = two.x, a[2] = one.y, a[3] = two.y;
        } else {
            a[0] = fp8_pair(__byte_perm(first, 0, 0x1404), T()), a[1] = fp8_pair(__byte_perm(second, 0, 0x1404), T());
            a[2] = fp8_pair(__byte_perm(first, 0, 0x3424), T()), a[3] = fp8_pair(__byte_perm(second, 0, 0x3424), T());
        }
    }
}

template <typename T>
__device__ __forceinline__ void finish(float y, void* out, int add, size_t at) {
    if (add) {
        static_cast<float*>(out)[at] += y;
    } else {
        static_cast<T*>(out)[at] = from_float<T>(y);
    }
}

// COLUMNS: eights of rows.
template <Format F, typename T, int COLUMNS>
__device__ __forceinline__ void product(const unsigned char* weights, const float* output_scales, const T* x, void* out,
                                        int add, unsigned rows, unsigned n, unsigned k) {
    constexpr int K = Tile<F>::K;
    extern __shared__ float sums[];  // [warps][2 tiles][COLUMNS][4][32]
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, t = lane % 4;
    unsigned tiles = (k + K - 1) / K;
    const unsigned char* first = weights + (size_t)blockIdx.x * 2 * tiles * Tile<F>::BYTES;
    const unsigned one = BIAS<T> > 0.0f ? 0x3f803f80u : 0x3c003c00u;
    const unsigned ones[4] = {one, one, one, one};
    const float zeros[4] = {};
    launch_dependents();

    float acc[2][COLUMNS][4] = {};
    bool waited = false;
    for (unsigned at = warp; at < tiles; at += warps) {
        Share<F> share[2];
        share[0].load(first + (size_t)at * Tile<F>::BYTES);
        share[1].load(first + (size_t)(tiles + at) * Tile<F>::BYTES);
        if (!waited) {
            wait_for_inputs();
            waited = true;
        }
#pragma unroll
        for (int sub = 0; sub < Tile<F>::SUBS; ++sub) {
            uint4 b[COLUMNS];
            float total[COLUMNS][4], less[COLUMNS][4];
            unsigned from = at * K + sub * 32 + t * 8;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                unsigned row = c * 8 + g;
                b[c] = row < rows && from < k ? *reinterpret_cast<const uint4*>(x + (size_t)row * k + from)
                                              : uint4{0, 0, 0, 0};
                if constexpr (F == Q4_K) {
                    mma(total[c], ones, b[c].x, b[c].y, zeros, T());
                    mma(total[c], ones, b[c].z, b[c].w, total[c], T());
                    // A column has the same total in all outputs.
                    less[c][0] = less[c][2] = -BIAS<T> * total[c][0];
                    less[c][1] = less[c][3] = -BIAS<T> * total[c][1];
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                unsigned a[2][4];
                operand<F, T>(share[i], sub, 0, a[0]);
                operand<F, T>(share[i], sub, 1, a[1]);
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    float p[4];
                    if constexpr (F == FP8) {
                        mma(p, a[0], b[c].x, b[c].y, acc[i][c], T());
                        mma(acc[i][c], a[1], b[c].z, b[c].w, p, T());
                    } else {
                        if constexpr (F == Q4_K) mma(p, a[0], b[c].x, b[c].y, less[c], T());
                        else mma(p, a[0], b[c].x, b[c].y, zeros, T());
                        mma(p, a[1], b[c].z, b[c].w, p, T());
                    }
#pragma unroll
                    for (int e = 0; e < 4 && F != FP8; ++e) {
                        const uint4& s = share[i].scales[e / 2];
                        if constexpr (F == Q4_K) {
                            // (2^23 + byte) d - 2^23 d: exact, 11 bits by 6.
                            float d = half_bits(share[i].d[e / 2]), m = -half_bits(share[i].d[e / 2] >> 16);
                            float scale = __fmaf_rn(above(sub < 4 ? s.x : s.y, sub % 4), d, -8388608.0f * d);
                            float least = __fmaf_rn(above(sub < 4 ? s.z : s.w, sub % 4), m, -8388608.0f * m);
                            acc[i][c][e] = __fmaf_rn(scale, p[e], acc[i][c][e]);
                            acc[i][c][e] = __fmaf_rn(least, total[c][e % 2], acc[i][c][e]);
                        } else {
                            acc[i][c][e] = __fmaf_rn(half_bits((sub < 2 ? s.x : s.y) >> sub % 2 * 16), p[e], acc[i][c][e]);
                        }
                    }
                }
            }
        }
    }
    if (!waited) wait_for_inputs();

#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[(((warp * 2 + i) * COLUMNS + c) * 4 + e) * 32 + lane] = acc[i][c][e];
    __syncthreads();
    constexpr unsigned VALUES = 2 * COLUMNS * 4 * 32;
    for (unsigned v = threadIdx.x; v < VALUES; v += blockDim.x) {
        float y = 0.0f;
        for (unsigned w = 0; w < warps; ++w) y += sums[w * VALUES + v];
        unsigned of = v % 32, e = v / 32 % 4, c = v / 128 % COLUMNS, i = v / 128 / COLUMNS;
        unsigned output = blockIdx.x * 32 + i * 16 + of / 4 + e / 2 * 8, row = c * 8 + of % 4 * 2 + e % 2;
        if (output >= n || row >= rows) continue;
        if (F == FP8) y *= output_scales[output];
        finish<T>(y, out, add, (size_t)row * n + output);
    }
}

// x of float, which the tensor cores would round: a warp an output, for checks and small models.
template <Format F>
__device__ void float_product(const unsigned char* weights, const float* output_scales, const float* x, void* out,
                              int add, unsigned rows, unsigned n, unsigned k) {
    constexpr int K = Tile<F>::K;
    unsigned output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    launch_dependents();
    wait_for_inputs();
    if (output >= n) return;
    const unsigned char* tiles = weights + (size_t)(output / 16) * ((k + K - 1) / K) * Tile<F>::BYTES;
    float acc[16] = {};
    for (unsigned at = lane; at < k; at += 32) {
        float w = weight<F>(tiles + (size_t)(at / K) * Tile<F>::BYTES, output % 16, at % K);
#pragma unroll
        for (unsigned row = 0; row < 16; ++row) {
            if (row < rows) acc[row] = __fmaf_rn(w, x[(size_t)row * k + at], acc[row]);
        }
    }
#pragma unroll
    for (unsigned row = 0; row < 16; ++row) {
        float y = warp_sum(acc[row]);
        if (lane == row && row < rows) {
            if (F == FP8) y *= output_scales[output];
            finish<float>(y, out, add, (size_t)row * n + output);
        }
    }
}

// out[n][k] of T; a thread eight inputs.
template <Format F, typename T>
__device__ void whole(const unsigned char* weights, const float* output_scales, T* out, unsigned n, unsigned k) {
    constexpr int K = Tile<F>::K;
    launch_dependents();
    wait_for_inputs();
    unsigned output = blockIdx.x, at = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (at >= k) return;
    const unsigned char* tile = weights + ((size_t)(output / 16) * ((k + K - 1) / K) + at / K) * Tile<F>::BYTES;
    float scale = F == FP8 ? output_scales[output] : 1.0f;
    alignas(16) T values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = from_float<T>(weight<F>(tile, output % 16, at % K + i) * scale);
    uint4* to = reinterpret_cast<uint4*>(out + (size_t)output * k + at);
#pragma unroll
    for (int i = 0; i < (int)sizeof(T) / 2; ++i) to[i] = reinterpret_cast<const uint4*>(values)[i];
}

#define PRODUCT(FORMAT, NAME, T, SUFFIX, COLUMNS, ROWS)                                                              \
    extern "C" __global__ void __launch_bounds__(512)                                                                \
    quantised_##NAME##_##ROWS##_##SUFFIX(const unsigned char* w, const float* s, const T* x, void* out,              \
                                         int add, unsigned rows, unsigned n, unsigned k) {                           \
        product<FORMAT, T, COLUMNS>(w, s, x, out, add, rows, n, k);                                                  \
    }
#define WHOLE(FORMAT, NAME, T, SUFFIX)                                                                               \
    extern "C" __global__ void dequantise_##NAME##_##SUFFIX(const unsigned char* w, const float* s, T* out,          \
                                                            unsigned n, unsigned k) {                                \
        whole<FORMAT, T>(w, s, out, n, k);                                                                           \
    }
#define FORMAT_KERNELS(FORMAT, NAME)                                                                                 \
    PRODUCT(FORMAT, NAME, bf16, bf16, 1, 8)                                                                          \
    PRODUCT(FORMAT, NAME, bf16, bf16, 2, 16)                                                                         \
    PRODUCT(FORMAT, NAME, f16, f16, 1, 8)                                                                            \
    PRODUCT(FORMAT, NAME, f16, f16, 2, 16)                                                                           \
    extern "C" __global__ void __launch_bounds__(512)                                                                \
    quantised_##NAME##_16_f32(const unsigned char* w, const float* s, const float* x, void* out, int add,            \
                              unsigned rows, unsigned n, unsigned k) {                                               \
        float_product<FORMAT>(w, s, x, out, add, rows, n, k);                                                        \
    }                                                                                                                \
    WHOLE(FORMAT, NAME, float, f32)                                                                                  \
    WHOLE(FORMAT, NAME, bf16, bf16)                                                                                  \
    WHOLE(FORMAT, NAME, f16, f16)

FORMAT_KERNELS(Q4_K, q4_k)
FORMAT_KERNELS(Q8_0, q8_0)
FORMAT_KERNELS(FP8, fp8)
