// The names of csrc/cuda/hopper.h for a C++ compiler: the other half of it.
#pragma once
#include "emulated.h"

namespace ssl::cuda {

inline void arrival_init(uint64_t* arrival, uint32_t count) { emulated::arrival_init(arrival, count); }
inline void arrival_init_fence() {}
inline void arrive(uint64_t* arrival) { emulated::arrival_arrive(arrival, 0); }
inline void arrive_expecting(uint64_t* arrival, uint32_t bytes) { emulated::arrival_arrive(arrival, bytes); }
inline void wait_for(uint64_t* arrival, uint32_t parity, Site site = Site::current()) {
  emulated::arrival_wait(arrival, parity, site);
}
inline void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* arrival) {
  emulated::bulk_copy(to, from, bytes, arrival);
}
inline void fence_async_proxy() { emulated::fence_async_proxy(); }

inline void sync_some(int number, int threads, Site site = Site::current()) {
  emulated::barrier(number, threads, true, site);
}
inline void arrive_some(int number, int threads, Site site = Site::current()) {
  emulated::barrier(number, threads, false, site);
}
inline const char* anew(const char* p) { return p; }
template <int COUNT> void take_registers() {}
template <int COUNT> void give_registers() {}

inline void group_fence(Site site = Site::current()) { emulated::group_fence(site); }
inline void group_commit(Site site = Site::current()) { emulated::group_commit(site); }
template <int N> void group_wait(Site site = Site::current()) { emulated::group_wait(N, site); }
template <int N, int COUNT> void group_wait(float (&)[COUNT], Site site = Site::current()) { emulated::group_wait(N, site); }

template <bool TRANSPOSED, bool FIRST, int COUNT>
void group_multiply(float (&d)[COUNT], uint64_t a, uint64_t b, Site site = Site::current()) {
  emulated::GroupProduct p{};
  p.a_rows = a;
  p.b_rows = b;
  p.n = 2 * COUNT;
  p.transposed = TRANSPOSED;
  p.accumulate = !FIRST;
  emulated::group_multiply(p, d, nullptr, site);
}
template <bool TRANSPOSED, int COUNT>
void group_multiply(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, Site site = Site::current()) {
  emulated::GroupProduct p{};
  p.b_rows = b;
  p.n = 2 * COUNT;
  p.from_registers = true;
  p.transposed = TRANSPOSED;
  p.accumulate = true;
  emulated::group_multiply(p, d, a, site);
}

}  // namespace ssl::cuda
