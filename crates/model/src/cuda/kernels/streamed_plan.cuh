// Products that stream weights (streamed.cu): what their parts share, and how work is cut.
#pragma once

#include "warpgroup.cuh"

constexpr int WARPS = 8;  // that multiply
constexpr int MULTIPLYING = WARPS * 32;

enum class End {
    Store,  // out = y
    Gate,   // out = silu(first half of y) * second half
    Add,    // x += y
};

struct Args {
    int chunks;  // of 64 k: of the inputs
    int tiles;   // of a cluster
    int share;   // chunks of a cluster
    int rows;
    int outputs;  // of a row of `out` or `x`
    bf16* out;
    float* x;
    const float* norm;  // of the next half of the layer; null: there is none
    bf16* normed;
    float* squares;               // [outputs / TILE][MOST_ROWS]; written by Add
    const float* scale_squares;   // [inputs / TILE][MOST_ROWS]; null: rows are normed
    float epsilon;
    float* partials;    // [blocks][2][the kernel's rows / 8][MULTIPLYING][4]
    unsigned* counters;  // [tiles][CLUSTER][2]; see finish_shared(); zero before and after
};

#if __CUDA_ARCH__ >= 900

constexpr int HALF = 64;  // outputs of a warpgroup
constexpr int TILE = 2 * HALF;
constexpr int CHUNK = 64;  // k of a stage: the 128 bytes of a swizzled row
constexpr int CLUSTER = 2;
constexpr int MOST_ROWS = 64;
constexpr int RING = 192 << 10;

// The chunks of a cluster, tile by tile.
struct Walk {
    int chunks, at, end;

    __device__ Walk(const Args& of, int cluster)
        : chunks(of.chunks), at(cluster * of.share), end(min(at + of.share, of.tiles * of.chunks)) {}
    __device__ bool done() const { return at >= end; }
    __device__ int tile() const { return at / chunks; }
    __device__ int first() const { return at % chunks; }
    __device__ int last() const { return min(chunks, first() + end - at); }  // exclusive
    __device__ bool is_last() const { return at + last() - first() >= end; }
    __device__ void next() { at += last() - first(); }
};

template <int N> struct Plan {
    static constexpr int WEIGHTS = TILE * CHUNK * 2, ROWS = N * CHUNK * 2;
    static constexpr int STAGE = WEIGHTS + ROWS;
    static constexpr int STAGES = RING / STAGE;
    // What warps tell each other of a tile: gates and up sums, sums of squares.
    static constexpr int BETWEEN = STAGES * STAGE;
    static constexpr int SCALES = BETWEEN + HALF * N * 4;
    static constexpr int FULL = SCALES + N * 4;
    static constexpr int EMPTY = FULL + STAGES * 8;
    static constexpr int BYTES = EMPTY + STAGES * 8;
    static_assert(BYTES + 1024 <= 226 << 10, "shared memory: streamed.rs");
};

__device__ __forceinline__ void multiplying_sync() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING) : "memory"); }

#endif
