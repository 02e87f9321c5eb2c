// All that lies between the attentions of two layers as one kernel, for few rows: output product and residual, gate and
// up, down and residual of one layer, then q, k, v, RoPE and the write to the pages of the next.
//
// A decode step streams every weight once, and nothing else takes time worth naming: what costs is each moment in which
// the memory stands still. So one block lives on each multiprocessor. Its ninth warp copies weights into a ring of shared
// memory, product after product, and never waits for anything but room; eight warps compute. Where these must wait (for
// the attention before, for the other blocks between products) the ring fills, and memory goes on.
//
// Tensor cores do the sums (m16n8k16: 16 rows, 8 outputs). A tile is 8 outputs; a stage of the ring is 8 outputs by 1024
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
constexpr int MOST_STAGES = 16;
constexpr uint64_t PATIENCE_NS = 5000000000ull;
// Tiles that share their reads of the rows.
constexpr int TILES = 6;
constexpr int MOST_ROWS = 16;
// A bound of so many threads leaves each 128 registers: a block of attention finds room beside this kernel's.
constexpr int REGISTERS_128 = 512;

// y = x W^T over `inputs` (a multiple of 32) k; W has `outputs` (a multiple of 8) rows, of a gate twice as many.
struct Product {
    const bf16* w;
    int inputs, outputs;
    bool gate;

    // Matrix tiles of one unit, which a block takes as a whole.
    __device__ int tiles() const { return gate ? 2 : 1; }
    __device__ int first() const { return (int)((long long)(outputs / TILE) * blockIdx.x / gridDim.x); }
    __device__ int end() const { return (int)((long long)(outputs / TILE) * (blockIdx.x + 1) / gridDim.x); }
    __device__ int group() const { return TILES / tiles(); }
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

// Stages of weights on their way from memory.
struct Ring {
    uint32_t base, full, empty;  // addresses in shared memory
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

struct Barriers {
    uint64_t full[MOST_STAGES], empty[MOST_STAGES];
};

// An empty ring at the start of a block's memory.
__device__ Ring start_ring(unsigned char* shared, Barriers& barriers, int stages) {
    const Ring ring = {shared_address(shared), shared_address(barriers.full), shared_address(barriers.empty), stages, 0, 0};
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

// The ninth warp's part of a product.
__device__ void stream_weights(Ring& ring, const Product& p, uint64_t policy) {
    const int lane = threadIdx.x % 32, end = p.end();
    for (int unit = p.first(); unit < end; unit += p.group()) {
        const int tiles = min(p.group(), end - unit) * p.tiles();
        for (int k = 0; k < p.inputs; k += STAGE_K) {
            const int bytes = min(STAGE_K, p.inputs - k) * 2;
            for (int t = 0; t < tiles; ++t) {
                wait_phase(ring.empty_at(), ring.parity ^ 1);
                if (lane == 0)
                    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ring.full_at()),
                                 "r"(bytes * TILE)
                                 : "memory");
                __syncwarp();
                if (lane < TILE)
                    asm volatile(
                        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
                        "[%3], %4;" ::"r"(ring.at() + lane * STAGE_ROW),
                        "l"(p.w + (size_t)(p.row(unit, t) + lane) * p.inputs + k), "r"(bytes), "r"(ring.full_at()),
                        "l"(policy)
                        : "memory");
                ring.advance();
            }
        }
    }
}

__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void computing_sync() { asm volatile("bar.sync 1, %0;" ::"n"(COMPUTING) : "memory"); }

// A warp's share of the rows of one stage: 128 k of row g and, where TALL, of row g + 8.
template <bool TALL> struct RowPart {
    uint4 low[4], high[TALL ? 4 : 1];

    __device__ __forceinline__ void load(const bf16* x, int rows, int inputs, int k) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int at = k + 32 * j;
            const bf16* from = x + (size_t)g * inputs + at + 8 * t;
            low[j] = at < inputs && g < rows ? __ldcg(reinterpret_cast<const uint4*>(from)) : none;
            if (TALL)
                high[j] = at < inputs && g + 8 < rows
                              ? __ldcg(reinterpret_cast<const uint4*>(from + (size_t)8 * inputs))
                              : none;
        }
    }
};

// A block's memory beside the ring.
struct Room {
    float* sums;     // [WARPS][TILES][rows][TILE]
    float* squares;  // [TILES][rows] of a group
    float* scale;    // [rows]
    int* turned;     // heads that are whole
};

