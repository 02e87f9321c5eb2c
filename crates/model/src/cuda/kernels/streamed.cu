// Products of the rows of a decode batch, up to 64, at the speed of memory: y = x W^T.
//
// Weights are the left matrix of the tensor cores' products and rows the right one, so that few rows cost little. A cluster of
// two blocks takes tiles of 256 outputs, 128 a block; of the rows, which both need, each copies half to both. A block's ninth
// warp copies into a ring of shared memory, weights even before the kernel in front has ended; two warpgroups multiply.
//
// The k of all tiles, one tile behind the other, are cut into equal shares, one a cluster (stream-K: Osama et al. 2023,
// "Stream-K: Work-centric parallel decomposition"). Sums of a tile that several share go through memory and are added in the
// order of k: a row's bits are the same in every run.
//
// Norms, as in persistent.cu: a product that ends in the residual stream also leaves x * weight of the norm that follows,
// rounded, and sums of squares of every 128 outputs; the next product multiplies its sums by the rows' scale at the end.
#include "streamed_finish.cuh"

#if __CUDA_ARCH__ >= 900

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
            wait_phase(base + P::EMPTY + stage * 8, parity);
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

template <int N, End END>
__device__ __forceinline__ void multiply(const Args& of, uint32_t base, unsigned char* shared, int block) {
    using P = Plan<N>;
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
    wait_for_inputs();
    find_scales<N>(of, shared);
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
        for (int left = walk.last() - walk.first(); left > 0; --left) {
            wait_phase(base + P::FULL + stage * 8, parity);
            const uint64_t weights = swizzled_tile(base + stage * P::STAGE + group * (P::WEIGHTS / 2));
            const uint64_t rows = swizzled_tile(base + stage * P::STAGE + P::WEIGHTS);
            products_begin();
#pragma unroll
            for (int step = 0; step < CHUNK / 16; ++step)
                Product64<N>::add(sums, weights + step * NEXT_16, rows + step * NEXT_16);
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
        const Place place(walk.tile(), block);
        if (walk.first() == 0 && walk.last() == walk.chunks)
            finish_all<N, END>(of, place, sums, shared);
        else
            finish_shared<N, END>(of, place, sums, is_second, walk.is_last(), shared);
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
        if (threadIdx.x == MULTIPLYING) copy<N, END>(weights, rows, of, base, block);
    } else {
        multiply<N, END>(of, base, shared, block);
    }
    __syncwarp();
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
