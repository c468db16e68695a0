// Threads: OpenMP where the compiler has it (it is the team torch uses, so that nobody competes for the cores), plain
// threads elsewhere.
#pragma once
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

}  // namespace ssl
