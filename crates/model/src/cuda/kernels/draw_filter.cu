// The second and third launch of a draw (draw.cuh): rows with top-k, top-p or min-p, in the order and with the ties of
// crates/sampling (warp.rs). Survivors of top-k and top-p are the tokens down to one rank key; min-p is a floor beside it.
// Sums are in one order whatever runs beside them, but not in the CPU's: a cut of top-p may fall elsewhere where a sum
// is within rounding (1e-13 of the total) of the mass that is asked for.
#include "draw.cuh"

constexpr unsigned FILTER_THREADS = 512;
constexpr unsigned CANDIDATES = 4096;
constexpr unsigned LOWEST = 0x00800000;  // The ordered key of the lowest finite float.

// Top-k leaves some out, as far as is known before the tokens that can be drawn are counted.
__device__ __forceinline__ bool cuts(const Ask& ask, unsigned vocab) { return ask.top_k != 0 && ask.top_k < vocab; }

extern "C" __global__ void __launch_bounds__(SCAN_THREADS) draw_mass(ROWS_ARGUMENTS) {
    const Rows rows = ROWS;
    launch_dependents();
    wait_for_inputs();
    unsigned r = blockIdx.y, lane = threadIdx.x % 32;
    if (r >= rows.header[0]) return;
    const Ask ask = rows.asks[r];
    if (ask.kind != FILTER || rows.results[2 * r + 1] != FILTERING) return;
    if (!(ask.top_p < 1.0) || cuts(ask, rows.vocab)) return;
    Row row(rows, ask, r);
    unsigned tile = blockIdx.x * (SCAN_THREADS / 32) + threadIdx.x / 32;
    double best = quotient(rows.best[r], ask.temperature), mass = 0.0;
    for (int i = 0; i < 8; ++i) {
        unsigned token = tile * TILE + i * 128 + lane * 4;
        float4 x = row.four(token);
        row.hide(x, token);
        double sum = 0.0;
        for (float logit : {x.x, x.y, x.z, x.w}) {
            double at = sub(quotient(logit, ask.temperature), best);
            // Less than 2^18 e^-60 < 2^-53 of the total goes missing.
            if (at > -60.0) sum += natural_exp(at);
        }
        for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(ALL, sum, d);
        if (lane % 8 == i) mass = sum;
    }
    rows.masses[(u64)r * (gridDim.x * SCAN_THREADS) + own_group(tile)] = mass;
}

struct Filter {
    Row row;
    const Ask& ask;
    const float* peaks;
    const double* masses;
    unsigned groups;
    double best;
    double* scratch;  // FILTER_THREADS / 32

    __device__ double weight(u64 key) const {
        return natural_exp(sub(quotient(from_ordered(key >> ID_BITS), ask.temperature), best));
    }

    // The block's sum, in a fixed order, to all threads.
    __device__ double total(double x) const {
        for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(ALL, x, d);
        __syncthreads();
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
        __syncthreads();
        double sum = 0.0;
        for (unsigned w = 0; w < FILTER_THREADS / 32; ++w) sum += scratch[w];
        return sum;
    }

    // The largest ordered key, in steps of 2^16, for which the groups that reach it have `need` of what `of` gives.
    template <typename Of> __device__ unsigned pivot(double need, Of of) const {
        unsigned key = 0;
        for (unsigned bit = 1u << 31; bit >= 1u << 16; bit /= 2) {
            double sum = 0.0;
            for (unsigned g = threadIdx.x; g < groups; g += FILTER_THREADS) {
                if (ordered(peaks[g]) >= (key | bit)) sum += of(g);
            }
            if (total(sum) >= need) key |= bit;
        }
        return max(key, LOWEST);
    }

    // Calls `act` for the tokens of groups whose peak reaches `key`, a warp a group; the token may be below.
    template <typename Act> __device__ void each(unsigned key, Act act) const {
        unsigned lane = threadIdx.x % 32;
        for (unsigned base = threadIdx.x / 32 * 32; base < groups; base += FILTER_THREADS) {
            unsigned open = __ballot_sync(ALL, ordered(peaks[base + lane]) >= key);
            for (; open; open &= open - 1) {
                unsigned token = (base + __ffs(open) - 1) * GROUP + lane;
                act(row.shown(token), token);
            }
        }
    }

    // Sums over the tokens from rank key `least` up.
    __device__ double sum(u64 least, bool by_mass) const {
        double sum = 0.0;
        each(max((unsigned)(least >> ID_BITS), LOWEST), [&](float logit, unsigned token) {
            u64 key = rank_key(logit, token);
            if (logit > -INF && key >= least) sum += by_mass ? weight(key) : 1.0;
        });
        return total(sum);
    }

    // The highest rank key down to which tokens have `need`; `least` when none has. Every step reads the row: for rows
    // whose survivors are more than CANDIDATES.
    __device__ u64 search(double need, bool by_mass, u64 least) const {
        u64 low = least, high = 1ull << (32 + ID_BITS);
        while (high - low > 1) {
            u64 middle = low + (high - low) / 2;
            if (sum(middle, by_mass) >= need) low = middle;
            else high = middle;
        }
        return low;
    }
};

// Falling, in place; `count` is a power of two.
__device__ void sort(u64* keys, unsigned count) {
    for (unsigned size = 2; size <= count; size *= 2) {
        for (unsigned step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < count / 2; i += FILTER_THREADS) {
                unsigned a = i / step * step * 2 + i % step, b = a + step;
                bool falling = (a & size) == 0;
                u64 x = keys[a], y = keys[b];
                if (falling ? x < y : x > y) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
        }
    }
    __syncthreads();
}

