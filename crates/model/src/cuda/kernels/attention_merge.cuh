// Partial results of splits, and how the blocks that share a tile and head merge them without a second launch.
#pragma once

#include "attention_fp8.cuh"

// A partial row of the workspace: D values, maximum, sum, padding to 16 bytes.
template <int D> constexpr int PARTIAL = D + 4;

// Where the partial rows of a split (the `ordinal`-th active one) of a tile and head begin.
template <int D> __device__ __forceinline__ int64_t partial_at(const Tile& tile, int ordinal, int count) {
    return (tile.partials + (static_cast<int64_t>(ordinal) * gridDim.y + blockIdx.y) * count) * PARTIAL<D>;
}

// Merges rows first..end of a tile and head, `active` partial rows each, `between` apart, into the output.
template <typename T, int D>
__device__ __noinline__ void merge_rows(const float* partials, int64_t between, int active, int first, int end, T* out,
                           int64_t out_stride, int group) {
    constexpr int PIECES = D / 4, TOGETHER = 16;
    for (int c = first * PIECES + threadIdx.x; c < end * PIECES; c += THREADS) {
        const int row = c / PIECES, piece = c % PIECES;
        const float* from = partials + row * PARTIAL<D>;
        float most = -INFINITY, sum = 0.0f, values[4] = {};
        for (int start = 0; start < active; start += TOGETHER) {
            // All loads first: the merge itself is a chain.
            float4 fresh[TOGETHER];
            float2 state[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                if (start + i >= active) continue;
                const float* at = from + (start + i) * between;
                fresh[i] = __ldcg(reinterpret_cast<const float4*>(at + 4 * piece));
                state[i] = __ldcg(reinterpret_cast<const float2*>(at + D));
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                if (start + i >= active) continue;
                const Factors by = merge(most, sum, state[i].x, state[i].y);
                values[0] = merged(values[0], fresh[i].x, by);
                values[1] = merged(values[1], fresh[i].y, by);
                values[2] = merged(values[2], fresh[i].z, by);
                values[3] = merged(values[3], fresh[i].w, by);
            }
        }
        const float by = normaliser(sum);
        T* to = out + row / group * out_stride + row % group * D + 4 * piece;
        uint2 packed;
        packed.x = pack<T>(normalised(values[0], by), normalised(values[1], by));
        packed.y = pack<T>(normalised(values[2], by), normalised(values[3], by));
        *reinterpret_cast<uint2*>(to) = packed;
    }
}

// Called by each of the `sharers` blocks of a tile and head when its partial rows are written: the last one merges.
// Where there is much to merge, the others wait a while and take rows too; no block depends on another's doing so.
// Whoever merges a row does it in the same order. `counters`: arrived, rows taken, left; zero before and after.
template <typename T, int D>
__device__ void merge_together(const float* partials, unsigned* counters, int sharers, int active, int count, T* out,
                               int64_t out_stride, int group) {
    constexpr int MUCH = 192, ROWS = THREADS / (D / 4);
    constexpr long long PATIENCE = 100000;  // cycles
    __shared__ int turn;
    const int64_t between = static_cast<int64_t>(gridDim.y) * count * PARTIAL<D>;
    const bool much = count * active >= MUCH;
    const unsigned all = static_cast<unsigned>(sharers);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        bool complete = atomicAdd(counters, 1u) == all - 1;
        if (much) {
            const long long start = clock64();
            while (!complete && clock64() - start < PATIENCE) {
                __nanosleep(50);
                complete = *static_cast<volatile unsigned*>(counters) == all;
            }
        } else if (complete) {
            *counters = 0;
        }
        __threadfence();
        turn = complete;
    }
    __syncthreads();
    const bool complete = turn;
    if (!much) {
        if (complete) merge_rows<T, D>(partials, between, active, 0, count, out, out_stride, group);
        return;
    }
    while (complete) {
        __syncthreads();
        if (threadIdx.x == 0) turn = static_cast<int>(atomicAdd(counters + 1, 1u));
        __syncthreads();
        const int first = turn * ROWS;
        if (first >= count) break;
        merge_rows<T, D>(partials, between, active, first, min(first + ROWS, count), out, out_stride, group);
    }
    if (threadIdx.x == 0 && atomicAdd(counters + 2, 1u) == all - 1)
        counters[0] = counters[1] = counters[2] = 0;
}

// Blocks of a cluster that share a tile and head with one split each tell each other through their shared memory: a
// way through memory takes microseconds where other kernels' weights stream.
constexpr int CLUSTER = 8;  // at most

__device__ __forceinline__ int cluster_blocks() {
#if __CUDA_ARCH__ >= 900
    int blocks;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
    return blocks;
#else
    return 1;
#endif
}

__device__ __forceinline__ float4 load_from_block(const float* own, int block) {
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#if __CUDA_ARCH__ >= 900
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(block));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(address)
                 : "memory");
#endif
    return value;
}

// The first `sharers` blocks of a cluster have their `count` partial rows at `own`. In the order of merge_rows.
template <typename T, int D>
__device__ __forceinline__ void merge_in_cluster(const float* own, int sharers, int count, T* out, int64_t out_stride, int group) {
    constexpr int PIECES = D / 4;
    cluster_sync();
    for (int c = blockIdx.x * THREADS + threadIdx.x; c < count * PIECES; c += sharers * THREADS) {
        const int row = c / PIECES, piece = c % PIECES;
        float4 fresh[CLUSTER], state[CLUSTER];
#pragma unroll
        for (int i = 0; i < CLUSTER; ++i) {
            if (i >= sharers) continue;
            fresh[i] = load_from_block(own + row * PARTIAL<D> + 4 * piece, i);
            state[i] = load_from_block(own + row * PARTIAL<D> + D, i);
        }
        float most = -INFINITY, sum = 0.0f, values[4] = {};
#pragma unroll
        for (int i = 0; i < CLUSTER; ++i) {
            if (i >= sharers) continue;
            const Factors by = merge(most, sum, state[i].x, state[i].y);
            values[0] = merged(values[0], fresh[i].x, by);
            values[1] = merged(values[1], fresh[i].y, by);
            values[2] = merged(values[2], fresh[i].z, by);
            values[3] = merged(values[3], fresh[i].w, by);
        }
        const float by = normaliser(sum);
        uint2 packed;
        packed.x = pack<T>(normalised(values[0], by), normalised(values[1], by));
        packed.y = pack<T>(normalised(values[2], by), normalised(values[3], by));
        *reinterpret_cast<uint2*>(out + row / group * out_stride + row % group * D + 4 * piece) = packed;
    }
    // Nobody's memory goes before all have read it.
    cluster_sync();
}
