// What the attention kernels share: tiles, who sees which key, the walk over the keys, merging partial results.
//
// The arithmetic of a query row is the same in every kernel for bf16 and f16 (attention_few.cu, attention_many.cu):
// blocks of 64 keys at absolute positions in ascending order, online softmax in base 2 (arXiv 2205.14135), one partial
// result a split of absolute positions, partials merged in ascending order. A block that a row does not see changes
// nothing: its weights are exact zeros. So with equal splits a row's bits do not depend on its tile, its batch or the
// kernel.
#pragma once

#include "common.cuh"

// Keys of a step of the online softmax: four pages.
constexpr int BLOCK = 64;
constexpr int BLOCK_PAGES = BLOCK / PAGE;

// Consecutive rows of one sequence (attention/tiles.rs writes these).
struct __align__(16) Tile {
    int first_row;  // of the launch's q and out
    int rows;
    int slot;       // row of the page table
    int position;   // where the first row's key is stored; row r's is at position + r
    int tree;       // index of the first row's mask, or -1: a chain
    int tree_base;  // position of the sequence's first tree row; of a chain that of its first row
    int partials;   // first partial row of the workspace, or -1: one block walks all splits
    int path;       // index of the mask of its one row, which stands at `position`: a chain's, stored apart; or -1
};

// What a head class sees: key j at or before i, in the first `sink` positions or among the `recent` last ones.
struct Window {
    int sink, recent;
};

// One query row. A tree row stands at its depth; keys from `base` on are seen as its mask says, at their depths.
struct Query {
    int position;
    int base;
    uint64_t tree;
};

__device__ __forceinline__ Query query_of(const Tile& tile, int row, const uint64_t* masks) {
    if (row >= tile.rows) return {-1, INT32_MAX, 0};
    if (tile.tree < 0) return {tile.position + row, INT32_MAX, 0};
    // A row sees itself and earlier rows only, whatever the mask says: later ones may not be written.
    const int own = tile.position + row - tile.tree_base;
    const uint64_t mask = masks[tile.tree + row] & (own >= 63 ? ~0ull : (2ull << own) - 1);
    return {tile.tree_base + __popcll(mask) - 1, tile.tree_base, mask};
}

// Where keys are stored: at their positions, but for those from `base` on of a path through a tree, which are where the
// path's rows are.
struct Stored {
    int base;
    uint64_t path;

    // For positions that the path reaches.
    __device__ __forceinline__ int at(int position) const {
        if (position < base) return position;
        uint64_t left = path;
        for (int i = base; i < position; ++i) left &= left - 1;
        return base + __ffsll(static_cast<long long>(left)) - 1;
    }
};

__device__ __forceinline__ Stored in_order() { return {INT32_MAX, 0}; }

__device__ __forceinline__ Stored stored_of(const Tile& tile, const uint64_t* masks) {
    if (tile.path < 0) return in_order();
    return {tile.tree_base, masks[tile.path]};
}

__device__ __forceinline__ bool sees(const Query& query, int key, const Window& window) {
    if (key >= query.base) {
        const int bit = key - query.base;
        if (bit >= 64 || !(query.tree >> bit & 1)) return false;
        key = query.base + __popcll(query.tree & ((1ull << bit) - 1));
    }
    return key <= query.position && (key < window.sink || query.position - key < window.recent);
}

// The blocks that some row of a tile sees: [0, sinks) and [recent, end), and what every row sees of them.
struct Seen {
    int sinks, recent, end;
    int keys;         // positions from here on are not written yet
    int first, last;  // every row sees as far as `first` and stands at or before `last`

    __device__ Seen(const Tile& tile, const Window& window) {
        keys = tile.position + tile.rows;
        first = tile.tree < 0 ? tile.position : tile.tree_base - 1;
        last = keys - 1;
        end = (keys + BLOCK - 1) / BLOCK;
        recent = max(0, first - window.recent + 1) / BLOCK;
        sinks = min((min(window.sink, keys) + BLOCK - 1) / BLOCK, end);
    }

    // Whether some row does not see some key of the block.
    __device__ bool partly(int block, const Window& window) const {
        const int from = block * BLOCK, to = from + BLOCK - 1;
        return to > first || !(to < window.sink || last - from < window.recent);
    }
};

// A walk over the seen blocks, split by split: splits `ordinal`, `ordinal + step`, ... of the `active` ones that hold a
// seen block, counted in ascending order.
struct Walk {
    int sinks, recent, end, per, before, after, active, ordinal, step, block, stop;

    // `split`: positions of a split, a multiple of BLOCK.
    __device__ Walk(const Seen& seen, int split, int start, int stride)
        : sinks(seen.sinks), recent(seen.recent), end(seen.end), per(split / BLOCK), ordinal(start), step(stride) {
        before = (sinks + per - 1) / per;
        after = max(recent / per, before);
        active = before + (end + per - 1) / per - after;
        enter();
    }

    __device__ bool done() const { return ordinal >= active; }

    // To the next block; says whether it is in another split.
    __device__ bool advance() {
        ++block;
        skip();
        if (block < stop) return false;
        ordinal += step;
        enter();
        return true;
    }

  private:
    __device__ void enter() {
        if (done()) return;
        const int split = ordinal < before ? ordinal : ordinal - before + after;
        block = split * per;
        stop = min(block + per, end);
        skip();
    }

    __device__ void skip() {
        if (block >= sinks && block < recent) block = recent;
    }
};

// 2^x; exactly 0 at -inf.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A maximum to subtract from scores: any number does as long as nothing was seen.
__device__ __forceinline__ float finite(float most) { return most == -INFINITY ? 0.0f : most; }

// Adds a partial sum (most, sum) to a running one. The rows of values follow with `merged`.
struct Factors {
    float old, fresh;
};

__device__ __forceinline__ Factors merge(float& most, float& sum, float fresh_most, float fresh_sum) {
    const float next = fmaxf(most, fresh_most);
    const Factors by = {exp2_fast(__fsub_rn(most, finite(next))), exp2_fast(__fsub_rn(fresh_most, finite(next)))};
    sum = __fmaf_rn(fresh_sum, by.fresh, __fmul_rn(sum, by.old));
    most = next;
    return by;
}

__device__ __forceinline__ float merged(float value, float fresh, const Factors& by) {
    return __fmaf_rn(fresh, by.fresh, __fmul_rn(value, by.old));
}

// What a row's values are multiplied with at the end; a row that saw nothing becomes 0.
__device__ __forceinline__ float normaliser(float sum) { return sum > 0.0f ? __frcp_rn(sum) : 0.0f; }

// Adding 0 makes -0 the same as 0: skipped blocks may have done so already.
__device__ __forceinline__ float normalised(float value, float by) { return __fadd_rn(__fmul_rn(value, by), 0.0f); }
