// Products of 65 to 128 rows with matrices of many outputs: gate and up with SiLU inside, out = silu(x G^T) * x U^T, and an
// output layer, out = x W^T in float.
//
// As in streamed.cu weights are the left matrix of the tensor cores' products, and rows the right one; but no tile is shared. So
// many rows are bound by what goes from the cache to the multiprocessors, and by power: tiles are as large as registers can hold,
// 256 rows of weights a block, and a cluster of four blocks shares its copies of the rows.
#include "streamed_finish.cuh"

#if __CUDA_ARCH__ >= 900

namespace wide {

constexpr int BLOCKS = 4;  // of a cluster
constexpr int ROWS = 128;
constexpr int PART = TILE * CHUNK * 2;  // bytes of a chunk of 128 rows
constexpr int STAGE = 3 * PART;         // the first weights, the second ones, the rows
constexpr int STAGES = RING / STAGE;
constexpr int FULL = STAGES * STAGE, EMPTY = FULL + STAGES * 8;
static_assert(EMPTY + STAGES * 8 + 1024 <= 194 << 10, "shared memory: wide.rs");

struct Args {
    int chunks, tiles;    // of 64 inputs; of a cluster
    int rows, outputs;    // of `out`
    void* out;            // bf16 of a gate, else float
};

// A block's outputs: 128 of a gate, with as many rows of up; else 256.
template <bool GATE> constexpr int EACH = GATE ? TILE : 2 * TILE;

// One lane copies.
template <bool GATE>
__device__ __forceinline__ void copy(const TensorMap& weights, const TensorMap& rows, const Args& of, uint32_t base, int block) {
    uint64_t policy;
    // Weights are read once in a step and must not drive keys, values and rows out of the cache.
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    auto copy_weights = [&](int stage, int tile, int k) {
        const uint32_t to = base + stage * STAGE, full = base + FULL + stage * 8;
        const int output = (BLOCKS * tile + block) * EACH<GATE>;
        barrier_expect(full, STAGE);
        copy_tile(to, weights, k * CHUNK, output, full, policy);
        copy_tile(to + PART, weights, k * CHUNK, output + (GATE ? of.outputs : TILE), full, policy);
    };
    auto copy_rows = [&](int stage, int k) {
        const uint32_t to = base + stage * STAGE + 2 * PART + block * (PART / BLOCKS);
        copy_tile_to_all(to, rows, k * CHUNK, block * (ROWS / BLOCKS), base + FULL + stage * 8, (1 << BLOCKS) - 1);
    };
    const int first = blockIdx.x / BLOCKS, clusters = gridDim.x / BLOCKS, early = min(STAGES, of.chunks);
    for (int k = 0; k < early; ++k) copy_weights(k, first, k);
    wait_for_inputs();
    int stage = 0;
    uint32_t parity = 1;
    for (int tile = first; tile < of.tiles; tile += clusters)
        for (int k = 0; k < of.chunks; ++k) {
            if (tile != first || k >= early) {
                wait_phase(base + EMPTY + stage * 8, parity);
                copy_weights(stage, tile, k);
            }
            copy_rows(stage, k);
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
}

template <bool GATE>
__device__ __forceinline__ void finish(const Args& of, int first, const float (&a)[ROWS / 2], const float (&b)[ROWS / 2]) {
    const Lane lane;
    first += lane.half * HALF;
    if constexpr (GATE) {
        bf16* const to = static_cast<bf16*>(of.out) + first;
#pragma unroll
        for (int g = 0; g < ROWS / 8; ++g) {
            float y[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float x = a[4 * g + e];
                y[e] = __fdividef(x, 1.0f + __expf(-x)) * b[4 * g + e];
            }
            lane.store(to, g, of.rows, of.outputs, y);
        }
    } else {
        float* const to = static_cast<float*>(of.out);
        auto put = [&](int output, const float (&v)[ROWS / 2]) {
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) {
                const int row = lane.row(i / 4) + i % 2, at = output + lane.output + i % 4 / 2 * 8;
                if (row < of.rows && at < of.outputs) to[static_cast<int64_t>(row) * of.outputs + at] = v[i];
            }
        };
        put(first, a);
        put(first + TILE, b);
    }
}

template <bool GATE> __device__ __forceinline__ void multiply(const Args& of, uint32_t base, int block) {
    const int lane = threadIdx.x % 32, half = threadIdx.x / 128;
    wait_for_inputs();
    auto leave = [&](int stage) {
        if (lane < BLOCKS) barrier_arrive(base + EMPTY + stage * 8, lane);
    };
    int stage = 0;
    uint32_t parity = 0;
    for (int tile = blockIdx.x / BLOCKS; tile < of.tiles; tile += gridDim.x / BLOCKS) {
        float a[ROWS / 2] = {}, b[ROWS / 2] = {};
        int before = -1;
        for (int k = 0; k < of.chunks; ++k) {
            wait_phase(base + FULL + stage * 8, parity);
            const uint64_t first = swizzled_tile(base + stage * STAGE + half * (PART / 2));
            const uint64_t second = swizzled_tile(base + stage * STAGE + PART + half * (PART / 2));
            const uint64_t rows = swizzled_tile(base + stage * STAGE + 2 * PART);
            products_begin();
#pragma unroll
            for (int step = 0; step < CHUNK / 16; ++step) {
                Product64<ROWS>::add(a, first + step * NEXT_16, rows + step * NEXT_16);
                Product64<ROWS>::add(b, second + step * NEXT_16, rows + step * NEXT_16);
            }
            products_commit();
            products_wait<1>();
            if (before >= 0) leave(before);
            before = stage;
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        products_wait<0>();
        leave(before);
        finish<GATE>(of, (BLOCKS * tile + block) * EACH<GATE>, a, b);
    }
}

template <bool GATE> __device__ __forceinline__ void product(const TensorMap& weights, const TensorMap& rows, const Args& of) {
    extern __shared__ unsigned char raw[];
    // Swizzled tiles begin at multiples of 1 KiB; at the same address in all blocks.
    const uint32_t base = (shared_address(raw) + 1023) / 1024 * 1024;
    const int block = blockIdx.x % BLOCKS;
    launch_dependents();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(base + FULL + i * 8, 1);
            barrier_init(base + EMPTY + i * 8, BLOCKS * WARPS);
        }
        barriers_made();
    }
    cluster_sync();
    if (threadIdx.x / 32 == WARPS) {
        if (threadIdx.x == MULTIPLYING) copy<GATE>(weights, rows, of, base, block);
    } else {
        multiply<GATE>(of, base, block);
    }
    __syncwarp();
    // The other blocks still write to this one's memory.
    cluster_sync();
}

}  // namespace wide

#define BODY(GATE) wide::product<GATE>(weights, x, {chunks, tiles, rows, outputs, out});
#else
#define BODY(GATE)
#endif

#define EXPORT(NAME, GATE)                                                                                            \
    extern "C" __global__ void __launch_bounds__(MULTIPLYING + 32, 1)                                                 \
        NAME(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, int chunks, int tiles,   \
             int rows, int outputs, void* out) {                                                                      \
        BODY(GATE)                                                                                                    \
    }

EXPORT(wide_gate, true)
EXPORT(wide_store_float, false)
