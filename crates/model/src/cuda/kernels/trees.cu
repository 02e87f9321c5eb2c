// Keys and values of a draft tree's rows that are kept, from where they are stored to their own positions.
#include "common.cuh"

// As check.rs says.
constexpr int DEEPEST = 16;

// A class in one layer.
struct Layer {
    unsigned long long base;  // address
    unsigned long long page;  // bytes from one page to the next
    unsigned long long heads;
};

// Rows of one tree, in positions of the pool: page * PAGE + place in it.
struct Moves {
    int count;
    int from[DEEPEST];
    int to[DEEPEST];
};

// Grid: heads of the largest layer, layers, trees. A thread has 16 bytes of the key or of the value of every row, and reads
// all of them before it writes one: a row may go to where another comes from.
extern "C" __global__ void keep_rows(const Layer* layers, const Moves* trees, int row) {
    launch_dependents();
    wait_for_inputs();
    const Layer layer = layers[blockIdx.y];
    if (blockIdx.x >= layer.heads) return;
    const Moves& moves = trees[blockIdx.z];
    const int pieces = row / 16, half = threadIdx.x / pieces, piece = threadIdx.x % pieces;
    char* const head =
        reinterpret_cast<char*>(layer.base) + ((size_t)blockIdx.x * 2 + half) * PAGE * row + (size_t)piece * 16;
    auto at = [&](int place) {
        return reinterpret_cast<uint4*>(head + place / PAGE * layer.page + (size_t)(place % PAGE) * row);
    };
    uint4 x[DEEPEST];
#pragma unroll
    for (int i = 0; i < DEEPEST; ++i)
        if (i < moves.count) x[i] = *at(moves.from[i]);
#pragma unroll
    for (int i = 0; i < DEEPEST; ++i)
        if (i < moves.count) *at(moves.to[i]) = x[i];
}
