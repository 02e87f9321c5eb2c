// Products of up to 8 rows with a dense matrix, at the speed of memory: y[row][n] = sum over k of x[row][k] w[n][k].
//
// Tensor cores do the sums (m16n8k16: 16 outputs, 8 rows), so 8 rows cost what 1 costs. The matrix is read once, 16
// bytes a lane, straight into fragments: within a group of 64 k, lane t of a quad takes k = 8t .. 8t+7 and 32 + the
// same, for the matrix and for x alike. A sum does not mind in which order the instruction thinks its k come.
//
// A block of 8 warps takes 16 outputs (twice 16 for a gate); the warps share the k, and their sums are added in warp
// order: the bits of a row do not depend on the other rows. Loads of weights begin before the inputs are there.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int ROWS = 8;
constexpr int GROUP = 64;

// What becomes of a sum.
enum Epilogue {
    STORE = 0,      // out[row][n], of T
    STORE_FLOAT,    // out[row][n], float
    ADD,            // residual[row][n] += sum
    GATE,           // out[row][n] = silu(sum of output n) * (sum of output outputs + n), of T
};

__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Weights are read once in a step: they need not stay in a cache.
__device__ __forceinline__ uint4 stream(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

template <typename T> __device__ __forceinline__ unsigned pack(float a, float b) {
    const T pair[2] = {from_float<T>(a), from_float<T>(b)};
    return *reinterpret_cast<const unsigned*>(pair);
}

// Asks for the first part of a block's weights to be brought into the L2 cache: while the kernels before this one end,
// the memory would stand still.
template <typename T> __device__ __forceinline__ void prefetch_rows(const T* w, int inputs) {
#if __CUDA_ARCH__ >= 900
    constexpr int MOST = 6144;
    const int bytes = min(inputs * (int)sizeof(T), MOST) / 16 * 16;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(w), "r"(bytes) : "memory");
#endif
}

