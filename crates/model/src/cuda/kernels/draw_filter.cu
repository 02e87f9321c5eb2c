// The second and third launch of a draw (draw.cuh): rows with top-k, top-p or min-p, in the order and with the ties of
// crates/sampling (warp.rs). Survivors of top-k and top-p are the tokens down to one rank key; min-p is a floor beside it.
// Sums do not depend on what runs beside them, but are not in the CPU's order: a cut of top-p may fall elsewhere where
// a sum is within rounding (1e-10 of the total) of the mass that is asked for.
#include "draw.cuh"

constexpr unsigned FILTER_THREADS = 512;
constexpr unsigned CANDIDATES = 4096;
constexpr unsigned MOST_GROUPS = 8192;
constexpr unsigned LOWEST = 0x00800000;  // The ordered key of the lowest finite float.

// Weights exp(logit / temperature - best) are summed in bins of 1/64 below the best, as integers of 2^-44 so that their
// order is free: 2^18 weights of at most 1 fit. The last bin has all that is below.
constexpr unsigned BINS = 2048;
constexpr double BINS_A_UNIT = 64.0;
constexpr double WEIGHT_UNITS = 17592186044416.0;

// Which bin a token is in, from its distance to the best; never decreases along the ranks.
__device__ __forceinline__ unsigned bin_of(double below) {
    return below < (BINS - 1) / BINS_A_UNIT ? (unsigned)(below * BINS_A_UNIT) : BINS - 1;
}

// Top-k leaves some out, as far as is known before the tokens that can be drawn are counted.
__device__ __forceinline__ bool cuts(const Ask& ask, unsigned vocab) { return ask.top_k != 0 && ask.top_k < vocab; }

extern "C" __global__ void __launch_bounds__(SCAN_THREADS) draw_mass(ROWS_ARGUMENTS) {
    __shared__ u64 sums[BINS];
    const Rows rows = ROWS;
    launch_dependents();
    wait_for_inputs();
    unsigned r = blockIdx.y, lane = threadIdx.x % 32;
    if (r >= rows.header[0]) return;
    const Ask ask = rows.asks[r];
    if (ask.kind != FILTER || rows.results[2 * r + 1] != FILTERING) return;
    if (!(ask.top_p < 1.0) || cuts(ask, rows.vocab)) return;
    for (unsigned b = threadIdx.x; b < BINS; b += SCAN_THREADS) sums[b] = 0;
    __syncthreads();
    Row row(rows, ask, r);
    unsigned tile = blockIdx.x * (SCAN_THREADS / 32) + threadIdx.x / 32;
    double best = quotient(rows.best[r], ask.temperature);
#pragma unroll 2
    for (int i = 0; i < 8; ++i) {
        unsigned token = tile * TILE + i * 128 + lane * 4;
        float4 x = row.four(token);
        row.hide(x, token);
        for (float logit : {x.x, x.y, x.z, x.w}) {
            double at = sub(quotient(logit, ask.temperature), best);
            // Below this it rounds to nothing.
            if (at > -32.0) atomicAdd(&sums[bin_of(-at)], (u64)__double2ull_rn(natural_exp(at) * WEIGHT_UNITS));
        }
    }
    __syncthreads();
    for (unsigned b = threadIdx.x; b < BINS; b += SCAN_THREADS) {
        if (sums[b]) atomicAdd(&rows.bins[(u64)r * BINS + b], sums[b]);
    }
}

struct Filter {
    Row row;
    const Ask& ask;
    const float* peaks;
    unsigned groups;
    double best;
    double* scratch;  // FILTER_THREADS / 32

    __device__ double below(float logit) const { return -sub(quotient(logit, ask.temperature), best); }
    __device__ float logit(u64 key) const { return from_ordered(key >> ID_BITS); }
    __device__ double weight(u64 key) const { return natural_exp(-below(logit(key))); }

