// The first launch of a draw (draw.cuh): edits, broken logits, greedy rows and rows without filters.
#include "draw.cuh"

// As in draw.rs; the asks of more rows are copied before this launch.
constexpr unsigned NEAR_ROWS = 16;

extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
draw_scan(ROWS_ARGUMENTS, const Entry* entries, Partial* partials, unsigned* tickets,
          u64* reached) {
    const Rows rows = ROWS;
    __shared__ Best bests[SCAN_THREADS / 32];
    __shared__ unsigned last;
    launch_dependents();
    unsigned r = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // What few rows ask for lies in the host's memory: it is read while the kernel before still runs.
    if (gridDim.y > NEAR_ROWS) wait_for_inputs();
    if (r >= rows.header[0]) return;
    const Ask ask = rows.asks[r];
    wait_for_inputs();
    if (ask.kind == HOST) {
        if (blockIdx.x == 0 && threadIdx.x < 2) rows.results[2 * r + threadIdx.x] = threadIdx.x ? NOT_DRAWN : -1;
        return;
    }
    Row row(rows, ask, r);

    // Edits, by the block that has the token. What stood there is looked at before.
    bool broken = false;
    unsigned start = blockIdx.x * (SCAN_THREADS / 32) * TILE, end = min(start + SCAN_THREADS / 32 * TILE, row.vocab);
    float* own = rows.logits + r * rows.stride;
    for (unsigned e = threadIdx.x; e < ask.entries; e += SCAN_THREADS) {
        Entry entry = entries[ask.first + e];
        unsigned token = entry.token & ~BANNED;
        if (token < start || token >= end) continue;
        float logit = own[token];
        broken |= !(logit < INF);
        logit = __fadd_rn(logit, entry.bias);
        logit = logit > 0.0f ? __fdiv_rn(logit, entry.repetition) : __fmul_rn(logit, entry.repetition);
        logit = __fsub_rn(logit, entry.penalty);
        own[token] = entry.token & BANNED ? -INF : logit;
    }
    __syncthreads();

    unsigned tile = blockIdx.x * (SCAN_THREADS / 32) + warp, group = own_group(tile);
    float4 x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = row.four(tile * TILE + i * 128 + lane * 4);
    float peak = -INF;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        broken |= !(x[i].x < INF) | !(x[i].y < INF) | !(x[i].z < INF) | !(x[i].w < INF);
        row.hide(x[i], tile * TILE + i * 128 + lane * 4);
        float most = fmaxf(fmaxf(x[i].x, x[i].y), fmaxf(x[i].z, x[i].w));
        for (int d = 1; d < 8; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
        if (lane % 8 == i) peak = most;
    }
    unsigned groups = gridDim.x * SCAN_THREADS / 32 * 32;
    Best best = {0.0, -1};
    if (ask.kind == RACE) {
        NoiseKey key = {{ask.seed[0], ask.seed[1]}, ask.choice, ask.position};
        best = race(row, key, ask.temperature, group, peak, best, &reached[r],
                    [](float, unsigned) { return true; });
    } else {
        if (ask.kind == FILTER) rows.peaks[(u64)r * groups + group] = peak;
        // As a score; the token, for greedy rows, is the first of the highest group's equals.
        // Adding 0 makes -0 equal to +0.
        best = warp_best({peak + 0.0f, peak > -INF ? (int)group : -1});
        if (ask.kind == GREEDY && best.token >= 0) {
            unsigned token = best.token * GROUP + lane;
            best.token = best.token * GROUP + __ffs(__ballot_sync(ALL, row.shown(token) == best.score)) - 1;
        }
    }
    if (lane == 0) bests[warp] = best;
    bool any_broken = __syncthreads_or(broken);
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < SCAN_THREADS / 32; ++w) best = better(best, bests[w]);
        partials[r * gridDim.x + blockIdx.x] = {best.score, best.token, any_broken};
        __threadfence();
        last = atomicAdd(&tickets[r], 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last || warp != 0) return;

    // The last block of the row; one lane a block, of which there are at most 32.
    Best one = {0.0, -1};
    broken = false;
    if (lane < gridDim.x) {
        int4 raw = __ldcg(reinterpret_cast<const int4*>(&partials[r * gridDim.x + lane]));
        one = {__hiloint2double(raw.y, raw.x), raw.z};
        broken = raw.w;
    }
    best = warp_best(one);
    broken = __any_sync(ALL, broken);
    if (lane == 0) {
        tickets[r] = 0;
        reached[r] = 0;
        rows.best[r] = best.score;
        Status status = broken ? NOT_FINITE : best.token < 0 ? NOTHING : ask.kind == FILTER ? FILTERING : DRAWN;
        rows.results[2 * r] = status == DRAWN ? best.token : -1;
        rows.results[2 * r + 1] = status;
    }
}
