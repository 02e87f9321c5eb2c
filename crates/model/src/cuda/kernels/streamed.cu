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

// The compiler must not load for the next pass here: registers are what sums need.
__device__ __forceinline__ void a_pass_at_a_time() { asm volatile("" ::: "memory"); }

// What a thread knows of a tile whose sums are being finished. Sums are kept as the products leave them: group g of a tile
// has rows 8 g .. 8 g + 7; a thread's four are of `output` and the eighth behind it, for the row at `column` and the next.
struct Place {
    int tile, block;
    int half;            // warpgroup
    int output, column;  // of the warpgroup's
    bool odd;            // every second output

    __device__ Place(int tile, int block)
        : tile(tile), block(block), half(threadIdx.x / 128), output(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4),
          column(2 * (threadIdx.x % 4)), odd(threadIdx.x / 4 % 2) {}

    __device__ int row(int group) const { return 8 * group + column; }
    // The first output of `each` a block.
    __device__ int first(int each) const { return (CLUSTER * tile + block) * each; }
    // Of two outputs beside each other and two rows a thread has one output each; it gets both of one row.
    __device__ __nv_bfloat162 pair(float first_row, float second_row) const {
        const float other = __shfl_xor_sync(0xffffffffu, odd ? first_row : second_row, 4);
        return odd ? __floats2bfloat162_rn(other, second_row) : __floats2bfloat162_rn(first_row, other);
    }
    // Four values of a group as BF16, to `to` + row * width + output.
    __device__ void store(bf16* to, int group, int rows, int width, const float (&v)[4]) const {
        const __nv_bfloat162 low = pair(v[0], v[1]), high = pair(v[2], v[3]);
        const int own = row(group) + odd;
        if (own >= rows) return;
        to += static_cast<int64_t>(own) * width + (output & ~1);
        *reinterpret_cast<__nv_bfloat162*>(to) = low;
        *reinterpret_cast<__nv_bfloat162*>(to + 8) = high;
    }
};

// Does what the product is for with the sums `v` of groups g .. min(g + T, end); `x` is what they are added to (Add). All
// threads that multiply call it.
template <int N, End END, int T>
__device__ __forceinline__ void finish(const Args& of, const Place& place, const float* v, const float* x, int g, int end,
                                       unsigned char* shared) {
    const float* const scales = reinterpret_cast<const float*>(shared + Plan<N>::SCALES);
    if constexpr (END == End::Add) {
        // [WARPS][N]
        float* const squares = reinterpret_cast<float*>(shared + Plan<N>::BETWEEN) + threadIdx.x / 32 * N;
        const int output = place.first(TILE) + place.half * HALF + place.output;
        const float by[2] = {of.norm ? __ldg(of.norm + output) : 0.0f, of.norm ? __ldg(of.norm + output + 8) : 0.0f};
#pragma unroll
        for (int i = 0; i < T; ++i) {
            if (g + i >= end) continue;
            const int row = place.row(g + i);
            float* const to = of.x + static_cast<int64_t>(row) * of.outputs + output;
            float sum[4], normed[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                sum[e] = x[4 * i + e] + v[4 * i + e];
                if (row + e % 2 < of.rows) to[e % 2 * of.outputs + e / 2 * 8] = sum[e];
                normed[e] = sum[e] * by[e / 2];
            }
            if (!of.norm) continue;
            place.store(of.normed + output - place.output, g + i, of.rows, of.outputs, normed);
            // Said exactly: the same bits wherever this is inlined.
            float first = __fmaf_rn(sum[2], sum[2], __fmul_rn(sum[0], sum[0]));
            float second = __fmaf_rn(sum[3], sum[3], __fmul_rn(sum[1], sum[1]));
#pragma unroll
            for (int offset = 4; offset < 32; offset <<= 1) {
                first += __shfl_xor_sync(0xffffffffu, first, offset);
                second += __shfl_xor_sync(0xffffffffu, second, offset);
            }
            if (threadIdx.x % 32 < 4) *reinterpret_cast<float2*>(squares + row) = make_float2(first, second);
        }
    } else if constexpr (END == End::Gate) {
        // The first warpgroup has gates and finishes the first half of the groups, the second up sums and the other half.
        constexpr int H = T / 2;
        float4* const between = reinterpret_cast<float4*>(shared + Plan<N>::BETWEEN) + threadIdx.x % 128;
        auto mine = [&](int i, int e) { return place.half ? v[4 * (i + H) + e] : v[4 * i + e]; };
        auto others = [&](int i, int e) { return place.half ? v[4 * i + e] : v[4 * (i + H) + e]; };
#pragma unroll
        for (int i = 0; i < H; ++i)
            between[(place.half * H + i) * 128] = make_float4(others(i, 0), others(i, 1), others(i, 2), others(i, 3));
        multiplying_sync();
#pragma unroll
        for (int i = 0; i < H; ++i) {
            const int group = g + place.half * H + i;
            if (group >= end) continue;
            const float4 got = between[((1 - place.half) * H + i) * 128];
            const float4 own = make_float4(mine(i, 0), mine(i, 1), mine(i, 2), mine(i, 3));
            const float4 gate = place.half ? got : own, up = place.half ? own : got;
            const float2 scale = *reinterpret_cast<const float2*>(scales + place.row(group));
            auto gated = [](float gate, float up, float scale) {
                const float x = gate * scale;
                return __fdividef(x, 1.0f + __expf(-x)) * (up * scale);
            };
            const float y[4] = {gated(gate.x, up.x, scale.x), gated(gate.y, up.y, scale.y), gated(gate.z, up.z, scale.x),
                                gated(gate.w, up.w, scale.y)};
            place.store(of.out + place.first(HALF), group, of.rows, of.outputs, y);
        }
    } else {
#pragma unroll
        for (int i = 0; i < T; ++i) {
            if (g + i >= end) continue;
            const float2 scale = *reinterpret_cast<const float2*>(scales + place.row(g + i));
            const float y[4] = {v[4 * i] * scale.x, v[4 * i + 1] * scale.y, v[4 * i + 2] * scale.x, v[4 * i + 3] * scale.y};
            place.store(of.out + place.first(TILE) + place.half * HALF, g + i, of.rows, of.outputs, y);
        }
    }
}

