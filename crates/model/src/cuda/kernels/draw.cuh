// Logits to tokens: crates/sampling (`draw` with `How::Pick`) on the device, with its noise to the bit (noise.cuh).
//
// Three launches a step; a row whose draw does not need one of them leaves it at once.
//   draw_scan    (draw.cu) a warp a tile of 1024 logits, blocks over the row: edits, the test for NaN and +inf, then the
//                arg max or the group race; the last block of a row reduces. For filtered rows each group's peak.
//   draw_mass    (draw_filter.cu) rows with top-p over all tokens: sums of exp(logit / temperature - best) in bins.
//   draw_filter  (draw_filter.cu) filtered rows, a block each: finds the last survivor in rank order, races survivors.
//
// Rank order is falling logit, then rising id. A token's *rank key* holds both in 50 bits, higher is first.
#pragma once

#include "noise.cuh"

typedef unsigned long long u64;

constexpr unsigned TILE = 32 * GROUP;
constexpr unsigned SCAN_THREADS = 256;
constexpr unsigned ID_BITS = 18;
constexpr unsigned ALL = 0xffffffffu;
constexpr float INF = __builtin_huge_valf();

// Written by the host each step (draw/encode.rs).
struct Ask {
    unsigned kind;
    int mask;  // Slot in the masks, or -1.
    unsigned first, entries;
    unsigned seed[2], choice, position;
    double temperature, top_p, floor;  // `floor` is ln(min_p).
    unsigned top_k, unused;
};

enum Kind { HOST = 0, GREEDY = 1, RACE = 2, FILTER = 3 };
enum Status { NOT_DRAWN = 0, DRAWN = 1, NOT_FINITE = 2, NOTHING = 3, FILTERING = 4 };

// A change of one token's logit; `token` with BANNED makes it impossible.
struct Entry {
    unsigned token;
    float bias, repetition, penalty;
};
constexpr unsigned BANNED = 1u << 31;

// A block's part of a row.
struct __align__(16) Partial {
    double score;
    int token;
    unsigned broken;
};

// What all kernels see of a step.
struct Rows {
    float* logits;
    u64 stride;
    unsigned vocab;
    const unsigned* header;  // [0]: rows.
    const Ask* asks;
    const unsigned* masks;
    unsigned mask_words;
    float* peaks;  // [rows][tiles * 32]
    u64* bins;     // [rows][BINS], zero between draws.
    // [rows]
    float* best;
    int* results;  // Token and status.
};

// Kernel arguments have at most eight bytes.
#define ROWS_ARGUMENTS                                                                                            \
    float *logits, u64 stride, unsigned vocab, const unsigned *header, const Ask *asks, const unsigned *masks,    \
        unsigned mask_words, float *peaks, u64 *bins, float *best_of, int *results
#define ROWS {logits, stride, vocab, header, asks, masks, mask_words, peaks, bins, best_of, results}

struct Row {
    const float* logits;
    const unsigned* mask;
    unsigned vocab;

    __device__ Row(const Rows& rows, const Ask& ask, unsigned row)
        : logits(rows.logits + row * rows.stride),
          mask(ask.mask < 0 ? nullptr : rows.masks + (u64)ask.mask * rows.mask_words),
          vocab(rows.vocab) {}

    __device__ bool allows(unsigned token) const { return !mask || (mask[token / 32] >> token % 32 & 1); }

    __device__ float shown(unsigned token) const {
        return token < vocab && allows(token) ? logits[token] : -INF;
    }

    // Four logits from a multiple of four, as they are.
    __device__ float4 four(unsigned token) const {
        if (token + 4 <= vocab) return *reinterpret_cast<const float4*>(logits + token);
        float4 x = {-INF, -INF, -INF, -INF};
        if (token < vocab) x.x = logits[token];
        if (token + 1 < vocab) x.y = logits[token + 1];
        if (token + 2 < vocab) x.z = logits[token + 2];
        return x;
    }

    __device__ void hide(float4& x, unsigned token) const {
        if (!mask || token >= vocab) return;
        unsigned bits = mask[token / 32] >> token % 32;
        if (!(bits & 1)) x.x = -INF;
        if (!(bits & 2)) x.y = -INF;
        if (!(bits & 4)) x.z = -INF;
        if (!(bits & 8)) x.w = -INF;
    }
};

// The group whose sum over eight lanes and eight turns a lane keeps: lane 8 j + r owns group 4 r + j of the tile.
__device__ __forceinline__ unsigned own_group(unsigned tile) {
    unsigned lane = threadIdx.x % 32;
    return tile * 32 + 4 * (lane % 8) + lane / 8;
}

