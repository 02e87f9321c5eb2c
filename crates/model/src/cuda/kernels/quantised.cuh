// Quantised matrices as the device keeps them (repacked at load by quantised/pack.rs), and how their weights are read.
//
// Tiles of 16 outputs x K inputs, [n / 16][k / K], n padded to 32 and k to K with weights of 0. A tile's quants come
// first, in sub-blocks of 32 inputs, in the order in which the lanes of a warp feed mma.m16n8k16: lane 4 g + t has
// outputs g and g + 8 and inputs 8 t .. 8 t + 7 of a sub-block, of which each of two steps takes four.
//
//   Q4_K  K = 256   2048 bytes of quants: 16 a lane for two sub-blocks, a word a step; nibble 2 p + h (+ 4: the odd
//                   input) has pair p of output g + 8 h. Then 16 outputs' scales and minima (8 + 8 bytes), then d, dmin.
//   Q8_0  K = 128   2048 bytes: 16 a lane for a sub-block, [step][h][4 inputs], each 128 more than it means. Then four
//                   half scales an output.
//   FP8   K = 128   2048 bytes as Q8_0, E4M3. Scales, one an output, lie elsewhere.
#pragma once

#include "common.cuh"

enum Format { Q4_K, Q8_0, FP8 };

constexpr int QUANTS = 2048;

template <Format F> struct Tile {
    static constexpr int K = F == Q4_K ? 256 : 128;
    static constexpr int SUBS = K / 32;
    static constexpr int BYTES = QUANTS + (F == Q4_K ? 16 * 20 : F == Q8_0 ? 16 * 8 : 0);
};

__device__ __forceinline__ float byte_of(unsigned word, int at) { return (float)(word >> (8 * at) & 255); }

__device__ __forceinline__ float half_bits(unsigned bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }

// E4M3 as T, two at once, each in the upper byte of 16 bits: exact, subnormal values too.
__device__ __forceinline__ unsigned fp8_pair(unsigned x, bf16) {
    x = (x & 0x80008000u) | (x & 0x7f007f00u) >> 4;
    __nv_bfloat162 scale = __halves2bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80));  // 2^120
    __nv_bfloat162 y = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&x), scale);
    return *reinterpret_cast<unsigned*>(&y);
}
__device__ __forceinline__ unsigned fp8_pair(unsigned x, f16) {
    x = (x & 0x80008000u) | (x & 0x7f007f00u) >> 1;
    __half2 y = __hmul2(*reinterpret_cast<__half2*>(&x), __float2half2_rn(256.0f));
    return *reinterpret_cast<unsigned*>(&y);
}

// Four unsigned bytes less 128 as two pairs of T, exactly.
__device__ __forceinline__ uint2 int8_pairs(unsigned x, f16) {
    unsigned a = __byte_perm(x, 0x64006400, 0x7170) /* 1024 + byte 0, byte 1 */, b = __byte_perm(x, 0x64006400, 0x7372);
    __half2 shift = __float2half2_rn(-1152.0f);
    __half2 y = __hadd2(*reinterpret_cast<__half2*>(&a), shift), z = __hadd2(*reinterpret_cast<__half2*>(&b), shift);
    return {*reinterpret_cast<unsigned*>(&y), *reinterpret_cast<unsigned*>(&z)};
}
__device__ __forceinline__ uint2 int8_pairs(unsigned x, bf16) {
    // 2^23 + byte as a float, less 2^23 + 128.
    float f[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        f[i] = __fsub_rn(__uint_as_float(__byte_perm(x, 0x4b000000, 0x7440 + i)), 8388736.0f);
    }
    __nv_bfloat162 y = __floats2bfloat162_rn(f[0], f[1]), z = __floats2bfloat162_rn(f[2], f[3]);
    return {*reinterpret_cast<unsigned*>(&y), *reinterpret_cast<unsigned*>(&z)};
}

// The words that make a pair of nibbles a pair of T above BIAS, exactly.
template <typename T> struct Nibbles;
template <> struct Nibbles<bf16> {
    static constexpr unsigned WORD = 0x43004300;
    static constexpr float BIAS = 128.0f;
};
template <> struct Nibbles<f16> {
    static constexpr unsigned WORD = 0x64006400;
    static constexpr float BIAS = 1024.0f;
};

// One weight of a tile, without the scale of its output for FP8.
template <Format F> __device__ float weight(const unsigned char* tile, int output, int input) {
    int sub = input / 32, r = input % 32, lane = output % 8 * 4 + r / 8, step = r % 8 / 4, h = output / 8;
    if constexpr (F == Q4_K) {
        unsigned word = *reinterpret_cast<const unsigned*>(tile + sub / 2 * 512 + lane * 16 + (sub % 2 * 2 + step) * 4);
        float q = (float)(word >> (4 * (r % 4 / 2 * 2 + h) + 16 * (r % 2)) & 15);
        const unsigned char* scales = tile + QUANTS + output * 16;
        unsigned d = *reinterpret_cast<const unsigned*>(tile + QUANTS + 256 + output * 4);
        float scale = __fmul_rn(half_bits(d), scales[sub]), minimum = __fmul_rn(half_bits(d >> 16), scales[8 + sub]);
        return __fmaf_rn(q, scale, -minimum);
    } else {
        unsigned byte = tile[sub * 512 + lane * 16 + (step * 2 + h) * 4 + r % 4];
        if constexpr (F == Q8_0) {
            unsigned d = reinterpret_cast<const unsigned short*>(tile + QUANTS + output * 8)[sub];
            return __fmul_rn((float)((int)byte - 128), half_bits(d));
        } else {
            unsigned pair = fp8_pair(byte << 8, f16());
            return half_bits(pair);
        }
    }
}
