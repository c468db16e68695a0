#include "ring.h"
#include <algorithm>
#include <stdexcept>
#include <string>
#include "isa.h"
#include "row_pieces.h"
#include "streams.h"

namespace ssl {

void enqueue(const EnqueueCall& call) {
  const int64_t pointer = *call.pointer, end = pointer + call.count;
  if (pointer < 0 || pointer >= call.size)
    throw std::invalid_argument("pointer: expected 0 to " + std::to_string(call.size - 1) + ", got " + std::to_string(pointer));
  // rows [first, last) stay: of a batch longer than the ring those that nothing overwrites
  const int64_t first = call.wrap ? std::max<int64_t>(0, call.count - call.size) : 0;
  const int64_t last = call.wrap ? call.count : std::min(call.count, call.size - pointer);
  on_rows(call.threads, first, last, call.width, [&](int64_t begin, int64_t end) {
    current_isa().streams->enqueue(call, pointer, begin, end);
  });
  *call.pointer = call.wrap ? end % call.size : end < call.size ? end : 0;
}

}  // namespace ssl