// The computing warps' part of a product. `begin()` is called when the first rows are asked for; `end_tiles(unit, count)`
// by all of them when the warps' sums of a group of `count` matrix tiles are in `room.sums`; it must end with a barrier.
template <bool TALL, typename Begin, typename End>
__device__ __forceinline__ void multiply(Ring& ring, const Product& p, const bf16* x, int rows, Room room, Begin begin,
                                         End end_tiles) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int end = p.end(), own = warp * 128;
    RowPart<TALL> part, next;
    if (p.first() < end) next.load(x, rows, p.inputs, own);
    begin();
    for (int unit = p.first(); unit < end; unit += p.group()) {
        const int tiles = min(p.group(), end - unit) * p.tiles();
        float c[TILES][4] = {};
        for (int k = 0; k < p.inputs; k += STAGE_K) {
            part = next;
            // The last one's successor is the first of the next group.
            next.load(x, rows, p.inputs, own + (k + STAGE_K < p.inputs ? k + STAGE_K : 0));
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
                    const uint4 a = part.low[j], h = TALL ? part.high[j] : make_uint4(0, 0, 0, 0);
                    mma(c[n], a.x, h.x, a.y, h.y, b.x, b.y);
                    mma(c[n], a.z, h.z, a.w, h.w, b.z, b.w);
                }
                __syncwarp();
                if (lane == 0)
                    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ring.empty_at()) : "memory");
                ring.advance();
            }
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            if (n >= tiles) continue;
            float* to = room.sums + ((warp * TILES + n) * rows) * TILE + 2 * t;
            if (g < rows) *reinterpret_cast<float2*>(to + g * TILE) = make_float2(c[n][0], c[n][1]);
            if (TALL && g + 8 < rows) *reinterpret_cast<float2*>(to + (g + 8) * TILE) = make_float2(c[n][2], c[n][3]);
        }
        computing_sync();
        end_tiles(unit, tiles);
    }
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
template <bool TALL>
__device__ void multiply_add(Ring& ring, const Product& p, const bf16* from, float* x, const float* norm, bf16* normed,
                             float* squares, int rows, Room room, const Peers& peers, unsigned epoch) {
    float total = 0.0f;  // thread r: of row r
    multiply<TALL>(ring, p, from, rows, room, [] {}, [&](int unit, int tiles) {
        const int all = tiles * rows * TILE;
        if (peers.ranks > 1) exchange(peers, epoch, unit, tiles, p.outputs, rows, room);
        for (int base = 0; base < all; base += COMPUTING) {
            const int i = base + threadIdx.x;
            float square = 0.0f;
            if (i < all) {
                const int row = i / TILE % rows, n = (unit + i / (TILE * rows)) * TILE + i % TILE;
                const size_t at = (size_t)row * p.outputs + n;
                const float sum = peers.ranks > 1 ? room.sums[i] : summed(room, rows, i);
                const float value = __ldcg(x + at) + sum;
                x[at] = value;
                if (norm) normed[at] = from_float<bf16>(value * norm[n]);
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
__device__ void grid_barrier(unsigned* counter) {
    computing_sync();
    if (threadIdx.x == 0) {
        __threadfence();
        // The top bit changes when all have added: nothing is set back, and no epoch is needed.
        const unsigned mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1;
        const unsigned before = atomicAdd(counter, mine);
        unsigned now, turns = 0;
        uint64_t start = 0;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
            if (++turns % 4096 != 0) continue;
            const uint64_t time = nanoseconds();
            if (start == 0) start = time;
            // Some block never came: the device reports the trap, and the rank ends.
            if (time - start > PATIENCE_NS) __trap();
        } while (((before ^ now) & 0x80000000u) == 0);
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
    unsigned* barrier;
    int* done;        // tiles of each head of q, k and v that are stored; zero before and after
    int rows, hidden, queries, feed_forward, stages;
    float epsilon;
};

template <int D, bool TALL>
__device__ __forceinline__ void between(const Front& front, const Back& back, const Between& b, const Peers& peers) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ Barriers barriers;
    __shared__ float squares[TILES * MOST_ROWS], scale[MOST_ROWS];
    __shared__ int turned[TILES + 1];
    const Room room = {reinterpret_cast<float*>(shared + b.stages * STAGE), squares, scale, turned};
    Ring ring = start_ring(shared, barriers, b.stages);
    launch_dependents();

    const int keys = back.of.kv_heads * D;
    const Product o = {front.o, b.queries, b.hidden, false};
    const Product gate_up = {front.gate_up, b.hidden, b.feed_forward, true};
    const Product down = {front.down, b.feed_forward, b.hidden, false};
    const Product qkv = {back.qkv, b.hidden, b.queries + 2 * keys, false};

    if (threadIdx.x >= COMPUTING) {
        // Weights are never written while a model runs: nothing need be waited for. They are read once in a step and
        // must not drive keys, values and rows out of the cache.
        uint64_t policy;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        if (o.w) {
            stream_weights(ring, o, policy);
            stream_weights(ring, gate_up, policy);
            stream_weights(ring, down, policy);
        }
        if (qkv.w) stream_weights(ring, qkv, policy);
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
    const unsigned epoch = peers.ranks > 1 ? peers.epochs[blockIdx.x] : 0;
    if (o.w) {
        multiply_add<TALL>(ring, o, front.attended, b.x, front.norm, b.normed, b.squares, b.rows, room, peers, epoch + 1);
        grid_barrier(b.barrier);
        multiply<TALL>(ring, gate_up, b.normed, b.rows, room, scales, [&](int unit, int tiles) {
            for (int i = threadIdx.x; i < tiles / 2 * b.rows * TILE; i += COMPUTING) {
                const int each = b.rows * TILE, row = i / TILE % b.rows, pair = i / each;
                const float g = summed(room, b.rows, i + pair * each) * room.scale[row];
                const float u = summed(room, b.rows, i + (pair + 1) * each) * room.scale[row];
                front.gated[(size_t)row * b.feed_forward + (unit + pair) * TILE + i % TILE] =
                    from_float<bf16>(g / (1.0f + __expf(-g)) * u);
            }
            computing_sync();
        });
        grid_barrier(b.barrier);
        multiply_add<TALL>(ring, down, front.gated, b.x, qkv.w ? back.norm : nullptr, b.normed, b.squares, b.rows, room,
                           peers, epoch + 2);
        if (peers.ranks > 1 && threadIdx.x == 0) peers.epochs[blockIdx.x] = epoch + 2;
    }
    if (!qkv.w) return;
    if (o.w) grid_barrier(b.barrier);
    multiply<TALL>(ring, qkv, b.normed, b.rows, room, scales, [&](int unit, int tiles) {
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
template <bool TALL>
__device__ __forceinline__ void head(const bf16* w, const bf16* x, float* out, int rows, int inputs, int outputs,
                                     int stages) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ Barriers barriers;
    const Room room = {reinterpret_cast<float*>(shared + stages * STAGE), nullptr, nullptr, nullptr};
    Ring ring = start_ring(shared, barriers, stages);
    launch_dependents();
    const Product p = {w, inputs, outputs, false};
    if (threadIdx.x >= COMPUTING) {
        uint64_t policy;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        stream_weights(ring, p, policy);
        return;
    }
    wait_for_inputs();
    multiply<TALL>(ring, p, x, rows, room, [] {}, [&](int unit, int tiles) {
        for (int i = threadIdx.x; i < tiles * rows * TILE; i += COMPUTING) {
            const int row = i / TILE % rows, n = (unit + i / (TILE * rows)) * TILE + i % TILE;
            out[(size_t)row * outputs + n] = summed(room, rows, i);
        }
        computing_sync();
    });
#endif
}

#define BETWEEN(D, NAME, TALL)                                                                                        \
    extern "C" __global__ void __launch_bounds__(REGISTERS_128) between_##D##_##NAME(                             \
        const bf16* o, const bf16* gate_up, const bf16* down, const float* norm, const bf16* attended, bf16* gated,   \
        const bf16* qkv, const float* next_norm, bf16* out, const float* bias, const float* q_norm,                   \
        const float* k_norm, const int* positions, const int* slots, const float2* angles, int dims, int style,       \
        void* full, long long full_page, const int* full_table, long long full_stride, void* window,                  \
        long long window_page, const int* window_table, long long window_stride, const int2* places, int heads,       \
        int kv_heads, float* x, bf16* normed, float* squares, unsigned* barrier, int* done, int rows, int hidden,     \
        int feed_forward, int stages, float epsilon, const uint64_t* mailboxes, unsigned* epochs, unsigned* failed,   \
        int rank, int ranks) {                                                                                        \
        const Front front = {o, gate_up, down, norm, attended, gated};                                                \
        const Back back = {qkv,                                                                                       \
                           next_norm,                                                                                 \
                           out,                                                                                       \
                           {bias, q_norm, k_norm, positions, slots, {angles, dims, style},                            \
                            {full, full_page, full_table, full_stride},                                               \
                            {window, window_page, window_table, window_stride}, places, heads, kv_heads, epsilon}};   \
        const Between b = {x,    normed, squares,   barrier,      done,   rows,                                       \
                           hidden, heads * D, feed_forward, stages, epsilon};                                         \
        between<D, TALL>(front, back, b, {mailboxes, epochs, failed, rank, ranks});                                   \
    }

BETWEEN(64, few, false)
BETWEEN(64, tall, true)
BETWEEN(128, few, false)
BETWEEN(128, tall, true)

#define HEAD(NAME, TALL)                                                                                              \
    extern "C" __global__ void __launch_bounds__(COMPUTING + 32, 1)                                                   \
        head_##NAME(const bf16* w, const bf16* x, float* out, int rows, int inputs, int outputs, int stages) {        \
        head<TALL>(w, x, out, rows, inputs, outputs, stages);                                                         \
    }

HEAD(few, false)
HEAD(tall, true)