// What the sums of groups g .. min(g + T, end) are added to.
template <End END, int T>
__device__ __forceinline__ void load_residual(const Args& of, const Place& place, float* x, int g, int end) {
    if constexpr (END == End::Add) {
        const float* const from = of.x + place.first(TILE) + place.half * HALF + place.output;
#pragma unroll
        for (int i = 0; i < T; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = place.row(g + i) + e % 2;
                const bool there = g + i < end && row < of.rows;
                x[4 * i + e] = there ? __ldcg(from + static_cast<int64_t>(row) * of.outputs + e / 2 * 8) : 0.0f;
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
        of.squares[place.first(1) * MOST_ROWS + row] = sum;
    }
}

template <int N, End END>
__device__ __forceinline__ void finish_all(const Args& of, const Place& place, const float* sums, unsigned char* shared) {
    constexpr int T = END == End::Add ? 2 : N / 8;
    // What is between warps may still be read.
    multiplying_sync();
#pragma unroll
    for (int g = 0; g < N / 8; g += T) {
        float x[4 * T];
        load_residual<END, T>(of, place, x, g, N / 8);
        finish<N, END, T>(of, place, sums + 4 * g, x, g, N / 8, shared);
        a_pass_at_a_time();
    }
    finish_squares<N, END>(of, place, 0, N / 8, shared);
}

__device__ __forceinline__ unsigned arrive(unsigned* state, unsigned by) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(state), "r"(by) : "memory");
    return before + by;
}

__device__ __forceinline__ unsigned look(const unsigned* state) {
    unsigned now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(state) : "memory");
    return now;
}

// Sums that a warp has read and nobody needs again: they need not go to memory when others take their place in the cache.
__device__ __forceinline__ void forget(const float4* read) {
    __syncwarp();
    if (threadIdx.x % 8 == 0) asm volatile("discard.global.L2 [%0], 128;" ::"l"(read) : "memory");
}

