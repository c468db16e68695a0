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
    // A queue is larger than a cache, and what is written now is read by the next step at the earliest: reading it before
    // writing it, as an ordinary store has the cache do, took 1.6 to 2 times as long
    const bool past_caches = same_dtype<T, To> && reinterpret_cast<uintptr_t>(q) % SSL_VECTOR_BYTES == 0;
    for (int64_t k = 0; k < whole; k += lanes<T>) {
      const Vec<T> v = read_elements<T, From>(x + k) / by;
      if constexpr (same_dtype<T, To>) {
        if (past_caches) {
          stream<T>(q + k, v);
          continue;
        }
      }
      write_elements<T, To>(q + k, v);
    }
    if (rest) write_last<T, To>(q + whole, rest, read_last<T, From>(x + whole, rest) / by);
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
