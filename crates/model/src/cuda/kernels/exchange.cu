// The sum of partial results over the GPUs of a model, added to the residual stream, with the RMS norm that follows:
//
//   x += y_0 + y_1 + ... (in the order of ranks, in float: all ranks hold the same bits);  out = norm(x) * weight
//
// Two ways, both over memory that the GPUs write and read of each other (NVLink):
// *push* for few rows: each rank stores its y into the others' mailboxes in words of 16 bytes that carry their own
// flags, (value, epoch, value, epoch): one crossing and no fence, for twice the bytes (NCCL's LL protocol);
// *pull* for many: each rank raises a flag in the others' mailboxes when its y is whole, and reads theirs.
//
// The epoch counts a rank's exchanges in its own memory, so that a replayed graph needs no value of the host; ranks
// make the same exchanges in the same order. A word or a y is written again two exchanges later at the earliest
// (callers alternate between two), and an exchange ends only when all ranks have come to it, so the one before it has
// been read by all. Every wait has a deadline; after it `error` (memory of the host) says who waited, and all later
// exchanges return at once.
#include "common.cuh"

typedef unsigned long long u64;

// At the start of a mailbox.
struct Header {
    unsigned epoch, done, failed, unused;
    unsigned flags[60];  // Of the ranks: the epoch that each has come to.
};
constexpr int EACH = 2;  // Quads of values of a thread.

