#include "averaging.h"
#include <algorithm>
#include <atomic>
#include <cstring>
#include "isa.h"
#include "parallel.h"
#include "streams.h"

namespace ssl {

void average(const AverageCall& call) {
  // A thread takes so many elements at a time, of however many tensors: 256 KiB of float32 is long for the prefetcher
  // and short enough for the threads to end together.
  constexpr int64_t piece = int64_t(1) << 16;
  std::vector<int64_t> ends;
  int64_t total = 0;
  for (const AveragedPair& p : call.pairs) ends.push_back(total += p.count);

  const auto kernel = current_isa().streams->average;
  const int64_t pieces = (total + piece - 1) / piece;
  std::atomic<int64_t> next{0};
  on_threads(int(std::min<int64_t>(call.threads, pieces)), [&] {
    for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      int64_t at = k * piece;
      const int64_t last = std::min(total, at + piece);
      auto pair = call.pairs.begin() + (std::upper_bound(ends.begin(), ends.end(), at) - ends.begin());
      while (at < last) {
        const int64_t before = ends[pair - call.pairs.begin()] - pair->count;
        const int64_t end = std::min(last, before + pair->count);
        kernel(*pair, at - before, end - before, call.rule);
        at = end;
        ++pair;
      }
    }
  });
  for (const CopiedBytes& c : call.copies) memcpy(c.target, c.source, size_t(c.count));
}

}  // namespace ssl
