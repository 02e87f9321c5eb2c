// All that lies between the attentions of two layers as one kernel, for few rows: output product and residual, gate and
// up, down and residual of one layer, then q, k, v, RoPE and the write to the pages of the next.
//
// A decode step streams every weight once, and nothing else takes time worth naming: what costs is each moment in which
// the memory stands still. So one block lives on each multiprocessor. Its ninth warp copies weights into a ring of shared
// memory, product after product, and never waits for anything but room; eight warps compute. Where these must wait (for
// the attention before, for the other blocks between products) the ring fills, and memory goes on.
//
// Tensor cores do the sums (m16n8k16: 16 rows, of which 8 are used, and 8 outputs). A tile is 8 outputs; a stage of the ring is 8 outputs by 1024
// k, of which each warp takes 128: within 32 k, lane t of a quad takes k = 8t .. 8t+7 of matrix and rows alike (a sum
// does not mind in which order the instruction thinks its k come). Warps' sums are added in warp order: a row's bits do
// not depend on the rows beside it, and are the same in every run.
//
// Several GPUs that share the layers: block b of each has the same outputs of a product that ends in the residual stream, so
// it exchanges sums with the blocks b of the others alone, by words in their memory that carry their own flags (as push
// in exchange.cu), and adds them in the order of ranks: all ranks hold the same bits.
//
// Norms: a product that ends in the residual stream also leaves x * weight of the norm that follows, rounded, and each
// block's sums of squares; the next product multiplies its sums by the rows' scale at the end.
#include "rope.cuh"

constexpr int WARPS = 8;  // that compute
constexpr int COMPUTING = WARPS * 32;
constexpr int TILE = 8;
constexpr int STAGE_K = 1024;
// Padded so that the four rows that a quarter of a warp reads lie in different banks.
constexpr int STAGE_ROW = STAGE_K * 2 + 64;
constexpr int STAGE = TILE * STAGE_ROW;
constexpr int ROW_PADDING = 32;  // for the same reason
constexpr int MOST_STAGES = 16;
constexpr int PREFETCHED = 8;
constexpr uint64_t PATIENCE_NS = 5000000000ull;
// Tiles that share their reads of the rows.
constexpr int TILES = 6;
constexpr int MOST_ROWS = 8;

// y = x W^T over `inputs` (a multiple of 32) k; W has `outputs` (a multiple of 8) rows, of a gate twice as many.
struct Product {
    const bf16* w;
    int inputs, outputs;
    bool gate;
    // Counts units that are taken beyond each block's share; null: each block takes what is its own.
    int* taken;

