// Keys and values of a draft tree's rows that are kept, from where they are stored to their own positions.
#include "fp8.cuh"

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

// Moves what lies at `first` of page 0 at place 0, and `row` bytes further at the next place. All is read before something is
// written: a row may go to where another comes from.
template <typename X>
__device__ __forceinline__ void move(const Moves& moves, char* first, unsigned long long page, int row) {
    auto at = [&](int place) {
        return reinterpret_cast<X*>(first + place / PAGE * page + (size_t)(place % PAGE) * row);
    };
    X x[DEEPEST];
#pragma unroll
    for (int i = 0; i < DEEPEST; ++i)
        if (i < moves.count) x[i] = *at(moves.from[i]);
#pragma unroll
    for (int i = 0; i < DEEPEST; ++i)
        if (i < moves.count) *at(moves.to[i]) = x[i];
}

// Grid: heads of the largest layer, layers, trees. A thread has 16 bytes of the key or of the value of every row; of codes
// three more have second codes and scales. `head`: bytes of a head in a page; `row`: of one position of its keys.
extern "C" __global__ void keep_rows(const Layer* layers, const Moves* trees, int head, int row) {
    launch_dependents();
    wait_for_inputs();
    const Layer layer = layers[blockIdx.y];
    if (blockIdx.x >= layer.heads) return;
    const Moves& moves = trees[blockIdx.z];
    char* const first = reinterpret_cast<char*>(layer.base) + (size_t)blockIdx.x * head;
    const int pieces = row / 16, half = threadIdx.x / pieces, piece = threadIdx.x % pieces;
    const int more = threadIdx.x - 2 * pieces;
    if (more < 0)
        move<uint4>(moves, first + half * PAGE * row + piece * 16, layer.page, row);
    else if (more == 0)
        move<uint4>(moves, first + 2 * PAGE * row, layer.page, FINE);
    else
        move<float>(moves, first + 2 * PAGE * row + PAGE * FINE + (more - 1) * PAGE * 4, layer.page, 4);
}