    // The block's sum, in a fixed order, to all threads.
    __device__ double total(double x) const {
        for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(ALL, x, d);
        __syncthreads();
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
        __syncthreads();
        double sum = threadIdx.x % 32 < FILTER_THREADS / 32 ? scratch[threadIdx.x % 32] : 0.0;
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(ALL, sum, d);
        return sum;
    }

    // The sum of this and the threads before it, and the block's.
    template <typename N> __device__ N running(N x, N& all) const {
        unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        for (int d = 1; d < 32; d *= 2) {
            N left = __shfl_up_sync(ALL, x, d);
            if (lane >= d) x += left;
        }
        N* sums = reinterpret_cast<N*>(scratch);
        __syncthreads();
        if (lane == 31) sums[warp] = x;
        __syncthreads();
        N before = 0;
        all = 0;
        for (unsigned w = 0; w < FILTER_THREADS / 32; ++w) {
            if (w == warp) before = all;
            all += sums[w];
        }
        return before + x;
    }

    // The largest ordered key, in steps of 2^16, that at least `need` groups reach; the lowest when fewer have a token.
    __device__ unsigned pivot(unsigned need) const {
        constexpr unsigned EACH = MOST_GROUPS / FILTER_THREADS;
        unsigned own[EACH], key = 0;
#pragma unroll
        for (unsigned i = 0; i < EACH; ++i) {
            unsigned g = threadIdx.x + i * FILTER_THREADS;
            own[i] = g < groups ? ordered(peaks[g]) : 0;
        }
        unsigned* counts = reinterpret_cast<unsigned*>(scratch);  // Two rounds of 16.
        __syncthreads();
        for (unsigned bit = 1u << 31, round = 0; bit >= 1u << 16; bit /= 2, round ^= 16) {
            unsigned count = 0;
#pragma unroll
            for (unsigned i = 0; i < EACH; ++i) count += own[i] >= (key | bit);
            count = __reduce_add_sync(ALL, count);
            if (threadIdx.x % 32 == 0) counts[round + threadIdx.x / 32] = count;
            __syncthreads();
            count = __reduce_add_sync(ALL, threadIdx.x % 32 < 16 ? counts[round + threadIdx.x % 32] : 0);
            if (count >= need) key |= bit;
        }
        return max(key, LOWEST);
    }

