#include "aligned.h"
#include "isa.h"
#include "row_pieces.h"
#include "streams.h"

namespace ssl {

void cosine(const CosineCall& call) {
  on_rows(call.threads, 0, call.rows, 2 * call.width,
          [&](int64_t begin, int64_t end) { current_isa().streams->cosine(call, begin, end); });
}

void cosine_backward(const CosineBackwardCall& call) {
  on_rows(call.forward.threads, 0, call.forward.rows, 4 * call.forward.width,
          [&](int64_t begin, int64_t end) { current_isa().streams->cosine_backward(call, begin, end); });
}

}  // namespace ssl
