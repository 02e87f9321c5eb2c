// Products of few rows by a block that streams its part of a matrix through a ring of shared memory.
//
// One warp copies weights, product after product, and waits for nothing but room and the copies before; eight warps compute. A tile is 8
// outputs; a stage of the ring is 8 outputs by 1024 k, of which each warp takes 128: within 32 k, lane t of a quad takes
// k = 8t .. 8t+7 of matrix and rows alike (a sum does not mind in which order the instruction thinks its k come). Warps'
// sums are added in warp order: a row's bits do not depend on the rows beside it, and are the same in every run.
#pragma once

#include "common.cuh"

constexpr int WARPS = 8;  // that compute
constexpr int COMPUTING = WARPS * 32;
constexpr int TILE = 8;
constexpr int STAGE_K = 1024;
// Padded so that the four rows that a quarter of a warp reads lie in different banks.
constexpr int STAGE_ROW = STAGE_K * 2 + 64;
constexpr int STAGE = TILE * STAGE_ROW;
constexpr int ROW_PADDING = 32;  // for the same reason
constexpr int MOST_STAGES = 16;
// Copies of a block that are under way at once, 64 KiB: enough to keep memory busy. With all of the ring under way what
// others ask of the memory (rows, counts, keys) stands behind it for microseconds: 4.27 ms a step instead of 4.03. A ring has at
// least as many stages: the oldest copy's phase must not be overtaken before it was waited for.
constexpr int UNDER_WAY = 4;
constexpr uint64_t PATIENCE_NS = 5000000000ull;
// Tiles that share their reads of the rows.
constexpr int TILES = 6;
constexpr int MOST_ROWS = 8;

// y = x W^T over `inputs` (a multiple of 32) k; W has `outputs` (a multiple of 8) rows, of a gate twice as many. Units are
// tiles, or pairs of them for a gate; a group of them shares its reads of the rows.
struct Product {
    int inputs, outputs;
    bool gate;
    int first, end;  // this block's own units
    int shared;      // units from here on go to whoever is first

    // Multiprocessors get unequal parts of the memory's bandwidth: of a large product, the last third is shared out.
    __device__ Product(int inputs, int outputs, bool gate, bool is_large) : inputs(inputs), outputs(outputs), gate(gate) {
        const int blocks = gridDim.x, share = units() / blocks * 2 / 3;
        auto even = [&](int block) { return static_cast<int>(static_cast<long long>(units()) * block / blocks); };
        first = is_large ? share * static_cast<int>(blockIdx.x) : even(blockIdx.x);
        end = is_large ? first + share : even(blockIdx.x + 1);
        shared = is_large ? share * blocks : units();
    }

    __device__ int units() const { return outputs / TILE; }
    __device__ int tiles() const { return gate ? 2 : 1; }
    __device__ int group() const { return TILES / tiles(); }
    // Row of W of matrix tile `t` of the units from `unit` on.
    __device__ int row(int unit, int t) const {
        return gate ? t % 2 * outputs + (unit + t / 2) * TILE : (unit + t) * TILE;
    }
};

// Stages of weights on their way from memory. The first stage of a group says which units it begins.
struct Ring {
    uint32_t base, full, empty;  // addresses in shared memory
    volatile int* units;         // the first unit of a group, or END
    volatile int* counts;
    int stages, slot;
    uint32_t parity;

    __device__ void advance() {
        if (++slot == stages) {
            slot = 0;
            parity ^= 1;
        }
    }
    __device__ uint32_t at() const { return base + slot * STAGE; }
    __device__ uint32_t full_at() const { return full + slot * 8; }
    __device__ uint32_t empty_at() const { return empty + slot * 8; }
};

constexpr int END = -1;

struct RingState {
    uint64_t full[MOST_STAGES], empty[MOST_STAGES];
    int units[MOST_STAGES], counts[MOST_STAGES];
};

// An empty ring at the start of a block's memory.
__device__ Ring start_ring(unsigned char* shared, RingState& state, int stages) {
    const Ring ring = {shared_address(shared), shared_address(state.full), shared_address(state.empty),
                       state.units,            state.counts,               stages,
                       0,                      0};
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; ++i) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(ring.full + i * 8) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ring.empty + i * 8), "n"(WARPS) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    return ring;
}

