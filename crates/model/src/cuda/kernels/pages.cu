// Pages of keys and values on their way between GPUs.
//
// A *unit* is a page of one class in one layer: contiguous, a multiple of 16 bytes. Gathered units lie one after the
// other. Both ways compute a unit's checksum from the bytes that pass through:
//
//   sum over pieces i of 16 bytes, as little-endian words a, b, c, d, mod 2^64, of
//   (a + k) (b + r(k, 8)) + (c + r(k, 16)) (d + r(k, 24)),   k = mix(i), r = rotate left
//
// with sums in brackets mod 2^32 and products of 64 bits (NH of UMAC, Black et al., CRYPTO 1999, with keys of the
// position): a changed word is seen but for one in 2^32. It finds faults, not forgers. Its order is free, so blocks add.
#include "common.cuh"

typedef unsigned long long u64;

struct Unit {
    u64 page;    // Address.
    u64 staged;  // Offset in bytes.
    u64 sum;     // Zero before.
};

constexpr unsigned THREADS = 256;
constexpr unsigned EACH = 4;

__device__ __forceinline__ unsigned mix(unsigned i) {
    i = (i ^ i >> 15) * 0x2c1b3c6du + 0x9e3779b9u;
    i = (i ^ i >> 12) * 0x297a2d39u;
    return i ^ i >> 15;
}

__device__ __forceinline__ u64 piece_sum(uint4 x, unsigned i) {
    unsigned k = mix(i);
    return (u64)(x.x + k) * (x.y + __funnelshift_l(k, k, 8)) +
           (u64)(x.z + __funnelshift_l(k, k, 16)) * (x.w + __funnelshift_l(k, k, 24));
}

// A block copies THREADS * EACH pieces of a unit.
template <bool GATHER> __device__ void copy(Unit* units, char* staging, unsigned pieces) {
    launch_dependents();
    wait_for_inputs();
    Unit& unit = units[blockIdx.y];
    uint4* page = reinterpret_cast<uint4*>(unit.page);
    uint4* staged = reinterpret_cast<uint4*>(staging + unit.staged);
    const uint4* from = GATHER ? page : staged;
    uint4* to = GATHER ? staged : page;
    unsigned first = blockIdx.x * THREADS * EACH + threadIdx.x;
    uint4 x[EACH];
    u64 sum = 0;
#pragma unroll
    for (unsigned e = 0; e < EACH; ++e) {
        unsigned i = first + e * THREADS;
        if (i < pieces) x[e] = __ldcs(from + i);
    }
#pragma unroll
    for (unsigned e = 0; e < EACH; ++e) {
        unsigned i = first + e * THREADS;
        if (i < pieces) {
            to[i] = x[e];
            sum += piece_sum(x[e], i);
        }
    }
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) atomicAdd(&unit.sum, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_pages(Unit* units, char* staging, unsigned pieces) {
    copy<true>(units, staging, pieces);
}

extern "C" __global__ void __launch_bounds__(THREADS) scatter_pages(Unit* units, char* staging, unsigned pieces) {
    copy<false>(units, staging, pieces);
}
