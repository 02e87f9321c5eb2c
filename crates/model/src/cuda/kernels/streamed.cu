// Products of the rows of a decode batch, up to 128, at the speed of memory: y = x W^T.
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
    // What warps tell each other of a tile: up sums to those that have the gates, sums of squares.
    static constexpr int BETWEEN = STAGES * STAGE;
    static constexpr int SCALES = BETWEEN + HALF * N * 4;
    static constexpr int FULL = SCALES + N * 4;
    static constexpr int EMPTY = FULL + STAGES * 8;
    static constexpr int BYTES = EMPTY + STAGES * 8;
    static_assert(BYTES + 1024 <= 226 << 10, "shared memory: streamed.rs");
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

// What a thread knows of a tile whose sums are being finished. Sums are kept as the products leave them: group g of a tile
// has rows 8 g .. 8 g + 7; a thread's four are of `output` and the eighth behind it, for the row at `column` and the next.
struct Place {
    int tile, block;
    int warp, lane, group;   // group: of warps
    int output, column;      // of the warpgroup's
    bool odd;                // every second output

    __device__ Place(int tile, int block)
        : tile(tile), block(block), warp(threadIdx.x / 32), lane(threadIdx.x % 32), group(warp / 4),
          output(16 * (warp % 4) + lane / 4), column(2 * (lane % 4)), odd(lane / 4 % 2) {}

    // Of two outputs beside each other and two rows each thread gets one row.
    __device__ __nv_bfloat162 pair(float first_row, float second_row) const {
        const float other = __shfl_xor_sync(0xffffffffu, odd ? first_row : second_row, 4);
        return odd ? __floats2bfloat162_rn(other, second_row) : __floats2bfloat162_rn(first_row, other);
    }
};

// Groups that are finished together.
template <int N> constexpr int TOGETHER = 2;

// Does what the product is for with the sums of groups g .. min(g + TOGETHER, end). All threads that multiply call it.
template <int N, End END>
__device__ __forceinline__ void finish(const Args& of, const Place& place, float (&v)[TOGETHER<N>][4], int g, int end,
                                       unsigned char* shared) {
    constexpr int T = TOGETHER<N>;
    const float* const scales = reinterpret_cast<const float*>(shared + Plan<N>::SCALES);
    auto row_of = [&](int i) { return 8 * (g + i) + place.column; };
    if constexpr (END == End::Add) {
        // [WARPS][N]
        float* const squares = reinterpret_cast<float*>(shared + Plan<N>::BETWEEN);
        const int output = (CLUSTER * place.tile + place.block) * TILE + place.group * HALF + place.output;
        auto at = [&](int i, int e) { return static_cast<int64_t>(row_of(i) + e % 2) * of.outputs + output + e / 2 * 8; };
        auto there = [&](int i, int e) { return g + i < end && row_of(i) + e % 2 < of.rows; };
        float x[T][4];
#pragma unroll
        for (int i = 0; i < T; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) x[i][e] = there(i, e) ? __ldcg(of.x + at(i, e)) : 0.0f;
        const float by[2] = {of.norm ? __ldg(of.norm + output) : 0.0f, of.norm ? __ldg(of.norm + output + 8) : 0.0f};
#pragma unroll
        for (int i = 0; i < T; ++i) {
            if (g + i >= end) continue;
            float normed[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                x[i][e] += v[i][e];
                if (there(i, e)) of.x[at(i, e)] = x[i][e];
                normed[e] = x[i][e] * by[e / 2];
            }
            if (!of.norm) continue;
            const int row = row_of(i) + place.odd;
            bf16* const to = of.normed + static_cast<int64_t>(row) * of.outputs + (output & ~1);
            const __nv_bfloat162 low = place.pair(normed[0], normed[1]), high = place.pair(normed[2], normed[3]);
            if (row < of.rows) {
                *reinterpret_cast<__nv_bfloat162*>(to) = low;
                *reinterpret_cast<__nv_bfloat162*>(to + 8) = high;
            }
            float first = x[i][0] * x[i][0] + x[i][2] * x[i][2], second = x[i][1] * x[i][1] + x[i][3] * x[i][3];
#pragma unroll
            for (int offset = 4; offset < 32; offset <<= 1) {
                first += __shfl_xor_sync(0xffffffffu, first, offset);
                second += __shfl_xor_sync(0xffffffffu, second, offset);
            }
            if (place.lane < 4)
                *reinterpret_cast<float2*>(squares + place.warp * N + row_of(i)) = make_float2(first, second);
        }
    } else if constexpr (END == End::Gate) {
        float4* const up = reinterpret_cast<float4*>(shared + Plan<N>::BETWEEN) + threadIdx.x % 128;
        if (place.group == 1)
#pragma unroll
            for (int i = 0; i < T; ++i)
                if (g + i < end) up[(g + i) * 128] = make_float4(v[i][0], v[i][1], v[i][2], v[i][3]);
        multiplying_sync();
        if (place.group == 1) return;
#pragma unroll
        for (int i = 0; i < T; ++i) {
            if (g + i >= end) continue;
            const float4 u = up[(g + i) * 128];
            const float2 scale = *reinterpret_cast<const float2*>(scales + row_of(i));
            auto gated = [](float gate, float up, float scale) {
                const float x = gate * scale;
                return x / (1.0f + __expf(-x)) * (up * scale);
            };
            const float y[4] = {gated(v[i][0], u.x, scale.x), gated(v[i][1], u.y, scale.y), gated(v[i][2], u.z, scale.x),
                                gated(v[i][3], u.w, scale.y)};
            const __nv_bfloat162 low = place.pair(y[0], y[1]), high = place.pair(y[2], y[3]);
            const int row = row_of(i) + place.odd;
            if (row >= of.rows) continue;
            bf16* const to = of.out + static_cast<int64_t>(row) * of.outputs + (CLUSTER * place.tile + place.block) * HALF +
                             (place.output & ~1);
            *reinterpret_cast<__nv_bfloat162*>(to) = low;
            *reinterpret_cast<__nv_bfloat162*>(to + 8) = high;
        }
    } else {
#pragma unroll
        for (int i = 0; i < T; ++i) {
            if (g + i >= end) continue;
            const float2 scale = *reinterpret_cast<const float2*>(scales + row_of(i));
            const __nv_bfloat162 low = place.pair(v[i][0] * scale.x, v[i][1] * scale.y);
            const __nv_bfloat162 high = place.pair(v[i][2] * scale.x, v[i][3] * scale.y);
            const int row = row_of(i) + place.odd;
            if (row >= of.rows) continue;
            bf16* const to = of.out + static_cast<int64_t>(row) * of.outputs + (CLUSTER * place.tile + place.block) * TILE +
                             place.group * HALF + (place.output & ~1);
            *reinterpret_cast<__nv_bfloat162*>(to) = low;
            *reinterpret_cast<__nv_bfloat162*>(to + 8) = high;
        }
    }
}

