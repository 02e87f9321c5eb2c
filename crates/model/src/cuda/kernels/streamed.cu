// Products of the rows of a decode batch, up to 128, at the speed of memory: y = x W^T.
//
// Weights are the left matrix of the tensor cores' products and rows the right one, so that few rows cost little. A cluster of
// two blocks takes tiles of 256 outputs, 128 a block; of the rows, which both need, each copies half to both. A block's ninth
// warp copies into a ring of shared memory, weights even before the kernel in front has ended; two warpgroups multiply.
//
// The k of all tiles, one tile behind the other, are cut into equal shares, one a cluster (stream-K: Osama et al. 2023,
// "Stream-K: Work-centric parallel decomposition"). Sums of a tile that several share go through memory and are added in the
// order of k by whoever comes last: a row's bits are the same in every run.
//
// Norms, as in persistent.cu: a product that ends in the residual stream also leaves x * weight of the norm that follows,
// rounded, and sums of squares of every 128 outputs; the next product multiplies its sums by the rows' scale at the end.
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
    float* partials;     // [blocks][2][rows of the kernel][TILE]
    unsigned* counters;  // [tiles][CLUSTER][4]: arrived, rows taken, left; zero before and after
};

#if __CUDA_ARCH__ >= 900

constexpr int HALF = 64;  // outputs of a warpgroup
constexpr int TILE = 2 * HALF;
constexpr int CHUNK = 64;  // k of a stage: the 128 bytes of a swizzled row
constexpr int CLUSTER = 2;
constexpr int MOST_ROWS = 128;
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
    // Up sums on their way to the warpgroup that has the gates.
    static constexpr int UP = STAGES * STAGE;
    static constexpr int SCALES = UP + HALF * N * 4;
    static constexpr int FULL = SCALES + N * 4;
    static constexpr int EMPTY = FULL + STAGES * 8;
    static constexpr int BYTES = EMPTY + STAGES * 8;
    static_assert(BYTES + 1024 <= 226 << 10, "shared memory: streamed.rs");
    // Rows that a block merges at a time.
    static constexpr int MERGED = N / 8 < 8 ? 8 : N / 8;
};

__device__ __forceinline__ void multiplying_sync() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING) : "memory"); }

// One lane copies.
template <int N, End END>
__device__ __forceinline__ void copy(const TensorMap& weights, const TensorMap& rows, const Args& of, uint32_t base, int block) {
    using P = Plan<N>;
    uint64_t policy;
    // Weights are read once in a step and must not drive keys, values and rows out of the cache.
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    auto copy_weights = [&](int stage, int tile, int k) {
        const uint32_t to = base + stage * P::STAGE, full = base + P::FULL + stage * 8;
        const int output = (CLUSTER * tile + block) * (END == End::Gate ? HALF : TILE);
        const int other = output + (END == End::Gate ? of.outputs : HALF);
        barrier_expect(full, P::STAGE);
        copy_tile(to, weights, k * CHUNK, output, full, policy);
        copy_tile(to + P::WEIGHTS / 2, weights, k * CHUNK, other, full, policy);
    };
    auto copy_rows = [&](int stage, int k) {
        const uint32_t to = base + stage * P::STAGE + P::WEIGHTS + block * (P::ROWS / CLUSTER);
        copy_tile_to_all(to, rows, k * CHUNK, block * (N / CLUSTER), base + P::FULL + stage * 8, (1 << CLUSTER) - 1);
    };
    auto each = [&](auto&& body) {
        int count = 0;
        for (Walk walk(of, blockIdx.x / CLUSTER); !walk.done(); walk.next())
            for (int k = walk.first(); k < walk.last(); ++k)
                if (!body(count++, walk.tile(), k)) return;
    };
    each([&](int i, int tile, int k) {
        if (i < P::STAGES) copy_weights(i, tile, k);
        return i < P::STAGES;
    });
    wait_for_inputs();
    int stage = 0;
    uint32_t parity = 1;
    each([&](int i, int tile, int k) {
        if (i >= P::STAGES) {
            barrier_wait(base + P::EMPTY + stage * 8, parity);
            copy_weights(stage, tile, k);
        }
        copy_rows(stage, k);
        if (++stage == P::STAGES) {
            stage = 0;
            parity ^= 1;
        }
        return true;
    });
}

