// The order of the block pairs of a walk, and the rule that makes any number of threads give the same bits.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>
#include "parallel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ssl {

// Pairs of blocks in rounds of disjoint pairs, so that neighbours in the list can run at the same time. A pair writes to
// both its blocks: it waits until each has seen exactly the pairs that stand before it in the list. The order of
// additions is therefore that of the list, whoever runs what. No barrier is needed, and no deadlock is possible: pairs
// are taken in list order and wait for earlier ones only.
class PairWalk {
 public:
  // All pairs i <= j of blocks of a set against itself: the circle method of round-robin tournaments.
  static PairWalk triangle(int blocks) {
    PairWalk walk(blocks, (blocks + 1) / 2);
    auto add = [&](int i, int j) { i < j ? walk.add(i, j) : walk.add(j, i); };
    for (int i = 0; i < blocks; ++i) add(i, i);
    const int seats = blocks + (blocks & 1), around = seats - 1;
    for (int round = 0; round < around; ++round) {
      if (seats == blocks) add(round, around);  // the seat that stays; the empty one when the number is odd
      for (int k = 1; k < seats / 2; ++k) add((round + k) % around, (round + around - k) % around);
    }
    return walk;
  }

  // All pairs of a block of rows and a block of columns: every round moves the longer side on by one.
  static PairWalk rectangle(int rows, int columns) {
    const int fewer = rows < columns ? rows : columns, more = rows + columns - fewer;
    PairWalk walk(rows + columns, fewer);
    walk.first_column_ = rows;
    for (int round = 0; round < more; ++round)
      for (int k = 0; k < fewer; ++k) {
        const int l = (k + round) % more;
        rows < columns ? walk.add(k, rows + l) : walk.add(l, rows + k);
      }
    return walk;
  }

  // visit(i, j, thread-local state) for every pair; make_state() once a thread.
  template <class MakeState, class Visit> void run(int threads, MakeState&& make_state, Visit&& visit) {
    std::atomic<size_t> next{0};
    on_threads(threads < parallelism_ ? threads : parallelism_, [&] {
      auto state = make_state();
      for (size_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < pairs_.size();) {
        const Pair& p = pairs_[k];
        wait(turn_[p.i].value, p.before_i);
        if (p.j != p.i) wait(turn_[p.j].value, p.before_j);
        visit(p.i, p.j - first_column_, state);
        turn_[p.i].value.store(p.before_i + 1, std::memory_order_release);
        if (p.j != p.i) turn_[p.j].value.store(p.before_j + 1, std::memory_order_release);
      }
    });
  }

 private:
  PairWalk(int blocks, int parallelism) : parallelism_(parallelism), seen_(blocks, 0), turn_(blocks) {}

  void add(int i, int j) {
    pairs_.push_back({i, j, seen_[i], seen_[j]});
    ++seen_[i];
    if (i != j) ++seen_[j];
  }

  struct Pair {
    int i, j, before_i, before_j;
  };
  struct alignas(64) Turn {  // a cache line each
    std::atomic<int> value{0};
  };

  static void wait(const std::atomic<int>& turn, int until) {
    for (int spins = 0; turn.load(std::memory_order_acquire) < until;) {
      if (++spins < 2000) {
#if defined(__x86_64__)
        _mm_pause();
#endif
      } else {
        std::this_thread::yield();  // its owner may be waiting for this core
      }
    }
  }

  int parallelism_, first_column_ = 0;
  std::vector<int> seen_;
  std::vector<Pair> pairs_;
  std::vector<Turn> turn_;
};

}  // namespace ssl
