// All that lies between the attentions of two layers as one kernel, for few rows: output product and residual, gate and
// up, down and residual of one layer, then q, k, v, RoPE and the write to the pages of the next.
//
// A decode step streams every weight once, and nothing else takes time worth naming: what costs is each moment in which
// the memory stands still. So one block lives on each multiprocessor. Its ninth warp copies weights into a ring of shared
// memory, product after product, and waits for room and its own copies only; eight warps compute. Where these must wait (for
// the attention before, for the other blocks between products) the ring fills, and memory goes on.
//
// Several GPUs that share the layers: block b of each has the same outputs of a product that ends in the residual stream, so
// it exchanges sums with the blocks b of the others alone, by words in their memory that carry their own flags (as push
// in exchange.cu), and adds them in the order of ranks: all ranks hold the same bits.
//
// Norms: a product that ends in the residual stream also leaves x * weight of the norm that follows, rounded, and each
// block's sums of squares; the next product multiplies its sums by the rows' scale at the end.
#include "rope.cuh"
#include "weight_ring.cuh"

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
    const int early = min(p.group(), p.end - p.first) * rows * TILE;
    float before = 0.0f;
    auto begin = [&] {
        if (threadIdx.x < early) before = __ldcg(x + place(p.first, threadIdx.x));
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
                const float value = (unit == p.first && base == 0 ? before : __ldcg(x + at)) + sum;
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
// `counter` is this launch's own; `target`: what it has then. Ranks wait for each other's words half as long: the one that
// is silent is named before a barrier ends in a trap.
__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned target) {
    computing_sync();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        unsigned now, turns = 0;
        uint64_t start = 0;
        for (;;) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
            if (now >= target) break;
            if (++turns % 4096 != 0) continue;
            const uint64_t time = nanoseconds();
            if (start == 0) start = time;
            // Some block never came: the device reports the trap, and the rank ends.
            if (time - start > 2 * PATIENCE_NS) __trap();
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
    unsigned* barrier;  // blocks that came to this launch's barriers; zero before
    int* done;        // tiles of each head of q, k and v that are stored; zero before and after
    int* taken;       // units of gate and up beyond the blocks' shares; zero before
    int* forget;      // both counts of the launch before, to be zero again
    int rows, hidden, queries, feed_forward, stages, row_bytes;
    float epsilon;
};

// C: of keys and values in pages.
template <int D, typename C>
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
    const bool has_front = front.o != nullptr, has_back = back.qkv != nullptr;
    const Product o(b.queries, b.hidden, false, false), gate_up(b.hidden, b.feed_forward, true, true);
    const Product down(b.feed_forward, b.hidden, false, false), qkv(b.hidden, b.queries + 2 * keys, false, false);

    if (threadIdx.x >= COMPUTING) {
        // Weights are never written while a model runs: nothing need be waited for.
        Producer producer(ring);
        if (has_front) {
            producer.stream(o, front.o, nullptr);
            producer.stream(gate_up, front.gate_up, b.taken);
            producer.stream(down, front.down, nullptr);
        }
        if (has_back) producer.stream(qkv, back.qkv, nullptr);
        return;
    }
    wait_for_inputs();

    // Without a product before, a kernel of the norm's own has scaled the rows.
    auto scales = [&] {
        if (has_front)
            row_scales(b.squares, b.rows, b.hidden, b.epsilon, room);
        else if (threadIdx.x < b.rows)
            room.scale[threadIdx.x] = 1.0f;
    };
    if (blockIdx.x == 0 && threadIdx.x < 2) b.forget[threadIdx.x] = 0;
    const unsigned epoch = peers.ranks > 1 ? peers.epochs[blockIdx.x] : 0;
    if (has_front) {
        multiply_add(ring, o, front.attended, b.x, front.norm, b.normed, b.squares, b.rows, room, peers, epoch + 1);
        grid_barrier(b.barrier, gridDim.x);
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
        grid_barrier(b.barrier, 2 * gridDim.x);
        multiply_add(ring, down, front.gated, b.x, has_back ? back.norm : nullptr, b.normed, b.squares, b.rows, room,
                           peers, epoch + 2);
        if (peers.ranks > 1 && threadIdx.x == 0) peers.epochs[blockIdx.x] = epoch + 2;
    }
    if (!has_back) return;
    if (has_front) grid_barrier(b.barrier, 3 * gridDim.x);
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
                    rope_head<bf16, D, C>(back.out, row, head, back.of);
        computing_sync();
    });
#endif
}

// out (float) = x W^T: the output layer of rows that are normed.
__device__ __forceinline__ void head_rows(const bf16* w, const Product& p, const bf16* x, float* out,
                                          int rows, int stages, int row_bytes) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ RingState state;
    float* const sums = reinterpret_cast<float*>(shared + stages * STAGE);
    const Room room = {shared_address(sums + WARPS * TILES * rows * TILE), row_bytes, sums, nullptr, nullptr, nullptr};
    Ring ring = start_ring(shared, state, stages);
    launch_dependents();
    if (threadIdx.x >= COMPUTING) {
        Producer(ring).stream(p, w, nullptr);
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
    head_rows(w, Product(inputs, outputs, false, false), x, out, rows, stages, row_bytes);
}

#define BETWEEN(S, D, C)                                                                                              \
    extern "C" __global__ void __launch_bounds__(COMPUTING + 32, 1) between_##S(                                      \
        const bf16* o, const bf16* gate_up, const bf16* down, const float* norm, const bf16* attended, bf16* gated,   \
        const bf16* qkv, const float* next_norm, bf16* out, const float* bias, const float* q_norm,                   \
        const float* k_norm, const int* positions, const int* slots, const int* stored, const float2* angles,        \
        int dims, int style,                                                                                          \
        void* full, long long full_page, const int* full_table, long long full_stride, void* window,                  \
        long long window_page, const int* window_table, long long window_stride, const int2* places, int heads,       \
        int kv_heads, float* x, bf16* normed, float* squares, unsigned* barrier, int* done, int* taken, int* forget,  \
        int rows, int hidden, int feed_forward, int stages, int row_bytes, float epsilon, const uint64_t* mailboxes,  \
        unsigned* epochs, unsigned* failed, int rank, int ranks) {                                                    \
        const Front front = {o, gate_up, down, norm, attended, gated};                                                \
        const Back back = {qkv,                                                                                       \
                           next_norm,                                                                                 \
                           out,                                                                                       \
                           {bias, q_norm, k_norm, positions, slots, stored, {angles, dims, style},                    \
                            {full, full_page, full_table, full_stride},                                               \
                            {window, window_page, window_table, window_stride}, places, heads, kv_heads, epsilon}};   \
        const Between b = {x,    normed, squares,   barrier,      done,   taken,  forget,                             \
                           rows, hidden, heads * D, feed_forward, stages, row_bytes, epsilon};                        \
        between<D, C>(front, back, b, {mailboxes, epochs, failed, rank, ranks});                                      \
    }

BETWEEN(64, 64, bf16)
BETWEEN(128, 128, bf16)
BETWEEN(64_fp8, 64, fp8)
BETWEEN(128_fp8, 128, fp8)
