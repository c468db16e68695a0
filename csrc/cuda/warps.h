// One row a warp, or a part of one: who reads what, and what its lanes make of it together.
#pragma once
#include "logits.h"

namespace ssl::cuda {

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int ROW_THREADS = 256;  // of a block of the kernels that go by rows

// Lanes that share a row, each with eight entries at a time: a power of two from 8 to 32.
inline int lanes_of_row(int64_t width) { return width <= 64 ? 8 : width <= 128 ? 16 : 32; }

// The sum, or the largest number, of the `lanes` lanes that share a row, in all of them.
template <class Real> SSL_DEVICE Real sum_of_lanes(Real x, int lanes) {
  for (int k = lanes / 2; k > 0; k /= 2) x += __shfl_xor_sync(ALL_LANES, x, k);
  return x;
}
template <class Real> SSL_DEVICE Real largest_of_lanes(Real x, int lanes) {
  for (int k = lanes / 2; k > 0; k /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, k));
  return x;
}

// The same of a whole block of whole warps, in its first thread; `room` is shared memory for a number a warp.
template <class Real> SSL_DEVICE Real sum_of_block(Real x, Real* room) {
  const int warps = int(blockDim.x) / 32;
  x = sum_of_lanes(x, 32);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = int(threadIdx.x) < warps ? room[threadIdx.x] : Real(0);
  return threadIdx.x < 32 ? sum_of_lanes(x, 32) : x;
}
// In every thread.
template <class Real> SSL_DEVICE Real largest_of_block(Real x, Real* room) {
  const int warps = int(blockDim.x) / 32;
  x = largest_of_lanes(x, 32);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = room[int(threadIdx.x) % 32 < warps ? threadIdx.x % 32 : 0];
  return largest_of_lanes(x, 32);
}

}  // namespace ssl::cuda
