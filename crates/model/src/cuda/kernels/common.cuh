// What every kernel file starts from: element types, warp reductions, programmatic dependent launch.
//
// Kernels are templates over the element type T of activations, weights and KV, and are exported with a suffix:
// NAME_f32, NAME_bf16, NAME_f16 (`EXPORT_FLOATS`). Arithmetic between loads and stores is in float, and said with
// intrinsics (__fmaf_rn) where two kernels must agree to the bit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }

// The next kernel in the stream may start when all blocks have said so or ended: say it early, since it waits
// for this kernel's memory by itself. Nothing before sm_90.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before this one in the stream have ended and their writes are seen. Must come before
// the first access to anything that another kernel of the step writes or reads; weights may be touched earlier.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Waits for all threads of the cluster that have not ended.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Waits until a phase of a barrier in shared memory is over; of sm_90 only.
__device__ __forceinline__ void wait_phase(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\n"
        "bra WAIT;\nDONE:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// A value that other multiprocessors may have written in this launch: read past the first cache.
__device__ __forceinline__ float load_shared_by_all(const float* from) { return __ldcg(from); }
__device__ __forceinline__ bf16 load_shared_by_all(const bf16* from) { return __ldcg(from); }
__device__ __forceinline__ f16 load_shared_by_all(const f16* from) { return __ldcg(from); }

__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// The sum over a block, in a fixed order, given to every thread. `scratch` holds one float a warp; it may be used
// again after the next __syncthreads().
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
    for (unsigned w = 0; w < (blockDim.x + 31) / 32; ++w) total += scratch[w];
    return total;
}

// Positions of a page of keys and values (kvcache::PAGE_POSITIONS).
constexpr int PAGE = 16;

// A page table entry without a page.
constexpr int NO_PAGE = -1;
