// Pages of FP8: keys and values as E4M3 codes (arXiv 2209.05433) with a scale for each (position, head), of the key and of
// the value. The last columns of keys, where they are large, have a second code each, of what the first left over: they decide
// scores. Of one head a page has sixteen keys of D codes, sixteen values, sixteen times the second codes of a key, then
// their sixteen and sixteen scales (float).
//
// The scale makes a row's largest element 448, the largest code. A row's codes depend on nothing but the row.
#pragma once

#include "common.cuh"

// A stored code: the element type of such pages, whose strides are bytes.
struct fp8 {
    uint8_t bits;
};

template <typename C> constexpr bool IS_CODES = false;
template <> constexpr bool IS_CODES<fp8> = true;

// Columns of keys that have a second code (cuda/fine.rs).
constexpr int FINE = 16;

// Where second codes and scales begin in a head's part of a page.
template <int D> constexpr int FINE_AT = 2 * PAGE * D;
template <int D> constexpr int SCALES_AT = FINE_AT<D> + PAGE * FINE;

// Elements of a head's keys and values in a page.
template <typename C, int D> constexpr int HEAD = 2 * PAGE * D;
template <int D> constexpr int HEAD<fp8, D> = SCALES_AT<D> + 2 * PAGE * (int)sizeof(float);

// What a row is divided by, of its largest size. Below the smallest normal float quotients would lose bits. A row that is
// not finite has a scale that is not: it is not hidden.
__device__ __forceinline__ float fp8_scale(float largest) {
    const float scale = __fdiv_rn(largest, 448.0f);
    return scale < 1.17549435e-38f ? 1.0f : scale;
}

// The nearest code, ties to even, of a number of at most 448. quantised/fp8.rs has the same.
__device__ __forceinline__ uint8_t fp8_code(float x) {
    const float size = fabsf(x);
    const unsigned sign = __float_as_uint(x) >> 24 & 0x80;
    // Steps of 2^-9; eight of them are the smallest normal value, and its code.
    if (size < 1.0f / 64) return sign | __float2uint_rn(size * 512);
    const unsigned bits = __float_as_uint(fminf(size, 448.0f));
    return sign | (((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3));
}

// The value of a code.
__device__ __forceinline__ float fp8_value(uint8_t code) {
    // Its seven bits where a float has them are the 2^-120th part of it.
    return copysignf(__uint_as_float((code & 0x7f) << 20) * 1.32922799578491587e36f, code & 0x80 ? -1.0f : 1.0f);
}