    // Units are tiles, or pairs of them for a gate; a group of them shares its reads of the rows.
    __device__ int units() const { return outputs / TILE; }
    __device__ int tiles() const { return gate ? 2 : 1; }
    __device__ int group() const { return TILES / tiles(); }
    // Multiprocessors get unequal parts of the memory's bandwidth: where there is much to do, the last third goes to
    // whoever is first.
    __device__ int share() const { return units() / (int)gridDim.x * 2 / 3; }
    __device__ int first() const { return taken ? share() * blockIdx.x : (int)((long long)units() * blockIdx.x / gridDim.x); }
    __device__ int end() const {
        return taken ? share() * (blockIdx.x + 1) : (int)((long long)units() * (blockIdx.x + 1) / gridDim.x);
    }
    // Row of W of matrix tile `t` of the units from `unit` on.
    __device__ int row(int unit, int t) const {
        return gate ? t % 2 * outputs + (unit + t / 2) * TILE : (unit + t) * TILE;
    }
};

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void wait_phase(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra.uni DONE;\n"
        "bra.uni WAIT;\nDONE:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

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
    int filled = 0;

    __device__ explicit Producer(const Ring& ring) : ring(ring) {
        // Weights are read once in a step and must not drive keys, values and rows out of the cache.
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    }

    __device__ void fill(const Product& p, int unit, int units, int k, int t) {
        const int lane = threadIdx.x % 32, bytes = min(STAGE_K, p.inputs - k) * 2;
        wait_phase(ring.empty_at(), ring.parity ^ 1);
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
                "l"(p.w + (size_t)(p.row(unit, t) + lane) * p.inputs + k), "r"(bytes), "r"(ring.full_at()), "l"(policy)
                : "memory");
        ring.advance();
    }

    __device__ void group(const Product& p, int unit, int units) {
        for (int k = 0; k < p.inputs; k += STAGE_K)
            for (int t = 0; t < units * p.tiles(); ++t) {
                fill(p, unit, units, k, t);
                if (++filled == ring.stages) prefetch(p, unit, units, k, t + 1);
            }
    }

    // The ring is full for the first time, and the attention before takes longer yet: brings a few more stages of the group
    // as far as the cache.
    __device__ void prefetch(const Product& p, int unit, int units, int k, int t) {
        const int lane = threadIdx.x % 32, tiles = units * p.tiles();
        for (int more = 0; more < PREFETCHED; ++more, ++t) {
            if (t == tiles) {
                t = 0;
                k += STAGE_K;
            }
            if (k >= p.inputs) break;
            if (lane < TILE)
                asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                                 p.w + (size_t)(p.row(unit, t) + lane) * p.inputs + k),
                             "r"(min(STAGE_K, p.inputs - k) * 2)
                             : "memory");
        }
    }

    __device__ void stream(const Product& p) {
        const int lane = threadIdx.x % 32, end = p.end();
        // A unit at a time: what is left at the end is little.
        auto take = [&] { return lane == 0 ? atomicAdd(p.taken, 1) : 0; };
        int next = p.taken ? take() : 0;
        for (int unit = p.first(); unit < end; unit += p.group()) group(p, unit, min(p.group(), end - unit));
        if (p.taken)
            for (;;) {
                const int unit = p.share() * gridDim.x + __shfl_sync(0xffffffffu, next, 0);
                if (unit >= p.units()) break;
                next = take();
                group(p, unit, 1);
            }
        wait_phase(ring.empty_at(), ring.parity ^ 1);
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
// `room.sums`; it must end with a barrier.
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

// The ranks that share the layers. Mailboxes: addresses by rank; words of one: [epoch % 2][source][MOST_ROWS][hidden / 2].
struct Peers {
    const uint64_t* mailboxes;
    unsigned* epochs;  // exchanges of each block so far
    unsigned* failed;  // in the host's memory: 1 + the rank that waited too long
    int rank, ranks;
};

__device__ __forceinline__ uint64_t nanoseconds() {
    uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
}

// Puts the sums over all ranks of a group's outputs where the first warp's sums were. A word is written again two
// exchanges later, when the reader's own words of the exchange between have come: it has read this one.
__device__ __forceinline__ void exchange(const Peers& peers, unsigned epoch, int first_tile, int tiles, int width, int rows,
                                         const Room& room) {
    const size_t source = (size_t)MOST_ROWS * (width / 2);
    auto word = [&](int mailbox, int from, int pair) {
        const int row = 2 * pair / TILE % rows, n = (first_tile + 2 * pair / (TILE * rows)) * TILE + 2 * pair % TILE;
        return reinterpret_cast<uint4*>(peers.mailboxes[mailbox]) + ((epoch % 2) * peers.ranks + from) * source +
               (size_t)row * (width / 2) + n / 2;
    };
    const int pairs = tiles * rows * TILE / 2;
    for (int i = threadIdx.x; i < pairs; i += COMPUTING) {
        const float a = summed(room, rows, 2 * i), b = summed(room, rows, 2 * i + 1);
        room.sums[2 * i] = a;
        room.sums[2 * i + 1] = b;
        for (int rank = 0; rank < peers.ranks; ++rank)
            if (rank != peers.rank)
                asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(word(rank, peers.rank, i)),
                             "r"(__float_as_uint(a)), "r"(epoch), "r"(__float_as_uint(b)), "r"(epoch)
                             : "memory");
    }
    for (int i = threadIdx.x; i < pairs; i += COMPUTING) {
        float a = 0.0f, b = 0.0f;
        for (int rank = 0; rank < peers.ranks; ++rank) {
            if (rank == peers.rank) {
                a += room.sums[2 * i];
                b += room.sums[2 * i + 1];
                continue;
            }
            const uint4* at = word(peers.rank, rank, i);
            uint4 found;
            unsigned tries = 0;
            uint64_t start = 0;
            do {
                asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
                             : "l"(at)
                             : "memory");
                if (++tries % 4096 != 0) continue;
                const uint64_t time = nanoseconds();
                if (start == 0) start = time;
                // One word that does not come is enough: nobody waits any more.
                if (*(volatile unsigned*)peers.failed != 0) break;
                if (time - start > PATIENCE_NS) *(volatile unsigned*)peers.failed = peers.rank + 1;
            } while (found.y != epoch || found.w != epoch);
            a += __uint_as_float(found.x);
            b += __uint_as_float(found.z);
        }
        room.sums[2 * i] = a;
        room.sums[2 * i + 1] = b;
    }
    computing_sync();
}

