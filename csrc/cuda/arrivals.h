// A number on the device that every block of a launch reads and the last one to end replaces: how many have ended is counted in
// the number's own upper bits, so that nothing else has to be kept, and cleared, between launches.
#pragma once
#include "device.h"

namespace ssl::cuda {

constexpr unsigned long long ARRIVAL = 1ull << 40;

SSL_DEVICE int64_t read_before_arrival(const int64_t* number) {
  return int64_t(*reinterpret_cast<const volatile unsigned long long*>(number) % ARRIVAL);
}

// Called by all threads of every block, once, when they have read the number.
SSL_DEVICE void arrive_and_replace(int64_t* number, int64_t by) {
  auto* const word = reinterpret_cast<unsigned long long*>(number);
  __syncthreads();
  if (threadIdx.x != 0) return;
  const unsigned long long blocks = static_cast<unsigned long long>(gridDim.x) * gridDim.y * gridDim.z;
  if (atomicAdd(word, ARRIVAL) / ARRIVAL == blocks - 1) atomicExch(word, static_cast<unsigned long long>(by));
}

}  // namespace ssl::cuda