// Unsigned numbers in the order of the floats; -0 below +0, as `total_cmp` has it.
__device__ __forceinline__ unsigned ordered(float x) {
    unsigned bits = __float_as_uint(x);
    return bits ^ ((int)bits < 0 ? ALL : 0x80000000u);
}
__device__ __forceinline__ float from_ordered(unsigned key) {
    return __uint_as_float(key ^ ((int)key < 0 ? 0x80000000u : ALL));
}
__device__ __forceinline__ u64 ordered(double x) {
    u64 bits = __double_as_longlong(x);
    return bits ^ ((long long)bits < 0 ? ~0ull : 1ull << 63);
}
__device__ __forceinline__ u64 rank_key(float logit, unsigned token) {
    return (u64)ordered(logit) << ID_BITS | ((1u << ID_BITS) - 1 - token);
}

__device__ __forceinline__ u64 warp_most(u64 x) {
    unsigned high = __reduce_max_sync(ALL, (unsigned)(x >> 32));
    unsigned low = __reduce_max_sync(ALL, (unsigned)(x >> 32) == high ? (unsigned)x : 0);
    return (u64)high << 32 | low;
}

struct Best {
    double score;
    int token;  // -1 without one.
};

// The higher score of a warp; equal scores fall to the lower id.
__device__ __forceinline__ Best warp_best(Best x) {
    u64 key = x.token < 0 ? 0 : ordered(x.score), most = warp_most(key);
    unsigned token = __reduce_min_sync(ALL, key == most && x.token >= 0 ? (unsigned)x.token : ALL);
    unsigned owner = __ffs(__ballot_sync(ALL, key == most && (unsigned)x.token == token));
    return {__shfl_sync(ALL, x.score, owner ? owner - 1 : 0), owner ? (int)token : -1};
}

__device__ __forceinline__ Best better(Best a, Best b) {
    if (a.token < 0) return b;
    return b.token >= 0 && (b.score > a.score || (b.score == a.score && b.token < a.token)) ? b : a;
}

// The race of 32 groups, one a lane, whose highest logit is `peak`: the owners of the minima first, then groups that can
// still win. `reached` is the highest score that any warp of the row has told. `survives` says whether a token takes
// part.
template <typename Survives>
__device__ Best race(const Row& row, NoiseKey key, double temperature, unsigned group, float peak, Best best,
                     u64* reached, Survives survives) {
    unsigned lane = threadIdx.x % 32;
    bool waiting = peak > -INF;
    GroupNoise noise = {1.0, 0};
    double bound = 0.0;
    Best one = {0.0, -1};
    if (waiting) {
        noise = group_noise(key, group);
        unsigned token = group * GROUP + noise.owner;
        float logit = row.shown(token);
        double log = natural_log(noise.minimum);
        bound = sub(quotient(peak, temperature), log);
        if (logit > -INF && survives(logit, token)) one = {sub(quotient(logit, temperature), log), (int)token};
    }
    best = better(best, warp_best(one));
    u64 now = 0;
    if (lane == 0) {
        u64 own = best.token < 0 ? 0 : ordered(best.score);
        now = max(own, atomicMax(reached, own));
    }
    while (true) {
        now = __shfl_sync(ALL, now, 0);
        u64 mine = waiting && ordered(bound) >= now ? ordered(bound) : 0, most = warp_most(mine);
        if (most == 0) return best;
        unsigned leader = __ffs(__ballot_sync(ALL, mine == most)) - 1;
        if (lane == leader) waiting = false;
        // Asked for now, needed after the group.
        u64 told = lane == 0 ? atomicMax(reached, 0ull) : 0;
        unsigned token = __shfl_sync(ALL, group, leader) * GROUP + lane;
        GroupNoise opened = {__shfl_sync(ALL, noise.minimum, leader), __shfl_sync(ALL, noise.owner, leader)};
        float logit = row.shown(token);
        one = {0.0, -1};
        if (logit > -INF && survives(logit, token)) {
            one.score = sub(quotient(logit, temperature), natural_log(member_noise(key, token, opened)));
            one.token = token;
        }
        one = warp_best(one);
        bool higher = one.token >= 0 && (best.token < 0 || one.score > best.score);
        best = better(best, one);
        now = max(told, best.token < 0 ? 0 : ordered(best.score));
        if (higher && lane == 0) atomicMax(reached, now);
    }
}
