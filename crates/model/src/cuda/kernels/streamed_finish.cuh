// How tiles of streamed products (streamed.cu) end: what clusters share is added, and what the product is for is done.
#pragma once

#include "streamed_plan.cuh"

#if __CUDA_ARCH__ >= 900

// The compiler must not load for the next pass here: registers are what sums need.
__device__ __forceinline__ void a_pass_at_a_time() { asm volatile("" ::: "memory"); }

// Which sums of a tile a thread has. They are kept as the products leave them: group g of a tile has rows 8 g .. 8 g + 7; a
// thread's four are of `output` and the eighth behind it, for the row at `column` and the next.
struct Lane {
    int half;            // warpgroup
    int output, column;  // of the warpgroup's
    bool odd;            // every second output

    __device__ Lane()
        : half(threadIdx.x / 128), output(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4), column(2 * (threadIdx.x % 4)),
          odd(threadIdx.x / 4 % 2) {}

    __device__ int row(int group) const { return 8 * group + column; }
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

// And of which tile they are.
struct Place : Lane {
    int tile, block;

    __device__ Place(int tile, int block) : tile(tile), block(block) {}

    // The first output of `each` a block.
    __device__ int first(int each) const { return (CLUSTER * tile + block) * each; }
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

#endif