// x: [rows][inputs] of T; with NORM float, to be RMS-normed and weighted by `norm` first (in shared memory,
// rows * (inputs + 32) of T).
template <typename T, bool NORM, Epilogue E>
__device__ void small_linear(const T* w, const void* x, const float* norm, float epsilon, void* out, int rows, int inputs,
                             int outputs) {
    constexpr int TILES = E == GATE ? 2 : 1;
    constexpr int DEPTH = E == GATE ? 2 : 4;
    extern __shared__ char shared[];
    __shared__ float sums[WARPS][TILES * 16][ROWS];
    __shared__ float scratch[ROWS * WARPS];

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int groups = inputs / GROUP, tiles = outputs / 16;
    uint4 ring[DEPTH][TILES][2][2];

    auto load = [&](uint4 (&to)[TILES][2][2], int tile, int group) {
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const T* from = w + ((size_t)m * outputs + tile * 16 + g + 8 * half) * inputs + group * GROUP + 8 * t;
                to[m][half][0] = stream(from);
                to[m][half][1] = stream(from + 32);
            }
    };
    auto fill = [&](int tile) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d)
            if (tile < tiles && warp + d * WARPS < groups) load(ring[d], tile, warp + d * WARPS);
    };

    fill(blockIdx.x);
    if (threadIdx.x < TILES * 16) {
        const int m = threadIdx.x / 16, n = threadIdx.x % 16;
        prefetch_rows(w + ((size_t)m * outputs + blockIdx.x * 16 + n) * inputs, inputs);
    }
    launch_dependents();
    wait_for_inputs();

    const int stride = inputs + 32;
    T* normed = reinterpret_cast<T*>(shared);
    if (NORM) {
        const float* from = static_cast<const float*>(x);
        for (int r = 0; r < rows; ++r) {
            float squares = 0.0f;
            for (int i = threadIdx.x * 4; i < inputs; i += WARPS * 32 * 4) {
                const float4 v = *reinterpret_cast<const float4*>(from + (size_t)r * inputs + i);
                const float4 n = *reinterpret_cast<const float4*>(norm + i);
                squares = __fmaf_rn(v.x, v.x, squares);
                squares = __fmaf_rn(v.y, v.y, squares);
                squares = __fmaf_rn(v.z, v.z, squares);
                squares = __fmaf_rn(v.w, v.w, squares);
                uint2 packed = make_uint2(pack<T>(v.x * n.x, v.y * n.y), pack<T>(v.z * n.z, v.w * n.w));
                *reinterpret_cast<uint2*>(normed + r * stride + i) = packed;
            }
            // Summed up behind the products, where the scale is first needed.
            squares = warp_sum(squares);
            if (lane == 0) scratch[r * WARPS + warp] = squares;
        }
        __syncthreads();
    }

    const T* rows_of_x = static_cast<const T*>(x);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float c[TILES][4] = {};
        for (int base = warp; base < groups; base += WARPS * DEPTH) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const int group = base + d * WARPS;
                if (group >= groups) break;
                uint4 b[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
                if (NORM && g < rows) {
                    const T* from = normed + g * stride + group * GROUP + 8 * t;
                    b[0] = *reinterpret_cast<const uint4*>(from);
                    b[1] = *reinterpret_cast<const uint4*>(from + 32);
                } else if (!NORM && g < rows) {
                    const T* from = rows_of_x + (size_t)g * inputs + group * GROUP + 8 * t;
                    b[0] = *reinterpret_cast<const uint4*>(from);
                    b[1] = *reinterpret_cast<const uint4*>(from + 32);
                }
#pragma unroll
                for (int m = 0; m < TILES; ++m)
#pragma unroll
                    for (int part = 0; part < 2; ++part) {
                        const uint4 low = ring[d][m][0][part], high = ring[d][m][1][part];
                        mma(c[m], low.x, high.x, low.y, high.y, b[part].x, b[part].y, T());
                        mma(c[m], low.z, high.z, low.w, high.w, b[part].z, b[part].w, T());
                    }
                if (group + DEPTH * WARPS < groups) load(ring[d], tile, group + DEPTH * WARPS);
            }
        }
        fill(tile + gridDim.x);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            sums[warp][m * 16 + g][2 * t] = c[m][0];
            sums[warp][m * 16 + g][2 * t + 1] = c[m][1];
            sums[warp][m * 16 + g + 8][2 * t] = c[m][2];
            sums[warp][m * 16 + g + 8][2 * t + 1] = c[m][3];
        }
        __syncthreads();
        if (threadIdx.x < 16 * ROWS) {
            const int n = threadIdx.x % 16, row = threadIdx.x / 16;
            float sum[TILES], scale = 1.0f;
            if (NORM && row < rows) {
                float squares = 0.0f;
#pragma unroll
                for (int from = 0; from < WARPS; ++from) squares += scratch[row * WARPS + from];
                scale = rsqrtf(squares / inputs + epsilon);
            }
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                sum[m] = 0.0f;
#pragma unroll
                for (int from = 0; from < WARPS; ++from) sum[m] += sums[from][m * 16 + n][row];
                sum[m] *= scale;
            }
            if (row < rows) {
                const size_t at = (size_t)row * outputs + tile * 16 + n;
                if (E == STORE) static_cast<T*>(out)[at] = from_float<T>(sum[0]);
                if (E == STORE_FLOAT) static_cast<float*>(out)[at] = sum[0];
                if (E == ADD) static_cast<float*>(out)[at] += sum[0];
                if (E == GATE)
                    static_cast<T*>(out)[at] = from_float<T>(sum[0] / (1.0f + __expf(-sum[0])) * sum[TILES - 1]);
            }
        }
        __syncthreads();
    }
}

#define KERNEL(NAME, S, T, NORM, E)                                                                                   \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                          \
        linear_##NAME##_##S(const T* w, const void* x, const float* norm, float epsilon, void* out, int rows,         \
                            int inputs, int outputs) {                                                                \
        small_linear<T, NORM, E>(w, x, norm, epsilon, out, rows, inputs, outputs);                                    \
    }

#define EXPORT(S, T)                             \
    KERNEL(store, S, T, false, STORE)            \
    KERNEL(add, S, T, false, ADD)                \
    KERNEL(store_float, S, T, false, STORE_FLOAT) \
    KERNEL(gate, S, T, false, GATE)              \
    KERNEL(norm_store, S, T, true, STORE)        \
    KERNEL(norm_gate, S, T, true, GATE)

EXPORT(bf16, bf16)
// With NORM, x * norm is rounded before it is scaled: half floats have no room for that.
KERNEL(store, f16, f16, false, STORE)
KERNEL(store_float, f16, f16, false, STORE_FLOAT)
KERNEL(add, f16, f16, false, ADD)
KERNEL(gate, f16, f16, false, GATE)