// The ninth warp: all 32 lanes call its functions.
struct Producer {
    Ring ring;
    uint64_t policy;
    // The oldest stage that may be under way.
    int oldest = 0;
    uint32_t oldest_parity = 0;
    int under_way = 0;

    __device__ explicit Producer(const Ring& ring) : ring(ring) {
        // Weights are read once in a step and must not drive keys, values and rows out of the cache.
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    }

    // Until there is room, and few enough copies are under way.
    __device__ void wait() {
        if (under_way < UNDER_WAY) {
            ++under_way;
        } else {
            wait_phase(ring.full + oldest * 8, oldest_parity);
            if (++oldest == ring.stages) {
                oldest = 0;
                oldest_parity ^= 1;
            }
        }
        wait_phase(ring.empty_at(), ring.parity ^ 1);
    }

    // Eight rows of `row_bytes`: `bytes` of each.
    __device__ void fill(const bf16* from, int bytes, size_t row_bytes, int unit, int units) {
        const int lane = threadIdx.x % 32;
        wait();
        if (lane == 0) {
            ring.units[ring.slot] = unit;
            ring.counts[ring.slot] = units;
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ring.full_at()),
                         "r"(bytes * TILE)
                         : "memory");
        }
        __syncwarp();
        if (lane < TILE)
            asm volatile(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
                "%4;" ::"r"(ring.at() + lane * STAGE_ROW),
                "l"(reinterpret_cast<const char*>(from) + lane * row_bytes), "r"(bytes), "r"(ring.full_at()), "l"(policy)
                : "memory");
        ring.advance();
    }

    __device__ void group(const Product& p, const bf16* w, int unit, int units) {
        const size_t row = p.inputs;
        for (int k = 0; k < p.inputs; k += STAGE_K) {
            const int bytes = min(STAGE_K, p.inputs - k) * 2;
            for (int t = 0; t < units * p.tiles(); ++t)
                fill(w + p.row(unit, t) * row + k, bytes, 2 * row, unit, units);
        }
    }

    // `taken` counts the units that somebody took beyond the blocks' own; null: there are none.
    __device__ void stream(const Product& p, const bf16* w, int* taken) {
        const int lane = threadIdx.x % 32;
        // A unit at a time: what is left at the end is little.
        auto take = [&] { return lane == 0 ? atomicAdd(taken, 1) : 0; };
        int next = taken ? take() : 0;
        for (int unit = p.first; unit < p.end; unit += p.group()) group(p, w, unit, min(p.group(), p.end - unit));
        if (taken)
            for (;;) {
                const int unit = p.shared + __shfl_sync(0xffffffffu, next, 0);
                if (unit >= p.units()) break;
                next = take();
                group(p, w, unit, 1);
            }
        wait();
        // No lane waits any more for the phase that the end lets pass.
        __syncwarp();
        if (lane == 0) {
            ring.units[ring.slot] = END;
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ring.full_at()) : "memory");
        }
        ring.advance();
    }
};

__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void computing_sync() { asm volatile("bar.sync 1, %0;" ::"n"(COMPUTING) : "memory"); }

// A warp's share of the rows of one stage: 128 k.
struct RowPart {
    uint4 k32[4];

    // From a block's copy.
    __device__ __forceinline__ void load(uint32_t rows_at, int rows, int inputs, int k) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint32_t from = rows_at + (g * (inputs + ROW_PADDING) + k + 8 * t) * 2;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            k32[j] = make_uint4(0, 0, 0, 0);
            if (k + 32 * j < inputs && g < rows)
                asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                             : "=r"(k32[j].x), "=r"(k32[j].y), "=r"(k32[j].z), "=r"(k32[j].w)
                             : "r"(from + 64 * j)
                             : "memory");
        }
    }

    __device__ __forceinline__ void load(const bf16* x, int rows, int inputs, int k) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int at = k + 32 * j;
            const bf16* from = x + (size_t)g * inputs + at + 8 * t;
            k32[j] = at < inputs && g < rows ? __ldcg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
        }
    }
};

