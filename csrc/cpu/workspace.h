// Memory of one call: aligned, given back at the end.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssl {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;

template <class T> Buffer<T> allocate(size_t count) {
  // Huge pages from 4 MiB on: a fresh 4 KiB page costs 0.5 us and more, which is a tenth of a whole call
  constexpr size_t huge = size_t(2) << 20;
  const bool large = count * sizeof(T) >= 2 * huge;
  const size_t alignment = large ? huge : 64, bytes = (count * sizeof(T) + alignment - 1) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, bytes ? bytes : alignment);
  if (!p) throw std::bad_alloc();
#if defined(__linux__)
  if (large) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return Buffer<T>(static_cast<T*>(p));
}

template <class T> Buffer<T> allocate_zero(size_t count) {
  Buffer<T> p = allocate<T>(count);
  std::memset(p.get(), 0, count * sizeof(T));
  return p;
}

}  // namespace ssl