// x += y; normed = x * norm (null: not wanted), and this block's sums of squares.
__device__ void multiply_add(Ring& ring, const Product& p, const bf16* from, float* x, const float* norm, bf16* normed,
                             float* squares, int rows, Room room, const Peers& peers, unsigned epoch) {
    float total = 0.0f;  // thread r: of row r
    auto place = [&](int unit, int i) {
        const int n = (unit + i / (TILE * rows)) * TILE + i % TILE;
        return (size_t)(i / TILE % rows) * p.outputs + n;
    };
    // What a thread adds to first it reads early: only this block has written it.
    const int early = min(p.group(), p.end() - p.first()) * rows * TILE;
    float before = 0.0f;
    auto begin = [&] {
        if (threadIdx.x < early) before = __ldcg(x + place(p.first(), threadIdx.x));
    };
    multiply(ring, p, from, rows, room, begin, [&](int unit, int tiles) {
        const int all = tiles * rows * TILE;
        if (peers.ranks > 1) exchange(peers, epoch, unit, tiles, p.outputs, rows, room);
        for (int base = 0; base < all; base += COMPUTING) {
            const int i = base + threadIdx.x;
            float square = 0.0f;
            if (i < all) {
                const size_t at = place(unit, i);
                const float sum = peers.ranks > 1 ? room.sums[i] : summed(room, rows, i);
                const float value = (unit == p.first() && base == 0 ? before : __ldcg(x + at)) + sum;
                x[at] = value;
                if (norm) normed[at] = from_float<bf16>(value * norm[at % p.outputs]);
                square = value * value;
            }
            for (int offset = 1; offset < TILE; offset <<= 1) square += __shfl_xor_sync(0xffffffffu, square, offset);
            if (i < all && i % TILE == 0) room.squares[i / TILE] = square;
        }
        computing_sync();
        if (threadIdx.x < rows)
            for (int t = 0; t < tiles; ++t) total += room.squares[t * rows + threadIdx.x];
    });
    if (norm && threadIdx.x < rows) squares[threadIdx.x * gridDim.x + blockIdx.x] = total;
}

// Each row's scale out of all blocks' sums of squares; seen after the next computing_sync().
__device__ __forceinline__ void row_scales(const float* squares, int rows, int width, float epsilon, Room room) {
    for (int row = threadIdx.x / 32; row < rows; row += WARPS) {
        float sum = 0.0f;
        for (int b = threadIdx.x % 32; b < gridDim.x; b += 32) sum += __ldcg(squares + row * gridDim.x + b);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) room.scale[row] = rsqrtf(sum / width + epsilon);
    }
}

// Waits until every block has come here: what they wrote is seen. All blocks run at once, one a multiprocessor.
// `target`: the count that the counter, which only grows, then has.
__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned target) {
    computing_sync();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        unsigned now, turns = 0;
        uint64_t start = 0;
        for (;;) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
            if (static_cast<int>(now - target) >= 0) break;
            if (++turns % 4096 != 0) continue;
            const uint64_t time = nanoseconds();
            if (start == 0) start = time;
            // Some block never came: the device reports the trap, and the rank ends.
            if (time - start > PATIENCE_NS) __trap();
        }
    }
    computing_sync();
}

struct Front {
    const bf16 *o, *gate_up, *down;  // o null: there is none
    const float* norm;               // of the feed-forward
    const bf16* attended;
    bf16* gated;
};

