// Keys and values of FP8 pages (fp8.cuh) as the operands of tensor cores.
//
// Codes stay codes on their way through shared memory and become BF16 without a multiplication: a code's seven bits lie
// where BF16 has them, which makes it the 2^-120th part of its value. So queries and the keys' scales are 2^60 times as
// large, and the values' scales 2^120 times. Scales are factors of scores and weights, never of elements.
//
// Of each sixteen columns the even ones come first, then the odd ones: so two shifts and two masks make of the four codes
// of a register two operands, of keys and (transposed) of values. Queries lie in that order; outputs are put back out of it.
//
// Columns that keys have a second code of are sixteen more, with the same elements of the queries.
#pragma once

#include "attention_mma.cuh"

constexpr float LIFT = 1152921504606846976.0f;  // 2^60

// The codes in the upper bytes of both halves. Those in the lower bytes: of the word eight bits up.
__device__ __forceinline__ uint32_t upper_codes(uint32_t word) {
    return (word >> 4 & 0x07f007f0) | (word & 0x80008000);
}

// A row-major array of codes in shared memory, in pieces of 16 bytes: eight rows at one piece lie in different banks.
template <int D> struct Codes {
    uint32_t base;

    __device__ uint32_t at(int row, int piece) const {
        const int turn = D == 128 ? row & 7 : D == 64 ? row >> 1 & 3 : 0;
        return base + row * D + ((piece ^ turn) << 4);
    }
};

// The sixteen more elements of each query, in shared memory: [rows][2] pieces.
struct FineQueries {
    uint32_t base;

    __device__ uint32_t at(int row, int piece) const { return base + row * 32 + ((piece ^ (row >> 2 & 1)) << 4); }
};
__device__ __forceinline__ void load_left(uint32_t (&r)[4], FineQueries from, int row) {
    const int lane = threadIdx.x % 32;
    load_matrices(r, from.at(row + lane % 16, lane / 16));
}

// As those of attention_mma.cuh.
template <int D> __device__ __forceinline__ void load_keys(uint32_t (&r)[4], Codes<D> from, int key, int step) {
    const int lane = threadIdx.x % 32;
    uint32_t first, second;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(first), "=r"(second)
                 : "r"(from.at(key + lane % 16, step))
                 : "memory");
    r[0] = upper_codes(first << 8);
    r[1] = upper_codes(first);
    r[2] = upper_codes(second << 8);
    r[3] = upper_codes(second);
}

template <int D> __device__ __forceinline__ void load_values(uint32_t (&r)[4], Codes<D> from, int key, int column) {
    const int lane = threadIdx.x % 32;
    uint32_t first, second;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(first), "=r"(second)
                 : "r"(from.at(key + lane % 16, column / 16))
                 : "memory");
    r[0] = upper_codes(first << 8);
    r[1] = upper_codes(second << 8);
    r[2] = upper_codes(first);
    r[3] = upper_codes(second);
}

// A block of keys and values in shared memory, as in four pages.
template <int D> struct Stage<fp8, D> {
    static constexpr int BYTES = BLOCK_PAGES * HEAD<fp8, D>;
    uint32_t base;

    __device__ Codes<D> keys() const { return {base}; }
    __device__ Codes<D> values() const { return {base + BLOCK * D}; }
    __device__ Codes<FINE> fine() const { return {base + BLOCK_PAGES * FINE_AT<D>}; }
    __device__ uint32_t scales() const { return base + BLOCK_PAGES * SCALES_AT<D>; }
    // Of two neighbouring keys: what their scores are multiplied with, and what their weights.
    __device__ float2 key_scales(int key) const { return lifted(key, LIFT); }
    __device__ float2 value_scales(int key) const { return lifted(BLOCK + key, LIFT * LIFT); }

  private:
    __device__ float2 lifted(int nth, float by) const {
        float2 two;
        asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                     : "=f"(two.x), "=f"(two.y)
                     : "r"(scales() + nth * 4)
                     : "memory");
        return {__fmul_rn(two.x, by), __fmul_rn(two.y, by)};
    }
};