// Adds up the sums of one tile and block in the order of k, for rows first..end, and does what the product is for.
template <int N, End END>
__device__ void merge_rows(const Args& of, int tile, int block, int first_cluster, int clusters, int first, int end,
                           const float* scales) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int row = first + warp; row < end; row += WARPS) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (int i = 0; i < clusters; ++i) {
            const int cluster = first_cluster + i;
            // The tile may be the second that the cluster has a share of.
            const int second = cluster * of.share / of.chunks != tile;
            const float* from = of.partials + (static_cast<int64_t>((cluster * CLUSTER + block) * 2 + second) * N + row) * TILE;
            const float4 more = __ldcg(reinterpret_cast<const float4*>(from) + lane);
            sum.x += more.x;
            sum.y += more.y;
            sum.z += more.z;
            sum.w += more.w;
        }
        if constexpr (END == End::Add) {
            const int output = (CLUSTER * tile + block) * TILE + 4 * lane;
            float4* x = reinterpret_cast<float4*>(of.x + static_cast<int64_t>(row) * of.outputs + output);
            float4 value = __ldcg(x);
            value.x += sum.x;
            value.y += sum.y;
            value.z += sum.z;
            value.w += sum.w;
            *x = value;
            if (!of.norm) continue;
            const float4 by = __ldg(reinterpret_cast<const float4*>(of.norm + output));
            __nv_bfloat162 normed[2] = {__floats2bfloat162_rn(value.x * by.x, value.y * by.y),
                                        __floats2bfloat162_rn(value.z * by.z, value.w * by.w)};
            *reinterpret_cast<uint2*>(of.normed + static_cast<int64_t>(row) * of.outputs + output) =
                *reinterpret_cast<uint2*>(normed);
            const float square = warp_sum(value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w);
            if (lane == 0) of.squares[(CLUSTER * tile + block) * MOST_ROWS + row] = square;
            continue;
        }
        const float scale = scales[row];
        sum.x *= scale;
        sum.y *= scale;
        sum.z *= scale;
        sum.w *= scale;
        bf16* to = of.out + static_cast<int64_t>(row) * of.outputs;
        if constexpr (END == End::Gate) {
            to += (CLUSTER * tile + block) * HALF + 4 * lane;
            auto gated = [](float g) { return g * (1.0f / (1.0f + __expf(-g))); };
            sum.x = gated(sum.x) * __shfl_down_sync(0xffffffffu, sum.x, 16);
            sum.y = gated(sum.y) * __shfl_down_sync(0xffffffffu, sum.y, 16);
            sum.z = gated(sum.z) * __shfl_down_sync(0xffffffffu, sum.z, 16);
            sum.w = gated(sum.w) * __shfl_down_sync(0xffffffffu, sum.w, 16);
            if (lane >= 16) continue;
        } else {
            to += (CLUSTER * tile + block) * TILE + 4 * lane;
        }
        __nv_bfloat162 values[2] = {__floats2bfloat162_rn(sum.x, sum.y), __floats2bfloat162_rn(sum.z, sum.w)};
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<uint2*>(values);
    }
}

// Called by each block of a tile when its sums are written: the last one merges. Those that have nothing else to do
// (`idle`) wait a while and take rows too; no block depends on another's doing so. Whoever merges does it in the same order.
template <int N, End END>
__device__ void merge(const Args& of, int tile, int block, bool idle, const float* scales) {
    constexpr long long PATIENCE = 100000;  // cycles
    __shared__ int turn;
    const int first_cluster = tile * of.chunks / of.share;
    const int clusters = ((tile + 1) * of.chunks - 1) / of.share - first_cluster + 1;
    unsigned* const counters = of.counters + 4 * (CLUSTER * tile + block);
    __threadfence();
    multiplying_sync();
    if (threadIdx.x == 0) {
        bool complete = atomicAdd(counters, 1u) == clusters - 1;
        const long long start = clock64();
        while (idle && !complete && clock64() - start < PATIENCE)
            complete = *static_cast<volatile unsigned*>(counters) == clusters;
        __threadfence();
        turn = complete;
    }
    multiplying_sync();
    const bool complete = turn;
    while (complete) {
        multiplying_sync();
        if (threadIdx.x == 0) turn = static_cast<int>(atomicAdd(counters + 1, 1u));
        multiplying_sync();
        const int first = turn * Plan<N>::MERGED;
        if (first >= of.rows) break;
        merge_rows<N, END>(of, tile, block, first_cluster, clusters, first, min(first + Plan<N>::MERGED, of.rows), scales);
    }
    if (threadIdx.x == 0 && atomicAdd(counters + 2, 1u) == clusters - 1) counters[0] = counters[1] = counters[2] = 0;
}