struct Back {
    const bf16* qkv;  // null: there is none
    const float* norm;
    bf16* out;
    RopeHeads of;
};

struct Between {
    float* x;         // residual stream
    bf16* normed;     // rows times the next norm's weights
    float* squares;   // [rows][blocks]
    unsigned* barrier;  // blocks that came to barriers so far
    int* done;        // tiles of each head of q, k and v that are stored; zero before and after
    int* taken;       // units of gate and up beyond the blocks' shares; zero before
    int* forget;      // the same of another launch, to be zero again
    int rows, hidden, queries, feed_forward, stages, row_bytes;
    float epsilon;
};

template <int D>
__device__ __forceinline__ void between(const Front& front, const Back& back, const Between& b, const Peers& peers) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ RingState state;
    __shared__ float squares[TILES * MOST_ROWS], scale[MOST_ROWS];
    __shared__ int turned[TILES + 1];
    float* const sums = reinterpret_cast<float*>(shared + b.stages * STAGE);
    const Room room = {shared_address(sums + WARPS * TILES * b.rows * TILE), b.row_bytes, sums, squares, scale, turned};
    Ring ring = start_ring(shared, state, b.stages);
    launch_dependents();

    const int keys = back.of.kv_heads * D;
    const Product o = {front.o, b.queries, b.hidden, false, nullptr};
    const Product gate_up = {front.gate_up, b.hidden, b.feed_forward, true, b.taken};
    const Product down = {front.down, b.feed_forward, b.hidden, false, nullptr};
    const Product qkv = {back.qkv, b.hidden, b.queries + 2 * keys, false, nullptr};

    if (threadIdx.x >= COMPUTING) {
        // Weights are never written while a model runs: nothing need be waited for.
        Producer producer(ring);
        if (o.w) {
            producer.stream(o);
            producer.stream(gate_up);
            producer.stream(down);
        }
        if (qkv.w) producer.stream(qkv);
        return;
    }
    wait_for_inputs();

    // Without a product before, a kernel of the norm's own has scaled the rows.
    auto scales = [&] {
        if (o.w)
            row_scales(b.squares, b.rows, b.hidden, b.epsilon, room);
        else if (threadIdx.x < b.rows)
            room.scale[threadIdx.x] = 1.0f;
    };
    if (blockIdx.x == 0 && threadIdx.x == 0) *b.forget = 0;
    const unsigned epoch = peers.ranks > 1 ? peers.epochs[blockIdx.x] : 0;
    // A whole number of barriers: all of the launches before are over.
    const unsigned reached = __ldcg(b.barrier);
    if (o.w) {
        multiply_add(ring, o, front.attended, b.x, front.norm, b.normed, b.squares, b.rows, room, peers, epoch + 1);
        grid_barrier(b.barrier, reached + gridDim.x);
        multiply(ring, gate_up, b.normed, b.rows, room, scales, [&](int unit, int tiles) {
            for (int i = threadIdx.x; i < tiles / 2 * b.rows * TILE; i += COMPUTING) {
                const int each = b.rows * TILE, row = i / TILE % b.rows, pair = i / each;
                const float g = summed(room, b.rows, i + pair * each) * room.scale[row];
                const float u = summed(room, b.rows, i + (pair + 1) * each) * room.scale[row];
                front.gated[(size_t)row * b.feed_forward + (unit + pair) * TILE + i % TILE] =
                    from_float<bf16>(g / (1.0f + __expf(-g)) * u);
            }
            computing_sync();
        });
        grid_barrier(b.barrier, reached + 2 * gridDim.x);
        multiply_add(ring, down, front.gated, b.x, qkv.w ? back.norm : nullptr, b.normed, b.squares, b.rows, room,
                           peers, epoch + 2);
        if (peers.ranks > 1 && threadIdx.x == 0) peers.epochs[blockIdx.x] = epoch + 2;
    }
    if (!qkv.w) return;
    if (o.w) grid_barrier(b.barrier, reached + 3 * gridDim.x);
    multiply(ring, qkv, b.normed, b.rows, room, scales, [&](int unit, int tiles) {
        for (int i = threadIdx.x; i < tiles * b.rows * TILE; i += COMPUTING) {
            const int row = i / TILE % b.rows, n = (unit + i / (TILE * b.rows)) * TILE + i % TILE;
            back.out[(size_t)row * qkv.outputs + n] = from_float<bf16>(summed(room, b.rows, i) * room.scale[row]);
        }
        computing_sync();
        // Whoever stores the last tile of a head turns it: the rows of a head, a warp each.
        constexpr int EACH = D / TILE;
        const int first = unit / EACH, last = (unit + tiles - 1) / EACH;
        if (threadIdx.x == 0) {
            __threadfence();
            for (int head = first; head <= last; ++head) {
                const int own = min(unit + tiles, (head + 1) * EACH) - max(unit, head * EACH);
                const bool whole = atomicAdd(b.done + head, own) + own == EACH;
                if (whole) b.done[head] = 0;
                room.turned[head - first] = whole;
            }
            __threadfence();
        }
        computing_sync();
        for (int head = first; head <= last; ++head)
            if (room.turned[head - first])
                for (int row = threadIdx.x / 32; row < b.rows; row += WARPS)
                    rope_head<bf16, D>(back.out, row, head, back.of);
        computing_sync();
    });