template <int D, bool PATHS> struct Keys<fp8, D, PATHS> {
    const fp8* pool;  // the head's part of page 0
    int64_t page_stride;
    const int* table;
    int end;  // positions from here on are not written
    Stored stored;
    uint64_t policy;  // of their copies

    __device__ int4 pages(int block) const { return *reinterpret_cast<const int4*>(table + block * BLOCK_PAGES); }

    // Starts the copy of a block. What is not written or has no page becomes zeros.
    __device__ void load(Stage<fp8, D> to, int block, int4 pages) const {
        constexpr int PIECES = D / 16, ROWS = THREADS / PIECES;
        // Of a row of the block: its head in its page, the place there, and whether it is written.
        struct Row {
            const fp8* head;
            int place;
            bool real;
        };
        auto find = [&](int row, int page) {
            const int position = block * BLOCK + row;
            int place = row % PAGE;
            if (PATHS && position >= stored.base && position < end) {
                const int at = stored.at(position);
                page = table[at / PAGE];
                place = at % PAGE;
            }
            const bool real = position < end && page >= 0;
            return Row{pool + (real ? page * page_stride : 0), place, real};
        };
        const int ids[BLOCK_PAGES] = {pages.x, pages.y, pages.z, pages.w};
        const int piece = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
#pragma unroll
        for (int i = 0; i < BLOCK / ROWS; ++i) {
            // The rows of a turn lie in one page or in two.
            const int row = first + i * ROWS, nth = i * ROWS / PAGE;
            const Row of = find(row, first < PAGE ? ids[nth] : ids[nth + ROWS / PAGE - 1]);
            const fp8* from = of.head + of.place * D + piece * 16;
            copy_async(to.keys().at(row, piece), from, of.real, policy);
            copy_async(to.values().at(row, piece), from + PAGE * D, of.real, policy);
        }
        // A scale a thread, of keys and then of values; and half of them the second codes of a key.
        static_assert(2 * BLOCK == THREADS && FINE == 16, "a copy a thread");
        const int row = threadIdx.x % BLOCK, which = threadIdx.x / BLOCK, nth = row / PAGE;
        const Row of = find(row, nth < 2 ? (nth == 0 ? pages.x : pages.y) : (nth == 2 ? pages.z : pages.w));
        copy_float(to.scales() + threadIdx.x * 4, of.head + SCALES_AT<D> + (which * PAGE + of.place) * 4, of.real);
        if (which == 0) copy_async(to.fine().at(row, 0), of.head + FINE_AT<D> + of.place * FINE, of.real);
    }
};

// Makes BF16 of a block of codes, keys and values, as many 2^-120th parts.
template <int D> __device__ __forceinline__ void unpack(Swizzled<D> to, Codes<D> from) {
    constexpr int PIECES = D / 16;
    auto store = [&](int row, int piece, uint4 codes, int up) {
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to.at(row, piece)), "r"(upper_codes(codes.x << up)),
                     "r"(upper_codes(codes.y << up)), "r"(upper_codes(codes.z << up)), "r"(upper_codes(codes.w << up))
                     : "memory");
    };
#pragma unroll
    for (int c = threadIdx.x; c < 2 * BLOCK * PIECES; c += THREADS) {
        const int row = c / PIECES, piece = c % PIECES;
        uint4 codes;
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(codes.x), "=r"(codes.y), "=r"(codes.z), "=r"(codes.w)
                     : "r"(from.at(row, piece))
                     : "memory");
        // Half of a row's threads begin with the odd columns: then eight threads write to different banks.
        const int odd = piece / 4 % 2;
        store(row, 2 * piece + odd, codes, odd ? 0 : 8);
        store(row, 2 * piece + 1 - odd, codes, odd ? 8 : 0);
    }
}

// As load_queries of attention_mma.cuh: 2^60 times as large, columns in the order of codes.
template <int D, int M>
__device__ __forceinline__ void load_queries(Swizzled<D> to, const bf16* q, int64_t stride, int group, int count, fp8) {
    constexpr int PIECES = D / 8;
    const __nv_bfloat162 lift = __float2bfloat162_rn(LIFT);
    auto lifted = [&](uint32_t both) {
        const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&both), lift);
        return *reinterpret_cast<const uint32_t*>(&product);
    };
    for (int c = threadIdx.x; c < M * PIECES; c += THREADS) {
        const int row = c / PIECES, piece = c % PIECES;
        uint4 of = {0, 0, 0, 0};
        const bf16* from = q + row / group * stride + row % group * D + piece * 8;
        if (row < count) of = __ldcg(reinterpret_cast<const uint4*>(from));
        const uint32_t words[4] = {lifted(of.x), lifted(of.y), lifted(of.z), lifted(of.w)};
        const uint32_t at = piece % 2 * 8;
        auto store = [&](int half, uint32_t first, uint32_t second) {
            asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(to.at(row, piece / 2 * 2 + half) + at), "r"(first),
                         "r"(second)
                         : "memory");
        };
        store(0, __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410));
        store(1, __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
    }
}

// The elements of `columns` of the same rows, as often as large.
template <int M>
__device__ __forceinline__ void load_fine(FineQueries to, const bf16* q, int64_t stride, int group, int count, int width,
                                          const uint8_t* columns) {
    const bf16 lift = __float2bfloat16_rn(LIFT);
    for (int c = threadIdx.x; c < M * FINE; c += THREADS) {
        const int row = c / FINE, nth = c % FINE;
        bf16 element = __float2bfloat16_rn(0.0f);
        if (row < count) element = __hmul(__ldcg(q + row / group * stride + row % group * width + columns[nth]), lift);
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(to.at(row, nth % 2) + nth / 2 * 2), "h"(__bfloat16_as_ushort(element))
                     : "memory");
    }
}
