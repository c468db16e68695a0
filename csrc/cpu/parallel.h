// Threads: OpenMP where the compiler has it (it is the team torch uses, so that nobody competes for the cores), plain
// threads elsewhere.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#else
#include <thread>
#include <vector>
#endif

namespace ssl {

// True in a forked child of a process that had this library loaded. OpenMP's team does not survive a fork, and entering
// a parallel region there hangs, so a child (a DataLoader worker) works alone.
bool forked();

// work(thread) on `threads` threads at once, at most; every caller must be right when fewer come.
template <class F> void on_threads(int threads, F&& work) {
  if (threads <= 1 || forked()) {
    work();
    return;
  }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  work();
#else
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(work);
  work();
  for (auto& t : team) t.join();
#endif
}

// f(begin, end) over as many pieces of 0 .. count as there are threads.
template <class F> void for_ranges(int threads, int64_t count, F&& f) {
  const int64_t pieces = std::min<int64_t>(threads, count);
  std::atomic<int64_t> next{0};
  on_threads(int(pieces), [&] {
    for (int64_t k; (k = next.fetch_add(1)) < pieces;) f(count * k / pieces, count * (k + 1) / pieces);
  });
}

}  // namespace ssl
