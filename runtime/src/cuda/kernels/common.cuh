// What all kernels share. One translation unit: kernels.rs joins this file and the .cu files in a fixed order.
//
// Plain CUDA C++14 for compute capability 7.5 and newer, without headers, dynamic shared memory or atomic additions of
// floats (results must not depend on timing). Products are rounded before they are added: write fmaf where one rounding
// is meant. Tests run this source on the CPU, see runtime/tensorrt/fakes/host/host.h for what that knows.

// Sum over the 32 lanes, the same in each of them.
__device__ __forceinline__ float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// Copies n floats within device memory.
extern "C" __global__ void copy_floats(const float* __restrict__ from, float* __restrict__ to, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = from[i];
}
