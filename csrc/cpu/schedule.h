// The order of the block pairs of a symmetric walk, and the rule that makes any number of threads give the same bits.
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

// All pairs i <= j of `blocks` blocks in rounds of disjoint pairs (the circle method of round-robin tournaments), so
// that neighbours in the list can run at the same time. A pair writes to both its blocks: it waits until each has seen
// exactly the pairs that stand before it in the list. The order of additions is therefore that of the list, whoever runs
// what. No barrier is needed, and no deadlock is possible: pairs are taken in list order and wait for earlier ones only.
class PairWalk {
 public:
  explicit PairWalk(int blocks) : turn_(blocks) {
    std::vector<int> seen(blocks, 0);
    auto add = [&](int i, int j) {
      if (i > j) std::swap(i, j);
      pairs_.push_back({i, j, seen[i], seen[j]});
      ++seen[i];
      if (i != j) ++seen[j];
    };
    for (int i = 0; i < blocks; ++i) add(i, i);
    const int seats = blocks + (blocks & 1), around = seats - 1;
    for (int round = 0; round < around; ++round) {
      if (seats == blocks) add(round, around);  // the seat that stays; the empty one when the number is odd
      for (int k = 1; k < seats / 2; ++k) add((round + k) % around, (round + around - k) % around);
    }
  }

  int parallelism() const { return int((turn_.size() + 1) / 2); }

  // visit(i, j, thread-local state) for every pair; make_state() once a thread.
  template <class MakeState, class Visit> void run(int threads, MakeState&& make_state, Visit&& visit) {
    std::atomic<size_t> next{0};
    on_threads(threads < parallelism() ? threads : parallelism(), [&] {
      auto state = make_state();
      for (size_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < pairs_.size();) {
        const Pair& p = pairs_[k];
        wait(turn_[p.i].value, p.before_i);
        if (p.j != p.i) wait(turn_[p.j].value, p.before_j);
        visit(p.i, p.j, state);
        turn_[p.i].value.store(p.before_i + 1, std::memory_order_release);
        if (p.j != p.i) turn_[p.j].value.store(p.before_j + 1, std::memory_order_release);
      }
    });
  }

 private:
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

  std::vector<Pair> pairs_;
  std::vector<Turn> turn_;
};

}  // namespace ssl
