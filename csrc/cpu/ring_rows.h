// Rows on their way into a ring.
#pragma once
#include <cmath>
#include "elements.h"
#include "ring.h"

namespace ssl::SSL_ISA {

template <class T, class To, class From>
void enqueue_rows(const EnqueueCall& c, int64_t pointer, int64_t begin, int64_t end) {
  const int64_t whole = c.width / lanes<T> * lanes<T>, rest = c.width - whole;
  int64_t slot = (pointer + begin) % c.size;
  for (int64_t i = begin; i < end; ++i, slot = slot + 1 == c.size ? 0 : slot + 1) {
    const auto* x = static_cast<const typename From::Element*>(c.rows) + i * c.rows_stride;
    auto* q = static_cast<typename To::Element*>(c.queue) + slot * c.queue_stride;
    Vec<T> by = splat<T>(1);
    if (c.normalize) {
      Vec<T> squares{};
      for (int64_t k = 0; k < whole; k += lanes<T>) {
        const Vec<T> v = read_elements<T, From>(x + k);
        squares += v * v;
      }
      if (rest) {
        const Vec<T> v = read_last<T, From>(x + whole, rest);
        squares += v * v;
      }
      const T norm = std::sqrt(sum_lanes<T>(squares));
      by = splat<T>(norm < T(smallest_norm) ? T(smallest_norm) : norm);
    }
    // The rounding to 16 bits hides the one that a division saves, which takes as long as all the rest of the row
    const Vec<T> inverse = splat<T>(1) / by;
    auto scaled = [&](Vec<T> v) __attribute__((always_inline)) { return sizeof *q == 2 ? v * inverse : v / by; };
    // A queue is larger than a cache, and what is written now is read by the next step at the earliest: reading it before
    // writing it, as an ordinary store has the cache do, took 1.6 to 2 times as long
    const bool past_caches = reinterpret_cast<uintptr_t>(q) % (lanes<T> * sizeof *q) == 0;
    for (int64_t k = 0; k < whole; k += lanes<T>) {
      const Vec<T> v = scaled(read_elements<T, From>(x + k));
      past_caches ? stream_elements<T, To>(q + k, v) : write_elements<T, To>(q + k, v);
    }
    if (rest) write_last<T, To>(q + whole, rest, scaled(read_last<T, From>(x + whole, rest)));
  }
  end_stream();
}

inline void enqueue_rows(const EnqueueCall& c, int64_t pointer, int64_t begin, int64_t end) {
  with_any_dtype(c.queue_dtype, [&](auto to) {
    with_any_dtype(c.rows_dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      using T = std::conditional_t<std::is_same_v<To, F64> || std::is_same_v<From, F64>, double, float>;
      enqueue_rows<T, To, From>(c, pointer, begin, end);
    });
  });
}

}  // namespace ssl::SSL_ISA