// Behind finish(): the sums of squares of groups g .. end.
template <int N, End END>
__device__ __forceinline__ void finish_squares(const Args& of, const Place& place, int g, int end, unsigned char* shared) {
    if (END != End::Add || !of.norm) return;
    const float* const squares = reinterpret_cast<const float*>(shared + Plan<N>::BETWEEN);
    multiplying_sync();
    for (int row = 8 * g + threadIdx.x; row < min(8 * end, of.rows); row += MULTIPLYING) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += squares[w * N + row];
        of.squares[(CLUSTER * place.tile + place.block) * MOST_ROWS + row] = sum;
    }
}

template <int N, End END>
__device__ __forceinline__ void finish_all(const Args& of, const Place& place, const float (&sums)[N / 2],
                                           unsigned char* shared) {
    constexpr int T = TOGETHER<N>;
    // The tile before may still be read.
    multiplying_sync();
#pragma unroll
    for (int g = 0; g < N / 8; g += T) {
        float v[T][4];
#pragma unroll
        for (int i = 0; i < T; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) v[i][e] = sums[4 * (g + i) + e];
        finish<N, END>(of, place, v, g, N / 8, shared);
    }
    finish_squares<N, END>(of, place, 0, N / 8, shared);
}

// A tile whose k several clusters share: each block of one has sums of its part. Their blocks arrive at a state in memory:
// its low byte counts them, bit 8 + i says that the i-th does not wait for the others. Those that have nothing else to do wait
// a while; when all have arrived, those that still wait finish a part of the rows each, or the last one all. Sums are added in
// the order of k whoever does it, and nobody waits for a block that may not run.
template <int N, End END>
__device__ __forceinline__ void finish_shared(const Args& of, const Place& place, float (&sums)[N / 2], bool is_second,
                                              bool idle, unsigned char* shared) {
    constexpr int T = TOGETHER<N>, SLOT = N / 8 * MULTIPLYING;
    constexpr unsigned ARRIVED = 255;
    constexpr long long PATIENCE = 100000;  // cycles
    __shared__ unsigned found;
    const int cluster = blockIdx.x / CLUSTER;
    const int first = place.tile * of.chunks / of.share;
    const int clusters = ((place.tile + 1) * of.chunks - 1) / of.share - first + 1, own = cluster - first;
    unsigned* const state = of.counters + 2 * (CLUSTER * place.tile + place.block);
    const unsigned absent = 256u << own;
    // A tile is the first or the second that a cluster has a part of.
    auto slot = [&](int cluster, bool second) {
        return reinterpret_cast<float4*>(of.partials) + ((cluster * CLUSTER + place.block) * 2 + second) * SLOT + threadIdx.x;
    };
    auto slot_of = [&](int i) { return slot(first + i, (first + i) * of.share / of.chunks != place.tile); };

    // Mostly a tile's second part is long done when the first is: then it is added at once.
    if (clusters == 2 && own == 0) {
        if (threadIdx.x == 0) found = *static_cast<volatile unsigned*>(state);
        multiplying_sync();
        if (found == (1u | 512u)) {
            __threadfence();
            const float4* const from = slot_of(1);
            float4 more[N / 8];
#pragma unroll
            for (int g = 0; g < N / 8; ++g) more[g] = __ldcg(from + g * MULTIPLYING);
#pragma unroll
            for (int g = 0; g < N / 8; ++g) {
                sums[4 * g] += more[g].x;
                sums[4 * g + 1] += more[g].y;
                sums[4 * g + 2] += more[g].z;
                sums[4 * g + 3] += more[g].w;
            }
            finish_all<N, END>(of, place, sums, shared);
            if (threadIdx.x == 0) *state = 0;
            return;
        }
    }

    float4* const to = slot(cluster, is_second);
#pragma unroll
    for (int g = 0; g < N / 8; ++g)
        to[g * MULTIPLYING] = make_float4(sums[4 * g], sums[4 * g + 1], sums[4 * g + 2], sums[4 * g + 3]);
    __threadfence();
    multiplying_sync();
    if (threadIdx.x == 0) {
        auto complete = [&](unsigned state) { return (state & ARRIVED) == static_cast<unsigned>(clusters); };
        const unsigned arrival = idle ? 1 : 1 + absent;
        unsigned now = atomicAdd(state, arrival) + arrival;
        const long long start = clock64();
        while (idle && !complete(now) && clock64() - start < PATIENCE) now = *static_cast<volatile unsigned*>(state);
        // Whoever stops waiting must say so before all have come.
        while (idle && !complete(now)) {
            const unsigned before = atomicCAS(state, now, now | absent);
            if (before == now) break;
            now = before;
        }
        __threadfence();
        found = complete(now) ? now : 0;
    }
    multiplying_sync();
    if (found == 0) return;
    unsigned finishing = ~(found >> 8) & ((1u << clusters) - 1);
    // With nobody waiting only the last one has found the state complete.
    if (finishing == 0) finishing = 1u << own;
    if (!(finishing >> own & 1)) return;
    const int count = __popc(finishing), index = __popc(finishing & ((1u << own) - 1));
    const int groups = (of.rows + 7) / 8, begin = groups * index / count, end = groups * (index + 1) / count;
    for (int g = begin; g < end; g += T) {
        constexpr int AT_ONCE = 4;
        float v[T][4];
        for (int i = 0; i < clusters; i += AT_ONCE) {
            float4 more[AT_ONCE][T];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                if (i + j >= clusters) continue;
                const float4* const from = slot_of(i + j);
#pragma unroll
                for (int t = 0; t < T; ++t)
                    if (g + t < end) more[j][t] = __ldcg(from + (g + t) * MULTIPLYING);
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                if (i + j >= clusters) continue;
#pragma unroll
                for (int t = 0; t < T; ++t) {
                    const bool is_first = i + j == 0;
                    v[t][0] = is_first ? more[j][t].x : v[t][0] + more[j][t].x;
                    v[t][1] = is_first ? more[j][t].y : v[t][1] + more[j][t].y;
                    v[t][2] = is_first ? more[j][t].z : v[t][2] + more[j][t].z;
                    v[t][3] = is_first ? more[j][t].w : v[t][3] + more[j][t].w;
                }
            }
        }
        // What lies between is still read.
        if (g > begin) multiplying_sync();
        finish<N, END>(of, place, v, g, end, shared);
    }
    finish_squares<N, END>(of, place, begin, end, shared);
    if (threadIdx.x == 0 && atomicAdd(state + 1, 1u) == static_cast<unsigned>(count - 1)) state[0] = state[1] = 0;
}

template <int N, End END>
__device__ __forceinline__ void multiply(const Args& of, uint32_t base, unsigned char* shared, int block) {
    using P = Plan<N>;
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
    float* const scales = reinterpret_cast<float*>(shared + P::SCALES);
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
        for (int left = walk.last() - walk.first(); left > 0; --left) {
            barrier_wait(base + P::FULL + stage * 8, parity);
            const uint64_t weights = swizzled_tile(base + stage * P::STAGE + group * (P::WEIGHTS / 2));
            const uint64_t rows = swizzled_tile(base + stage * P::STAGE + P::WEIGHTS);
            products_begin();
#pragma unroll
            for (int step = 0; step < CHUNK / 16; ++step)
                Product64<N>::add(sums, weights + step * NEXT_16, rows + step * NEXT_16, 1);
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