// How many of the first `count` sorted keys have the mass `need`; `count` when they never do. `of_total` takes `need`
// as a share of their mass.
__device__ unsigned cut(const Filter& f, const u64* keys, unsigned count, double need, bool of_total, unsigned* found) {
    constexpr unsigned EACH = CANDIDATES / FILTER_THREADS;
    double weights[EACH], sum = 0.0;
    unsigned start = threadIdx.x * EACH, lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < EACH; ++i) {
        weights[i] = start + i < count ? f.weight(keys[start + i]) : 0.0;
        sum += weights[i];
    }
    double before = sum;  // Inclusive over the warp's lanes, then what came before this thread.
    for (int d = 1; d < 32; d *= 2) {
        double left = __shfl_up_sync(ALL, before, d);
        if (lane >= d) before += left;
    }
    if (threadIdx.x == 0) *found = count;
    __syncthreads();
    if (lane == 31) f.scratch[threadIdx.x / 32] = before;
    __syncthreads();
    double all = 0.0, warps = 0.0;
    for (unsigned w = 0; w < FILTER_THREADS / 32; ++w) {
        if (w == threadIdx.x / 32) warps = all;
        all += f.scratch[w];
    }
    before = __shfl_up_sync(ALL, before, 1);
    double mass = lane ? warps + before : warps;
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
    __shared__ unsigned count, found;
    const Rows rows = ROWS;
    launch_dependents();
    wait_for_inputs();
    unsigned r = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (r >= rows.header[0]) return;
    const Ask ask = rows.asks[r];
    if (ask.kind != FILTER || rows.results[2 * r + 1] != FILTERING) return;
    const Filter f = {Row(rows, ask, r), ask, rows.peaks + (u64)r * groups, rows.masses + (u64)r * groups, groups,
                      quotient(rows.best[r], ask.temperature), scratch};
    if (threadIdx.x == 0) reached = 0;

    bool by_count = cuts(ask, rows.vocab), by_mass = ask.top_p < 1.0;
    u64 last = 0;  // The last survivor of top-k and top-p.
    if (by_count || by_mass) {
        double need = ask.top_k;
        unsigned pivot;
        if (by_count) {
            // As many groups have a token there, so at least as many tokens are.
            pivot = f.pivot(need, [](unsigned) { return 1.0; });
        } else {
            double sum = 0.0;
            for (unsigned g = threadIdx.x; g < groups; g += FILTER_THREADS) sum += f.masses[g];
            need = mul(ask.top_p, f.total(sum));
            // Groups that reach it have the mass; tokens that do may not, and then it is lowered.
            pivot = f.pivot(need, [&](unsigned g) { return f.masses[g]; });
        }
        // The tokens from `pivot` up, as far as there is room.
        for (double lower = 0.5;; lower *= 2) {
            __syncthreads();
            if (threadIdx.x == 0) count = 0;
            __syncthreads();
            f.each(pivot, [&](float logit, unsigned token) {
                bool takes = logit > -INF && ordered(logit) >= pivot;
                unsigned taking = __ballot_sync(ALL, takes), at = 0;
                if (lane == 0 && taking) at = atomicAdd(&count, __popc(taking));
                at = __shfl_sync(ALL, at, 0) + __popc(taking & ((1u << lane) - 1));
                if (takes && at < CANDIDATES) keys[at] = rank_key(logit, token);
            });
            __syncthreads();
            if (by_count || count > CANDIDATES || pivot <= LOWEST) break;
            double sum = 0.0;
            for (unsigned i = threadIdx.x; i < count; i += FILTER_THREADS) sum += f.weight(keys[i]);
            // Beyond what the order of sums could change.
            if (f.total(sum) >= need * (1.0 + 1e-9)) break;
            float next = from_ordered(pivot) - (float)(lower * ask.temperature);
            pivot = next > -INF ? max(ordered(next), LOWEST) : LOWEST;
        }
        unsigned n = count;
        if (n <= CANDIDATES) {
            unsigned room = 2;
            while (room < n) room *= 2;
            for (unsigned i = n + threadIdx.x; i < room; i += FILTER_THREADS) keys[i] = 0;
            sort(keys, room);
            if (by_count) n = min(n, ask.top_k);
            if (by_mass) n = cut(f, keys, n, by_count ? ask.top_p : need, by_count, &found);
            last = keys[n - 1];
        } else {
            if (by_count) last = f.search(need, false, 0);
            if (by_mass) {
                if (by_count) need = mul(ask.top_p, f.sum(last, true));
                last = f.search(need, true, last);
            }
        }
    }
    __syncthreads();

    NoiseKey key = {{ask.seed[0], ask.seed[1]}, ask.choice, ask.position};
    Best best = {0.0, -1};
    auto survives = [&](float logit, unsigned token) {
        return rank_key(logit, token) >= last && sub(quotient(logit, ask.temperature), f.best) >= ask.floor;
    };
    for (unsigned base = warp * 32; base < groups; base += FILTER_THREADS) {
        unsigned group = base + lane;
        float peak = f.peaks[group];
        // A peak has the lowest id of its logit at best: as a key it is at least the group's highest.
        bool enters = peak > -INF && survives(peak, group * GROUP);
        if (__any_sync(ALL, enters)) {
            best = race(f.row, key, ask.temperature, group, enters ? peak : -INF, best, &reached, survives);
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