template <int N, End END>
__device__ __forceinline__ void multiply(const Args& of, uint32_t base, unsigned char* shared, int block) {
    using P = Plan<N>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
    const int output = 16 * (warp % 4) + lane / 4, column = 2 * (lane % 4);  // of a warpgroup's sums
    float* const scales = reinterpret_cast<float*>(shared + P::SCALES);
    float* const up = reinterpret_cast<float*>(shared + P::UP) + threadIdx.x % 128;
    wait_for_inputs();
    for (int row = threadIdx.x; row < N; row += MULTIPLYING) {
        float squares = 0.0f;
        const int parts = of.scale_squares ? of.chunks * CHUNK / TILE : 0;
#pragma unroll 8
        for (int i = 0; i < parts; ++i) squares += __ldcg(of.scale_squares + i * MOST_ROWS + row);
        scales[row] = parts ? rsqrtf(squares / (of.chunks * CHUNK) + of.epsilon) : 1.0f;
    }
    multiplying_sync();
    auto leave = [&](int stage) {
        if (lane < CLUSTER) barrier_arrive(base + P::EMPTY + stage * 8, lane);
    };
    int stage = 0;
    uint32_t parity = 0;
    bool is_second = false;
    for (Walk walk(of, blockIdx.x / CLUSTER); !walk.done(); walk.next(), is_second = true) {
        float sums[N / 2] = {};
        int before = -1;
        for (int k = walk.first(); k < walk.last(); ++k) {
            barrier_wait(base + P::FULL + stage * 8, parity);
            const uint64_t left = swizzled_tile(base + stage * P::STAGE + group * (P::WEIGHTS / 2));
            const uint64_t right = swizzled_tile(base + stage * P::STAGE + P::WEIGHTS);
            products_begin();
#pragma unroll
            for (int step = 0; step < CHUNK / 16; ++step)
                Product64<N>::add(sums, left + step * NEXT_16, right + step * NEXT_16, 1);
            products_commit();
            products_wait<1>();
            if (before >= 0) leave(before);
            before = stage;
            if (++stage == P::STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        products_wait<0>();
        leave(before);

        const int tile = walk.tile();
        if (END == End::Add || walk.first() != 0 || walk.last() != walk.chunks) {
            float* const to = of.partials + static_cast<int64_t>(blockIdx.x * 2 + is_second) * N * TILE + group * HALF + output;
#pragma unroll
            for (int i = 0; i < N / 8; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = 8 * i + column + e % 2;
                    if (row < of.rows) to[row * TILE + e / 2 * 8] = sums[4 * i + e];
                }
            merge<N, END>(of, tile, block, walk.is_last(), scales);
            continue;
        }
        // The whole tile is this block's.
        if constexpr (END == End::Gate) {
            multiplying_sync();
            if (group == 1)
#pragma unroll
                for (int i = 0; i < N / 2; ++i) up[i * 128] = sums[i];
            multiplying_sync();
            if (group == 1) continue;
            bf16* const to = of.out + (CLUSTER * tile + block) * HALF + output;
#pragma unroll
            for (int i = 0; i < N / 2; ++i) {
                const int row = i / 4 * 8 + column + i % 2;
                if (row >= of.rows) continue;
                const float scale = scales[row], g = sums[i] * scale;
                to[static_cast<int64_t>(row) * of.outputs + i % 4 / 2 * 8] =
                    __float2bfloat16_rn(g * (1.0f / (1.0f + __expf(-g))) * (up[i * 128] * scale));
            }
        } else if constexpr (END == End::Store) {
            bf16* const to = of.out + (CLUSTER * tile + block) * TILE + group * HALF + output;
#pragma unroll
            for (int i = 0; i < N / 2; ++i) {
                const int row = i / 4 * 8 + column + i % 2;
                if (row < of.rows)
                    to[static_cast<int64_t>(row) * of.outputs + i % 4 / 2 * 8] = __float2bfloat16_rn(sums[i] * scales[row]);
            }
        }
    }
}

template <int N, End END>
__device__ __forceinline__ void streamed(const TensorMap& weights, const TensorMap& rows, const Args& of) {
    using P = Plan<N>;
    extern __shared__ unsigned char raw[];
    // Swizzled tiles begin at multiples of 1 KiB; at the same address in both blocks.
    unsigned char* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
    const uint32_t base = shared_address(shared);
    const int warp = threadIdx.x / 32, block = blockIdx.x % CLUSTER;
    launch_dependents();
    if (threadIdx.x == 0) {
        for (int i = 0; i < P::STAGES; ++i) {
            barrier_init(base + P::FULL + i * 8, 1);
            barrier_init(base + P::EMPTY + i * 8, CLUSTER * WARPS);
        }
        barriers_made();
    }
    cluster_sync();
    if (warp == WARPS) {
        if (threadIdx.x % 32 == 0) copy<N, END>(weights, rows, of, base, block);
        __syncwarp();
    } else {
        multiply<N, END>(of, base, shared, block);
        __syncwarp();
    }
    // The other block still writes to this one's memory.
    cluster_sync();
}

#endif

#define EXPORT_ONE(NAME, N, END)                                                                                     \
    extern "C" __global__ void __launch_bounds__(MULTIPLYING + 32, 1) NAME(                                          \
        const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, int chunks, int tiles,       \
        int share, int rows, int outputs, bf16* out, float* residual, const float* norm, bf16* normed,               \
        float* squares, const float* scale_squares, float epsilon, float* partials, unsigned* counters) {            \
        BODY(N, END)                                                                                                 \
    }

#if __CUDA_ARCH__ >= 900
#define BODY(N, END)                                                                                                 \
    streamed<N, END>(weights, x, {chunks, tiles, share, rows, outputs, out, residual, norm, normed, squares,         \
                                  scale_squares, epsilon, partials, counters});
#else
#define BODY(N, END)
#endif

#define EXPORT(N)                                                                                                    \
    EXPORT_ONE(streamed_store_##N, N, End::Store)                                                                    \
    EXPORT_ONE(streamed_gate_##N, N, End::Gate)                                                                      \
    EXPORT_ONE(streamed_add_##N, N, End::Add)

EXPORT(16)
EXPORT(32)
EXPORT(64)
EXPORT(128)
