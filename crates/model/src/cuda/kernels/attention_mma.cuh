// Tensor core pieces of the attention kernels: fragments of m16n8k16, asynchronous copies of blocks of keys and values
// into shared memory, one row's softmax step.
#pragma once

#include "attention.cuh"
#include "fp8.cuh"

// The threads of a block. Four warps.
constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;

// d += a * b: a 16x16 (rows of queries or weights), b 16x8, d 16x8 in float. Lane l holds of d: row l/4, columns
// 2(l%4) and 2(l%4)+1, and the same of row l/4 + 8.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers in one register, the first in the low half.
template <typename T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}
template <> __device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// A row-major array in shared memory of rows of COLUMNS 2-byte elements, in pieces of 16 bytes that are permuted by
// the row: eight rows at the same column lie in different banks.
template <int COLUMNS> struct Swizzled {
    uint32_t base;

    __device__ uint32_t at(int row, int piece) const {
        return base + row * (COLUMNS * 2) + ((piece ^ (row & 7)) << 4);
    }
    // The element pair at an even column.
    __device__ uint32_t pair(int row, int column) const { return at(row, column >> 3) + (column & 7) * 2; }
};

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The left operand: rows row.. + 16, columns 16 * step.. + 16.
template <int C> __device__ __forceinline__ void load_left(uint32_t (&r)[4], Swizzled<C> from, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(r, from.at(row + lane % 16, 2 * step + lane / 16));
}

// The right operand of scores: keys key.. + 16 (r[0], r[1]: the first eight), columns 16 * step.. + 16.
template <int C> __device__ __forceinline__ void load_keys(uint32_t (&r)[4], Swizzled<C> from, int key, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(r, from.at(key + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// The right operand of outputs: keys key.. + 16, columns column.. + 16 (r[0], r[1]: the first eight).
template <int C> __device__ __forceinline__ void load_values(uint32_t (&r)[4], Swizzled<C> from, int key, int column) {
    const int lane = threadIdx.x % 32;
    load_transposed(r, from.at(key + lane % 16, column / 8 + lane / 16));
}

// Copies 16 bytes in the background; zeros where not `real`.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool real) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}
// The same with a cache policy.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool real, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                 "r"(real ? 16 : 0), "l"(policy)
                 : "memory");
}
// Of what mostly one block reads, once (pages that sequences share are read by more, at about one time): the first to leave
// the second cache.
__device__ __forceinline__ uint64_t read_once() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// Of what other blocks read too.
__device__ __forceinline__ uint64_t read_often() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// The same of 4 bytes.
__device__ __forceinline__ void copy_float(uint32_t to, const void* from, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(real ? 4 : 0) : "memory");
}
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int OPEN> __device__ __forceinline__ void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}

// A block of keys and values in shared memory, stored as C; attention_fp8.cuh has that of codes.
template <typename C, int D> struct Stage {
    static constexpr int BYTES = 2 * BLOCK * D * 2;
    uint32_t base;

    __device__ Swizzled<D> keys() const { return {base}; }
    __device__ Swizzled<D> values() const { return {base + BLOCK * D * 2}; }
};

// The keys and values of one head of one sequence. PATHS: some may be `stored` apart; the looks at each key's place are
// instructions that other launches need not fetch.
template <typename T, int D, bool PATHS> struct Keys {
    const T* pool;  // the head's part of page 0
    int64_t page_stride;
    const int* table;
    int end;  // positions from here on are not written
    Stored stored;
    uint64_t policy;  // of their copies

    // The pages of a block, for `load`: read a step earlier, so that nothing waits for them.
    __device__ int4 pages(int block) const { return *reinterpret_cast<const int4*>(table + block * BLOCK_PAGES); }

    // Starts the copy of a block: keys, then values. What is not written or has no page becomes zeros.
    __device__ void load(Stage<T, D> to, int block, int4 pages) const {
        constexpr int PIECES = D / 8;
        const int ids[BLOCK_PAGES] = {pages.x, pages.y, pages.z, pages.w};
        const int piece = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
        constexpr int ROWS = THREADS / PIECES;
        static_assert(PAGE % ROWS == 0, "the page of a row must not depend on the thread");
#pragma unroll
        for (int i = 0; i < BLOCK / ROWS; ++i) {
            const int row = first + i * ROWS, position = block * BLOCK + row;
            int page = ids[i * ROWS / PAGE], place = row % PAGE;
            if (PATHS && position >= stored.base && position < end) {
                const int at = stored.at(position);
                page = table[at / PAGE];
                place = at % PAGE;
            }
            const bool real = position < end && page >= 0;
            const T* from = pool + (real ? page * page_stride : 0) + place * D + piece * 8;
            copy_async(to.keys().at(row, piece), from, real, policy);
            copy_async(to.values().at(row, piece), from + PAGE * D, real, policy);
        }
    }
};

// Copies the query rows of a tile: `count` rows of D from `group` heads a row of q; zeros up to M.
template <int D, int M, typename T>
__device__ __forceinline__ void load_queries(Swizzled<D> to, const T* q, int64_t stride, int group, int count, T) {
    constexpr int PIECES = D / 8;
    for (int c = threadIdx.x; c < M * PIECES; c += THREADS) {
        const int row = c / PIECES, piece = c % PIECES;
        const bool real = row < count;
        const T* from = real ? q + row / group * stride + row % group * D + piece * 8 : q;
        copy_async(to.at(row, piece), from, real);
    }
}

// Columns that a lane holds beside each other in two tiles of outputs (in one where they are not codes').
template <typename C> constexpr int LANE_COLUMNS = IS_CODES<C> ? 4 : 2;

// Gives `put` the outputs that a lane holds in a row (of the upper or lower half of its tiles) as pairs of neighbours: the
// column of the first, less the lane's LANE_COLUMNS * (lane % 4), and both.
template <typename C, int TILES, typename Put>
__device__ __forceinline__ void each_pair(const float (&of)[TILES][4], int half, Put put) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        if constexpr (!IS_CODES<C>)
            put(8 * n, of[n][2 * half], of[n][2 * half + 1]);
        else  // Even columns in the first of two tiles, odd ones in the second.
            put(8 * (n & ~1) + 2 * (n & 1), of[n & ~1][2 * half + (n & 1)], of[n | 1][2 * half + (n & 1)]);
    }
}
