// Plain functions of numbers that the CPU's kernels and the GPU's share: one text, compiled by either's compiler.
#pragma once

#ifdef __CUDACC__
#define SSL_SHARED __host__ __device__ __forceinline__
#else
#define SSL_SHARED inline __attribute__((always_inline))
#endif
