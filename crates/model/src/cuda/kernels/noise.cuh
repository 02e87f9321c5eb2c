// The noise of crates/sampling on the device, to the bit: Philox, the group race, and the logarithm and the exponential
// of the crate `libm` (fdlibm's method: argument reduction and Remez polynomials; K. C. Ng, Sun Microsystems 1993)
// with the same operations in the same order. Each operation is an intrinsic, so that none is fused.
#pragma once

#include "common.cuh"

constexpr unsigned GROUP = 32;

__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double quotient(double a, double b) { return __ddiv_rn(a, b); }

constexpr double LN2_HIGH = 6.93147180369123816490e-01;
constexpr double LN2_LOW = 1.90821492927058770002e-10;

// ln x of a normal x above 0.
__device__ __forceinline__ double natural_log(double x) {
    if (x == 1.0) return 0.0;
    unsigned high = __double2hiint(x) + (0x3ff00000 - 0x3fe6a09e);
    double exponent = (int)(high >> 20) - 0x3ff;
    x = __hiloint2double((high & 0x000fffff) + 0x3fe6a09e, __double2loint(x));
    double f = sub(x, 1.0), half_square = mul(mul(0.5, f), f), s = quotient(f, add(2.0, f));
    double z = mul(s, s), w = mul(z, z);
    double even = mul(w, add(3.999999999940941908e-01,
                             mul(w, add(2.222219843214978396e-01, mul(w, 1.531383769920937332e-01)))));
    double odd = add(1.818357216161805012e-01, mul(w, 1.479819860511658591e-01));
    odd = add(2.857142874366239149e-01, mul(w, odd));
    odd = mul(z, add(6.666666666666735130e-01, mul(w, odd)));
    double y = mul(s, add(half_square, add(odd, even)));
    y = add(sub(add(y, mul(exponent, LN2_LOW)), half_square), f);
    return add(y, mul(exponent, LN2_HIGH));
}

// e^x of x <= 0; 0 below -708, where results are not normal.
__device__ __forceinline__ double natural_exp(double x) {
    if (!(x >= -708.0)) return 0.0;
    double size = -x, high = x, low = 0.0;
    int k = 0;
    if (__double2hiint(size) <= 0x3e300000) return add(1.0, x);
    if (__double2hiint(size) > 0x3fd62e42) {
        k = __double2hiint(size) >= 0x3ff0a2b2 ? __double2int_rz(sub(mul(1.44269504088896338700, x), 0.5)) : -1;
        high = sub(x, mul(k, LN2_HIGH));
        low = mul(k, LN2_LOW);
        x = sub(high, low);
    }
    double square = mul(x, x);
    double p = add(-1.65339022054652515390e-06, mul(square, 4.13813679705723846039e-08));
    p = add(6.61375632143793436117e-05, mul(square, p));
    p = add(-2.77777777770155933842e-03, mul(square, p));
    p = add(1.66666666666666019037e-01, mul(square, p));
    double c = sub(x, mul(square, p));
    double y = add(1.0, add(sub(quotient(mul(x, c), sub(2.0, c)), low), high));
    // Exact: the result is a normal number.
    return mul(y, __hiloint2double((k + 1023) << 20, 0));
}

struct NoiseKey {
    unsigned seed[2], choice, position;
};

struct GroupNoise {
    double minimum;
    unsigned owner;
};

enum Domain { DOMAIN_GROUP = 0, DOMAIN_TOKEN = 1 };

__device__ __forceinline__ uint4 philox(NoiseKey key, unsigned index, unsigned domain) {
    uint4 c = {index, key.position, key.choice, domain};
    unsigned k0 = key.seed[0], k1 = key.seed[1];
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        unsigned long long a = (unsigned long long)c.x * 0xD2511F53u, b = (unsigned long long)c.z * 0xCD9E8D57u;
        c = {(unsigned)(b >> 32) ^ c.y ^ k0, (unsigned)b, (unsigned)(a >> 32) ^ c.w ^ k1, (unsigned)a};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

__device__ __forceinline__ double exponential(uint4 words) {
    unsigned long long bits = ((unsigned long long)words.x << 32 | words.y) >> 12;
    return -natural_log(mul(add((double)bits, 0.5), 1.0 / 4503599627370496.0));
}

__device__ __forceinline__ GroupNoise group_noise(NoiseKey key, unsigned group) {
    uint4 words = philox(key, group, DOMAIN_GROUP);
    return {mul(exponential(words), 1.0 / GROUP), words.z % GROUP};
}

__device__ __forceinline__ double member_noise(NoiseKey key, unsigned token, GroupNoise group) {
    if (token % GROUP == group.owner) return group.minimum;
    return add(group.minimum, exponential(philox(key, token, DOMAIN_TOKEN)));
}