// A tile whose k several clusters share: each block of one has sums of its part. Their blocks arrive at a state in memory:
// its low byte counts them, bit 8 + i says that the i-th does not wait for the others. Those that have nothing else to do wait
// a while; when all have arrived, those that still wait finish a part of the rows each, or the last one all. Sums are added in
// the order of k whoever does it, and nobody waits for a block that may not run.
template <int N, End END>
__device__ __forceinline__ void finish_shared(const Args& of, const Place& place, float* sums, bool is_second, bool idle,
                                              unsigned char* shared) {
    constexpr int T = N / 8 < 4 ? N / 8 : 4, AT_ONCE = 4, SLOT = N / 8 * MULTIPLYING;
    constexpr unsigned ARRIVED = 255;
    constexpr long long PATIENCE = 100000;  // cycles
    // `earlier` is asked of a cluster's last tile only: no warp still reads it.
    __shared__ unsigned found, earlier;
    const int cluster = blockIdx.x / CLUSTER;
    const int first = place.tile * of.chunks / of.share;
    const int clusters = ((place.tile + 1) * of.chunks - 1) / of.share - first + 1, own = cluster - first;
    unsigned* const state = of.counters + 2 * place.first(1);
    const unsigned absent = 256u << own;
    // A tile is the first or the second that a cluster has a part of.
    const bool begins_second = first * of.share < place.tile * of.chunks;
    auto slot = [&](int cluster, bool second) {
        return reinterpret_cast<float4*>(of.partials) + ((cluster * CLUSTER + place.block) * 2 + second) * SLOT + threadIdx.x;
    };
    auto slot_of = [&](int i) { return slot(first + i, i == 0 && begins_second); };

    // Mostly a tile's second part is long done when the first is: then it is added at once.
    if (clusters == 2 && own == 0) {
        if (threadIdx.x == 0) earlier = look(state);
        multiplying_sync();
        if (earlier == (1u | 512u)) {
            const float4* const from = slot_of(1);
#pragma unroll
            for (int g = 0; g < N / 8; g += 2) {
                float4 more[2];
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    if (8 * (g + i) < of.rows) more[i] = __ldcg(from + (g + i) * MULTIPLYING);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (8 * (g + i) >= of.rows) continue;
                    sums[4 * (g + i)] += more[i].x;
                    sums[4 * (g + i) + 1] += more[i].y;
                    sums[4 * (g + i) + 2] += more[i].z;
                    sums[4 * (g + i) + 3] += more[i].w;
                    forget(from + (g + i) * MULTIPLYING);
                }
                a_pass_at_a_time();
            }
            finish_all<N, END>(of, place, sums, shared);
            if (threadIdx.x == 0) *state = 0;
            return;
        }
    }

    float4* const to = slot(cluster, is_second);
#pragma unroll
    for (int g = 0; g < N / 8; ++g)
        if (8 * g < of.rows) to[g * MULTIPLYING] = make_float4(sums[4 * g], sums[4 * g + 1], sums[4 * g + 2], sums[4 * g + 3]);
    multiplying_sync();
    if (threadIdx.x == 0) {
        auto complete = [&](unsigned state) { return (state & ARRIVED) == static_cast<unsigned>(clusters); };
        unsigned now = arrive(state, idle ? 1 : 1 + absent);
        const long long start = clock64();
        while (idle && !complete(now) && clock64() - start < PATIENCE) now = look(state);
        // Whoever stops waiting must say so before all have come.
        while (idle && !complete(now)) {
            const unsigned before = atomicCAS(state, now, now | absent);
            if (before == now) break;
            now = look(state);
        }
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
#pragma unroll 1
    for (int g = begin; g < end; g += T) {
        float v[4 * T], x[4 * T];
        load_residual<END, T>(of, place, x, g, end);
#pragma unroll 1
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
                const bool is_first = i + j == 0;
#pragma unroll
                for (int t = 0; t < T; ++t) {
                    v[4 * t] = is_first ? more[j][t].x : v[4 * t] + more[j][t].x;
                    v[4 * t + 1] = is_first ? more[j][t].y : v[4 * t + 1] + more[j][t].y;
                    v[4 * t + 2] = is_first ? more[j][t].z : v[4 * t + 2] + more[j][t].z;
                    v[4 * t + 3] = is_first ? more[j][t].w : v[4 * t + 3] + more[j][t].w;
                    if (g + t < end) forget(slot_of(i + j) + (g + t) * MULTIPLYING);
                }
            }
        }
        // What lies between is still read.
        if (END == End::Gate && g > begin) multiplying_sync();
        finish<N, END, T>(of, place, v, x, g, end, shared);
    }
    finish_squares<N, END>(of, place, begin, end, shared);
    if (threadIdx.x == 0 && atomicAdd(state + 1, 1u) == static_cast<unsigned>(count - 1)) state[0] = state[1] = 0;
}

// The scales of all rows: 1 / RMS of what they were before the norm's weights.
template <int N> __device__ __forceinline__ void find_scales(const Args& of, unsigned char* shared) {
    constexpr int PIECES = MULTIPLYING / N, TOGETHER = 16;
    float* const scales = reinterpret_cast<float*>(shared + Plan<N>::SCALES);
    float* const pieces = reinterpret_cast<float*>(shared + Plan<N>::BETWEEN);
    const int row = threadIdx.x % N, piece = threadIdx.x / N, parts = of.scale_squares ? of.chunks * CHUNK / TILE : 0;
    float sum = 0.0f;
    for (int start = piece; start < parts; start += PIECES * TOGETHER) {
        float found[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const int part = start + i * PIECES;
            found[i] = part < parts ? __ldcg(of.scale_squares + part * MOST_ROWS + row) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) sum += found[i];
    }
    pieces[threadIdx.x] = sum;
    multiplying_sync();
    if (threadIdx.x >= N) return;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) sum += pieces[i * N + row];
    scales[row] = parts ? rsqrtf(sum / (of.chunks * CHUNK) + of.epsilon) : 1.0f;
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
            barrier_wait(base + P::FULL + stage * 8, parity);
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
