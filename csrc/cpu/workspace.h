// Memory of one call: aligned, given back at the end.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssl {

// Small buffers wait for the next call instead of going back to the system: fresh pages cost 0.5 us and more each, which
// was a third of a step at 128 rows. A few of each size a thread, sizes being powers of two up to 1 MiB: 8 MiB at most.
class SmallBuffers {
 public:
  static constexpr size_t smallest = size_t(4) << 10, largest = size_t(1) << 20;

  static size_t round_up(size_t bytes) {
    size_t size = smallest;
    while (size < bytes) size *= 2;
    return size;
  }

  static void* take(size_t size) {
    for (void*& kept : mine().of(size))
      if (kept) return std::exchange(kept, nullptr);
    return std::aligned_alloc(64, size);
  }

  static void give_back(void* p, size_t size) {
    for (void*& kept : mine().of(size))
      if (!kept) {
        kept = p;
        return;
      }
    std::free(p);
  }

  ~SmallBuffers() {
    for (auto& sizes : kept_)
      for (void* p : sizes) std::free(p);
  }

 private:
  using Few = void* [4];
  static SmallBuffers& mine() {
    static thread_local SmallBuffers buffers;
    return buffers;
  }
  Few& of(size_t size) {
    int k = 0;
    while (smallest << k < size) ++k;
    return kept_[k];
  }
  Few kept_[9] = {};
};

struct GiveBack {
  size_t size = 0;  // of a small buffer; 0: not one
  void operator()(void* p) const { size ? SmallBuffers::give_back(p, size) : std::free(p); }
};
template <class T> using Buffer = std::unique_ptr<T[], GiveBack>;

constexpr size_t huge_page = size_t(2) << 20;

// Huge pages for memory that is about to be written for the first time. Whole ones only: what is left over would take
// another one, of which it needs little.
inline void prefer_huge_pages(void* p, size_t bytes) {
#if defined(__linux__)
  const uintptr_t from = reinterpret_cast<uintptr_t>(p), first = (from + huge_page - 1) / huge_page * huge_page;
  const uintptr_t last = (from + bytes) / huge_page * huge_page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

template <class T> Buffer<T> allocate(size_t count) {
  const size_t bytes = count * sizeof(T);
  void* p;
  size_t small = 0;
  if (bytes <= SmallBuffers::largest) {
    small = SmallBuffers::round_up(bytes);
    p = SmallBuffers::take(small);
  } else {
    // Huge pages from 4 MiB on, for the same reason: a tenth of a whole call
    const bool large = bytes >= 2 * huge_page;
    if (posix_memalign(&p, large ? huge_page : 64, bytes)) p = nullptr;
    if (p && large) prefer_huge_pages(p, bytes);
  }
  if (!p) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p), GiveBack{small});
}

template <class T> Buffer<T> allocate_zero(size_t count) {
  Buffer<T> p = allocate<T>(count);
  std::memset(p.get(), 0, count * sizeof(T));
  return p;
}

}  // namespace ssl