// A block's memory beside the ring.
struct Room {
    uint32_t rows;   // address of a copy of the rows, where they fit
    int row_bytes;   // room for it
    float* sums;     // [WARPS][TILES][rows][TILE]
    float* squares;  // [TILES][rows] of a group
    float* scale;    // [rows]
    int* turned;     // heads that are whole
};

__device__ __forceinline__ void leave_stage(const Ring& ring) {
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ring.empty_at()) : "memory");
}

// Copies the rows of a product into the block's memory: one wait for the cache instead of one every 1024 k, which takes
// long while weights stream. To be called by all computing warps.
__device__ __forceinline__ void copy_rows(uint32_t to, const bf16* x, int rows, int inputs) {
    const int pieces = inputs / 8;
    for (int row = 0; row < rows; ++row)
        for (int i = threadIdx.x; i < pieces; i += COMPUTING)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + (row * (inputs + ROW_PADDING) + 8 * i) * 2),
                         "l"(x + (size_t)row * inputs + 8 * i)
                         : "memory");
}

// The computing warps' part of a product, with a copy of the rows or without. `begin()` is called when the first rows are
// asked for; `end_tiles(unit, count)` by all of them when the warps' sums of a group of `count` matrix tiles are in
// `room.sums`; it must have a barrier behind its last read of them.
template <bool COPY, typename Begin, typename End>
__device__ __forceinline__ void multiply_from(Ring& ring, const Product& p, const bf16* x, int rows, Room room, Begin begin,
                                              End end_tiles) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int own = warp * 128;
    RowPart part, next;
    if (COPY)
        copy_rows(room.rows, x, rows, p.inputs);
    else
        next.load(x, rows, p.inputs, own);
    begin();
    if (COPY) {
        asm volatile("cp.async.wait_all;" ::: "memory");
        computing_sync();
    }
    for (;;) {
        wait_phase(ring.full_at(), ring.parity);
        const int unit = ring.units[ring.slot], tiles = ring.counts[ring.slot] * p.tiles();
        if (unit == END) break;
        // Two sums a tile: half as long a chain of instructions.
        float c[TILES][4] = {}, d[TILES][4] = {};
        for (int k = 0; k < p.inputs; k += STAGE_K) {
            if (COPY) {
                part.load(room.rows, rows, p.inputs, own + k);
            } else {
                part = next;
                // The last one's successor is the first of the next group.
                next.load(x, rows, p.inputs, own + (k + STAGE_K < p.inputs ? k + STAGE_K : 0));
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                if (n >= tiles) continue;
                wait_phase(ring.full_at(), ring.parity);
                const uint32_t from = ring.at() + g * STAGE_ROW + (own + 8 * t) * 2;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (k + own + 32 * j >= p.inputs) continue;
                    uint4 b;
                    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                                 : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w)
                                 : "r"(from + 64 * j)
                                 : "memory");
                    // Rows 8 to 15 of the instruction are none.
                    mma(c[n], part.k32[j].x, 0, part.k32[j].y, 0, b.x, b.y);
                    mma(d[n], part.k32[j].z, 0, part.k32[j].w, 0, b.z, b.w);
                }
                leave_stage(ring);
                ring.advance();
            }
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            if (n >= tiles || g >= rows) continue;
            *reinterpret_cast<float2*>(room.sums + ((warp * TILES + n) * rows + g) * TILE + 2 * t) =
                make_float2(c[n][0] + d[n][0], c[n][1] + d[n][1]);
        }
        computing_sync();
        end_tiles(unit, tiles);
    }
    leave_stage(ring);
    ring.advance();
}

template <typename Begin, typename End>
__device__ __forceinline__ void multiply(Ring& ring, const Product& p, const bf16* x, int rows, const Room& room,
                                         Begin begin, End end_tiles) {
    if (rows * (p.inputs + ROW_PADDING) * 2 <= room.row_bytes)
        multiply_from<true>(ring, p, x, rows, room, begin, end_tiles);
    else
        multiply_from<false>(ring, p, x, rows, room, begin, end_tiles);
}

// The sum of the warps' sums of one output of a group: index o + 8 * (row + rows * tile).
__device__ __forceinline__ float summed(const Room& room, int rows, int index) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += room.sums[w * TILES * rows * TILE + index];
    return sum;
}
