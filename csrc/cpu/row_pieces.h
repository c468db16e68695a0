// Rows dealt out to threads, where every row is a job of its own.
#pragma once
#include <algorithm>
#include <atomic>
#include "parallel.h"

namespace ssl {

// work(begin, end) for all of [first, last), in pieces of some 64 KiB of float32; by one thread if that is all there is,
// because waking another takes as long as two pieces.
template <class F> void on_rows(int threads, int64_t first, int64_t last, int64_t width, F&& work) {
  const int64_t piece = std::max<int64_t>(1, (int64_t(1) << 14) / width);
  if ((last - first) <= 2 * piece) {
    if (first < last) work(first, last);
    return;
  }
  std::atomic<int64_t> next{first};
  on_threads(int(std::min<int64_t>(threads, (last - first + piece - 1) / piece)), [&] {
    for (int64_t at; (at = next.fetch_add(piece, std::memory_order_relaxed)) < last;)
      work(at, std::min(last, at + piece));
  });
}

}  // namespace ssl