    // Calls `act` for the tokens of groups whose peak `enters`, a warp a group; other tokens of it too.
    template <typename Enters, typename Act> __device__ void each(Enters enters, Act act) const {
        unsigned lane = threadIdx.x % 32;
        for (unsigned base = threadIdx.x / 32 * 32; base < groups; base += FILTER_THREADS) {
            float peak = peaks[base + lane];
            unsigned open = __ballot_sync(ALL, peak > -INF && enters(peak));
            // Four at a time, so that loads overlap.
            while (open) {
                unsigned token[4];
                float logit[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    token[i] = open ? (base + __ffs(open) - 1) * GROUP + lane : ALL;
                    open &= open - 1;
                    logit[i] = row.shown(token[i]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) act(logit[i], token[i]);
            }
        }
    }

    // The keys of tokens that `takes`, as far as there is room; how many there are.
    template <typename Enters, typename Takes>
    __device__ unsigned collect(u64* keys, unsigned* count, Enters enters, Takes takes) const {
        unsigned lane = threadIdx.x % 32;
        __syncthreads();
        if (threadIdx.x == 0) *count = 0;
        __syncthreads();
        each(enters, [&](float logit, unsigned token) {
            bool taken = logit > -INF && takes(logit);
            unsigned all = __ballot_sync(ALL, taken), at = 0;
            if (lane == 0 && all) at = atomicAdd(count, __popc(all));
            at = __shfl_sync(ALL, at, 0) + __popc(all & ((1u << lane) - 1));
            if (taken && at < CANDIDATES) keys[at] = rank_key(logit, token);
        });
        __syncthreads();
        return *count;
    }

    // The highest rank key down to which the tokens that `takes` have `need`; 0 when all have less. Every step reads
    // the row: for more than CANDIDATES survivors of top-k, or as many tokens in a bin.
    template <typename Enters, typename Takes>
    __device__ u64 search(double need, bool by_mass, Enters enters, Takes takes) const {
        u64 low = 0, high = 1ull << (32 + ID_BITS);
        while (high - low > 1) {
            u64 middle = low + (high - low) / 2;
            double sum = 0.0;
            each(enters, [&](float logit, unsigned token) {
                u64 key = rank_key(logit, token);
                if (logit > -INF && key >= middle && takes(logit)) sum += by_mass ? weight(key) : 1.0;
            });
            if (total(sum) >= need) low = middle;
            else high = middle;
        }
        return low;
    }
};

// Falling, in place; there is room up to a power of two.
__device__ void sort(u64* keys, unsigned count) {
    unsigned room = 2;
    while (room < count) room *= 2;
    for (unsigned i = count + threadIdx.x; i < room; i += FILTER_THREADS) keys[i] = 0;
    for (unsigned size = 2; size <= room; size *= 2) {
        for (unsigned step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < room / 2; i += FILTER_THREADS) {
                unsigned a = i / step * step * 2 + i % step, b = a + step;
                u64 x = keys[a], y = keys[b];
                if ((a & size) == 0 ? x < y : x > y) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
        }
    }
    __syncthreads();
}

// How many of the first `count` sorted keys have the mass `need`, or, with `of_total`, that share of their mass;
// `count` when they never do.
__device__ unsigned cut(const Filter& f, const u64* keys, unsigned count, double need, bool of_total, unsigned* found) {
    constexpr unsigned EACH = CANDIDATES / FILTER_THREADS;
    double weights[EACH], sum = 0.0, all;
    unsigned start = threadIdx.x * EACH;
#pragma unroll
    for (unsigned i = 0; i < EACH; ++i) {
        weights[i] = start + i < count ? f.weight(keys[start + i]) : 0.0;
        sum += weights[i];
    }
    if (threadIdx.x == 0) *found = count;
    double mass = f.running(sum, all) - sum;
    if (of_total) need = mul(need, all);
#pragma unroll
    for (unsigned i = 0; i < EACH; ++i) {
        mass += weights[i];
        if (start + i < count && mass >= need) {
            atomicMin(found, start + i + 1);
            break;
        }
    }
    __syncthreads();
    return *found;
}

extern "C" __global__ void __launch_bounds__(FILTER_THREADS, 1) draw_filter(ROWS_ARGUMENTS, unsigned groups) {
    __shared__ u64 keys[CANDIDATES];
    __shared__ double scratch[FILTER_THREADS / 32];
    __shared__ Best bests[FILTER_THREADS / 32];
    __shared__ u64 reached;
    __shared__ double before;
    __shared__ unsigned count, found;
    const Rows rows = ROWS;
    launch_dependents();
    wait_for_inputs();
    unsigned r = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (r >= rows.header[0]) return;
    const Ask ask = rows.asks[r];
    if (ask.kind != FILTER || rows.results[2 * r + 1] != FILTERING) return;
    const Filter f = {Row(rows, ask, r), ask, rows.peaks + (u64)r * groups, groups,
                      quotient(rows.best[r], ask.temperature), scratch};
    if (threadIdx.x == 0) reached = 0;

    bool by_count = cuts(ask, rows.vocab), by_mass = ask.top_p < 1.0;
    u64 last = 0;         // The last survivor of top-k and top-p,
    unsigned listed = 0;  // and how many there are at the start of `keys`, if they are there.
    if (by_count) {
        // As many groups have a token there, so at least as many tokens are.
        unsigned pivot = f.pivot(ask.top_k);
        auto takes = [&](float logit) { return ordered(logit) >= pivot; };
        unsigned n = f.collect(keys, &count, takes, takes);
        if (n <= CANDIDATES) {
            sort(keys, n);
            listed = min(n, ask.top_k);
            if (by_mass) listed = cut(f, keys, listed, ask.top_p, true, &found);
        } else {
            auto all = [](float) { return true; };
            last = f.search(ask.top_k, false, all, all);
            if (by_mass) {
                double mass = 0.0;
                f.each(all, [&](float logit, unsigned token) {
                    u64 key = rank_key(logit, token);
                    if (logit > -INF && key >= last) mass += f.weight(key);
                });
                last = max(last, f.search(mul(ask.top_p, f.total(mass)), true, all, all));
            }
        }
    } else if (by_mass) {
        // The bin in which the mass is reached.
        constexpr unsigned EACH = BINS / FILTER_THREADS;
        u64 own[EACH], sum = 0, all;
        u64* bins = rows.bins + (u64)r * BINS + threadIdx.x * EACH;
#pragma unroll
        for (unsigned i = 0; i < EACH; ++i) {
            own[i] = bins[i];
            bins[i] = 0;
            sum += own[i];
        }
        if (threadIdx.x == 0) found = BINS - 1;
        u64 mass = f.running(sum, all) - sum;
        double need = mul(ask.top_p, (double)all);
        unsigned bin = BINS;
        u64 mine = 0;
#pragma unroll
        for (unsigned i = 0; i < EACH; ++i) {
            if (bin == BINS && (double)(mass + own[i]) >= need) {
                bin = threadIdx.x * EACH + i;
                mine = mass;
            }
            mass += own[i];
        }
        if (bin < BINS) atomicMin(&found, bin);
        __syncthreads();
        unsigned edge = found;
        if (bin == edge) before = (double)mine;
        __syncthreads();
        double in_units = 1.0 / WEIGHT_UNITS;
        auto reaches = [&](float logit) { return bin_of(f.below(logit)) <= edge; };
        auto within = [&](float logit) { return bin_of(f.below(logit)) == edge; };
        unsigned n = f.collect(keys, &count, reaches, reaches);
        if (n <= CANDIDATES) {
            sort(keys, n);
            listed = cut(f, keys, n, need * in_units, false, &found);
        } else {
            double rest = (need - before) * in_units;
            n = f.collect(keys, &count, reaches, within);
            if (n <= CANDIDATES) {
                sort(keys, n);
                last = keys[cut(f, keys, n, rest, false, &found) - 1];
            } else {
                last = f.search(rest, true, reaches, within);
            }
        }
    }
    __syncthreads();

    NoiseKey key = {{ask.seed[0], ask.seed[1]}, ask.choice, ask.position};
    Best best = {0.0, -1};
    if (listed > 0) {
        for (unsigned i = threadIdx.x; i < listed; i += FILTER_THREADS) {
            unsigned token = (1u << ID_BITS) - 1 - (unsigned)(keys[i] & ((1u << ID_BITS) - 1));
            float logit = f.logit(keys[i]);
            if (-f.below(logit) < ask.floor) continue;
            double noise = member_noise(key, token, group_noise(key, token / GROUP));
            best = better(best, {sub(quotient(logit, ask.temperature), natural_log(noise)), (int)token});
        }
        __syncwarp();
        best = warp_best(best);
    } else {
        auto survives = [&](float logit, unsigned token) {
            return rank_key(logit, token) >= last && -f.below(logit) >= ask.floor;
        };
        for (unsigned base = warp * 32; base < groups; base += FILTER_THREADS) {
            unsigned group = base + lane;
            float peak = f.peaks[group];
            // With the group's lowest id, a key no lower than any of the group.
            bool enters = peak > -INF && survives(peak, group * GROUP);
            if (__any_sync(ALL, enters)) {
                best = race(f.row, key, ask.temperature, group, enters ? peak : -INF, best, &reached, survives);
            }
        }
    }
    if (lane == 0) bests[warp] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < FILTER_THREADS / 32; ++w) best = better(best, bests[w]);
        rows.results[2 * r] = best.token;
        rows.results[2 * r + 1] = best.token < 0 ? NOTHING : DRAWN;
    }
}