#endif
}

// out (float) = x W^T: the output layer of rows that are normed.
__device__ __forceinline__ void head_rows(const Product& p, const bf16* x, float* out, int rows, int stages,
                                          int row_bytes) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ RingState state;
    float* const sums = reinterpret_cast<float*>(shared + stages * STAGE);
    const Room room = {shared_address(sums + WARPS * TILES * rows * TILE), row_bytes, sums, nullptr, nullptr, nullptr};
    Ring ring = start_ring(shared, state, stages);
    launch_dependents();
    if (threadIdx.x >= COMPUTING) {
        Producer(ring).stream(p);
        return;
    }
    wait_for_inputs();
    multiply(ring, p, x, rows, room, [] {}, [&](int unit, int tiles) {
        for (int i = threadIdx.x; i < tiles * rows * TILE; i += COMPUTING) {
            const int row = i / TILE % rows, n = (unit + i / (TILE * rows)) * TILE + i % TILE;
            out[(size_t)row * p.outputs + n] = summed(room, rows, i);
        }
        computing_sync();
    });
#endif
}

extern "C" __global__ void __launch_bounds__(COMPUTING + 32, 1)
    head(const bf16* w, const bf16* x, float* out, int rows, int inputs, int outputs, int stages, int row_bytes) {
    head_rows({w, inputs, outputs, false, nullptr}, x, out, rows, stages, row_bytes);
}

#define BETWEEN(D)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(COMPUTING + 32, 1) between_##D(                                      \
        const bf16* o, const bf16* gate_up, const bf16* down, const float* norm, const bf16* attended, bf16* gated,   \
        const bf16* qkv, const float* next_norm, bf16* out, const float* bias, const float* q_norm,                   \
        const float* k_norm, const int* positions, const int* slots, const float2* angles, int dims, int style,       \
        void* full, long long full_page, const int* full_table, long long full_stride, void* window,                  \
        long long window_page, const int* window_table, long long window_stride, const int2* places, int heads,       \
        int kv_heads, float* x, bf16* normed, float* squares, unsigned* barrier, int* done, int* taken, int* forget,  \
        int rows, int hidden, int feed_forward, int stages, int row_bytes, float epsilon, const uint64_t* mailboxes,  \
        unsigned* epochs, unsigned* failed, int rank, int ranks) {                                                    \
        const Front front = {o, gate_up, down, norm, attended, gated};                                                \
        const Back back = {qkv,                                                                                       \
                           next_norm,                                                                                 \
                           out,                                                                                       \
                           {bias, q_norm, k_norm, positions, slots, {angles, dims, style},                            \
                            {full, full_page, full_table, full_stride},                                               \
                            {window, window_page, window_table, window_stride}, places, heads, kv_heads, epsilon}};   \
        const Between b = {x,    normed, squares,   barrier,      done,   taken,  forget,                             \
                           rows, hidden, heads * D, feed_forward, stages, row_bytes, epsilon};                        \
        between<D>(front, back, b, {mailboxes, epochs, failed, rank, ranks});                                         \
    }

BETWEEN(64)
BETWEEN(128)