__device__ __forceinline__ uint4 load_volatile(const void* from) {
    uint4 x;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from) : "memory");
    return x;
}
__device__ __forceinline__ void store_volatile(void* to, unsigned a, unsigned b, unsigned flag) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(flag), "r"(b), "r"(flag)
                 : "memory");
}
__device__ __forceinline__ void raise_flag(unsigned* flag, unsigned value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned see_flag(const unsigned* flag) {
    unsigned value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}
__device__ __forceinline__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// Ends every wait.
struct Patience {
    u64 limit, end;
    unsigned tries;
    bool over;
    __device__ Patience(u64 limit) : limit(limit), end(0), tries(0), over(false) {}
    __device__ bool more() {
        if (over) return false;
        if (++tries % 256 == 0) {
            const u64 now = nanoseconds();
            if (end == 0) end = now + limit;
            over = now > end;
        }
        return !over;
    }
};

__device__ __forceinline__ void give_up(Header* own, unsigned* error, int rank) {
    *(volatile unsigned*)&own->failed = 1;
    *(volatile unsigned*)error = rank + 1;
    __threadfence_system();
}

// The last block to call it counts the exchange; each has read the epoch before.
__device__ __forceinline__ void count(Header* own, unsigned epoch) {
    const unsigned last = gridDim.x * gridDim.y - 1;
    if (atomicInc(&own->done, last) == last) *(volatile unsigned*)&own->epoch = epoch;
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <typename Y> __device__ float4 load_quad(const Y* from);
template <> __device__ __forceinline__ float4 load_quad<float>(const float* from) {
    return __ldcg((const float4*)from);
}
template <> __device__ __forceinline__ float4 load_quad<bf16>(const bf16* from) {
    const uint2 x = __ldcg((const uint2*)from);
    const float2 a = __bfloat1622float2(*(const __nv_bfloat162*)&x.x);
    const float2 b = __bfloat1622float2(*(const __nv_bfloat162*)&x.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
template <> __device__ __forceinline__ float4 load_quad<f16>(const f16* from) {
    const uint2 x = __ldcg((const uint2*)from);
    const float2 a = __half22float2(*(const __half2*)&x.x), b = __half22float2(*(const __half2*)&x.y);
    return make_float4(a.x, a.y, b.x, b.y);
}

// What a thread does with the sums of its quads of a row. Without a norm (`out` null) a row may have several blocks.
template <typename T>
__device__ void finish(float* x, const float4* sums, const float* weight, T* out, int quads, float epsilon,
                       float* scratch) {
    const int first = blockIdx.y * EACH * blockDim.x + threadIdx.x;
    float4 kept[EACH];
    float squares = 0.0f;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int i = first + e * blockDim.x;
        if (i >= quads) continue;
        kept[e] = add(((float4*)x)[i], sums[e]);
        ((float4*)x)[i] = kept[e];
        squares = __fmaf_rn(kept[e].x, kept[e].x, squares);
        squares = __fmaf_rn(kept[e].y, kept[e].y, squares);
        squares = __fmaf_rn(kept[e].z, kept[e].z, squares);
        squares = __fmaf_rn(kept[e].w, kept[e].w, squares);
    }
    if (out == nullptr) return;
    const float scale = rsqrtf(block_sum(squares, scratch) / (4 * quads) + epsilon);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int i = first + e * blockDim.x;
        if (i >= quads) continue;
        const float4 w = ((const float4*)weight)[i];
        out[4 * i] = from_float<T>(kept[e].x * scale * w.x);
        out[4 * i + 1] = from_float<T>(kept[e].y * scale * w.y);
        out[4 * i + 2] = from_float<T>(kept[e].z * scale * w.z);
        out[4 * i + 3] = from_float<T>(kept[e].w * scale * w.w);
    }
}

// mailboxes: addresses by rank. Words of a mailbox behind its header: [slot][source][most rows][hidden / 2].
// Grid (rows, parts of a row).
template <typename T>
__device__ void push(const u64* mailboxes, int rank, int ranks, int slot, int most, const float* y, float* x,
                     const float* weight, T* out, int hidden, float epsilon, u64 limit, unsigned* error) {
    __shared__ float scratch[32];
    launch_dependents();
    Header* own = (Header*)mailboxes[rank];
    wait_for_inputs();
    const uint4 header = load_volatile(own);
    const unsigned epoch = header.x + 1;
    if (header.z) return;
    const int row = blockIdx.x, quads = hidden / 4;
    const int first = blockIdx.y * EACH * blockDim.x + threadIdx.x;
    y += (size_t)row * hidden;
    x += (size_t)row * hidden;
    auto words = [&](int to, int source) {
        const size_t at = ((size_t)(slot * ranks + source) * most + row) * (hidden / 2);
        return (uint4*)(mailboxes[to] + sizeof(Header)) + at;
    };
    float4 mine[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int i = first + e * blockDim.x;
        if (i < quads) mine[e] = load_quad<float>(y + 4 * i);
    }
    for (int to = 0; to < ranks; ++to) {
        if (to == rank) continue;
        uint4* at = words(to, rank);
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int i = first + e * blockDim.x;
            if (i >= quads) continue;
            store_volatile(at + 2 * i, __float_as_uint(mine[e].x), __float_as_uint(mine[e].y), epoch);
            store_volatile(at + 2 * i + 1, __float_as_uint(mine[e].z), __float_as_uint(mine[e].w), epoch);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) count(own, epoch);
    Patience patience(limit);
    float4 sums[EACH];
    for (int from = 0; from < ranks; ++from) {
        const uint4* at = words(rank, from);
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int i = first + e * blockDim.x;
            if (i >= quads) continue;
            float4 theirs = mine[e];
            if (from != rank) {
                uint4 a, b;
                do {
                    a = load_volatile(at + 2 * i);
                    b = load_volatile(at + 2 * i + 1);
                } while ((a.y != epoch || a.w != epoch || b.y != epoch || b.w != epoch) && patience.more());
                theirs = make_float4(__uint_as_float(a.x), __uint_as_float(a.z), __uint_as_float(b.x),
                                     __uint_as_float(b.z));
            }
            sums[e] = from == 0 ? theirs : add(sums[e], theirs);
        }
    }
    if (patience.over) give_up(own, error, rank);
    finish<T>(x, sums, weight, out ? out + (size_t)row * hidden : nullptr, quads, epsilon, scratch);
}

// ys: addresses of the partial results by rank. With one rank: x += y, for sums that NCCL made.
template <typename T, typename Y>
__device__ void pull(const u64* mailboxes, const u64* ys, int rank, int ranks, float* x, const float* weight, T* out,
                     int hidden, float epsilon, u64 limit, unsigned* error) {
    __shared__ float scratch[32];
    __shared__ bool failed;
    launch_dependents();
    Header* own = (Header*)mailboxes[rank];
    wait_for_inputs();
    if (ranks > 1) {
        if (threadIdx.x < 32) {
            const uint4 header = load_volatile(own);
            const unsigned epoch = header.x + 1;
            const int from = threadIdx.x;
            bool over = header.z != 0;
            if (!over && from < ranks && from != rank) {
                // Every block raises it: whichever runs first, nobody waits for blocks that are not yet running.
                raise_flag(&((Header*)mailboxes[from])->flags[rank], epoch);
                Patience patience(limit);
                while ((int)(see_flag(&own->flags[from]) - epoch) < 0 && patience.more()) {}
                if (patience.over) give_up(own, error, rank);
                over = patience.over;
            }
            over = __any_sync(0xffffffffu, over);
            if (threadIdx.x == 0) {
                failed = over;
                if (!over) count(own, epoch);
            }
        }
        __syncthreads();
        if (failed) return;
    }
    const int row = blockIdx.x, quads = hidden / 4;
    const int first = blockIdx.y * EACH * blockDim.x + threadIdx.x;
    auto load = [&](float4* quads_of, int from) {
        const Y* y = (const Y*)ys[from] + (size_t)row * hidden;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int i = first + e * blockDim.x;
            if (i < quads) quads_of[e] = load_quad<Y>(y + 4 * i);
        }
    };
    // The next rank's values are on their way while these are added.
    float4 sums[EACH], theirs[EACH], next[EACH];
    load(next, 0);
    for (int from = 0; from < ranks; ++from) {
#pragma unroll
        for (int e = 0; e < EACH; ++e) theirs[e] = next[e];
        if (from + 1 < ranks) load(next, from + 1);
#pragma unroll
        for (int e = 0; e < EACH; ++e) sums[e] = from == 0 ? theirs[e] : add(sums[e], theirs[e]);
    }
    finish<T>(x + (size_t)row * hidden, sums, weight, out ? out + (size_t)row * hidden : nullptr, quads,
              epsilon, scratch);
}

#define EXPORT(S, T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        exchange_push_##S(const u64* mailboxes, int rank, int ranks, int slot, int most, const float* y, float* x,    \
                          const float* weight, T* out, int hidden, float epsilon, u64 limit, unsigned* error) {       \
        push<T>(mailboxes, rank, ranks, slot, most, y, x, weight, out, hidden, epsilon, limit, error);                \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        exchange_pull_##S(const u64* mailboxes, const u64* ys, int rank, int ranks, float* x, const float* weight,    \
                          T* out, int hidden, float epsilon, u64 limit, unsigned* error) {                            \
        pull<T, T>(mailboxes, ys, rank, ranks, x, weight, out, hidden, epsilon, limit, error);                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        exchange_pull_float_##S(const u64* mailboxes, const u64* ys, int rank, int ranks, float* x,                   \
                                const float* weight, T* out, int hidden, float epsilon, u64 limit,                    \
                                unsigned* error) {                                                                    \
        pull<T, float>(mailboxes, ys, rank, ranks, x, weight, out, hidden, epsilon, limit, error);                    \
    }

EXPORT(f32, float)
EXPORT(bf16, bf16)
EXPORT(f16, f16)
