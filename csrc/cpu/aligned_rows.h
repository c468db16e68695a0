// Cosines of pairs of rows.
#pragma once
#include <cmath>
#include "aligned.h"
#include "elements.h"

namespace ssl::SSL_ISA {

template <class T, class Format> void cosine_rows(const CosineCall& c, int64_t begin, int64_t end) {
  using Element = typename Format::Element;
  const int64_t whole = c.width / lanes<T> * lanes<T>, rest = c.width - whole;
  const T eps = T(c.eps);
  for (int64_t i = begin; i < end; ++i) {
    const Element* x = static_cast<const Element*>(c.x) + i * c.x_stride;
    const Element* y = static_cast<const Element*>(c.y) + i * c.y_stride;
    Vec<T> xx{}, yy{}, xy{};
    auto add = [&](Vec<T> a, Vec<T> b) __attribute__((always_inline)) {
      xx += a * a;
      yy += b * b;
      xy += a * b;
    };
    for (int64_t k = 0; k < whole; k += lanes<T>) add(read_elements<T, Format>(x + k), read_elements<T, Format>(y + k));
    if (rest) add(read_last<T, Format>(x + whole, rest), read_last<T, Format>(y + whole, rest));
    const T nx = std::sqrt(sum_lanes<T>(xx)), ny = std::sqrt(sum_lanes<T>(yy));
    static_cast<T*>(c.x_norm)[i] = nx;
    static_cast<T*>(c.y_norm)[i] = ny;
    // one division after the other: the product of the norms may leave the range of T
    static_cast<T*>(c.cosine)[i] = sum_lanes<T>(xy) / (nx < eps ? eps : nx) / (ny < eps ? eps : ny);
  }
}

template <class T, class Format> void cosine_backward_rows(const CosineBackwardCall& c, int64_t begin, int64_t end) {
  using Element = typename Format::Element;
  const CosineCall& f = c.forward;
  const int64_t whole = f.width / lanes<T> * lanes<T>, rest = f.width - whole;
  const T eps = T(f.eps), largest = T(Format::largest);
  for (int64_t i = begin; i < end; ++i) {
    const Element* x = static_cast<const Element*>(f.x) + i * f.x_stride;
    const Element* y = static_cast<const Element*>(f.y) + i * f.y_stride;
    const T g = static_cast<const T*>(c.dcosine)[i], cosine = static_cast<const T*>(f.cosine)[i];
    const T nx = static_cast<const T*>(f.x_norm)[i], ny = static_cast<const T*>(f.y_norm)[i];
    // d cosine / da = (b / |b| - cosine a / |a|) / |a|, and without the second term where |a| is held at eps. That is
    // large, finite in float32, and kept so in what is narrower.
    auto write = [&](void* grad, const Element* a, T na, const Element* b, T nb) __attribute__((always_inline)) {
      Element* out = static_cast<Element*>(grad) + i * f.width;
      const bool held = na < eps;
      const Vec<T> by_a = splat<T>(held ? eps : na), by_b = splat<T>(nb < eps ? eps : nb);
      const Vec<T> back = splat<T>(held ? T(0) : cosine), factor = splat<T>(g / by_a[0]), top = splat<T>(largest);
      auto gradient = [&](Vec<T> va, Vec<T> vb) __attribute__((always_inline)) {
        Vec<T> d = factor * (vb / by_b - back * (va / by_a));
        if (held) d = d > top ? top : d < -top ? -top : d;
        return d;
      };
      for (int64_t k = 0; k < whole; k += lanes<T>)
        write_elements<T, Format>(out + k, gradient(read_elements<T, Format>(a + k), read_elements<T, Format>(b + k)));
      if (rest)
        write_last<T, Format>(out + whole, rest,
                              gradient(read_last<T, Format>(a + whole, rest), read_last<T, Format>(b + whole, rest)));
    };
    if (c.dx) write(c.dx, x, nx, y, ny);
    if (c.dy) write(c.dy, y, ny, x, nx);
  }
}

inline void cosine_rows(const CosineCall& c, int64_t begin, int64_t end) {
  with_any_dtype(c.dtype, [&](auto format) {
    using Format = decltype(format);
    cosine_rows<std::conditional_t<std::is_same_v<Format, F64>, double, float>, Format>(c, begin, end);
  });
}

inline void cosine_backward_rows(const CosineBackwardCall& c, int64_t begin, int64_t end) {
  with_any_dtype(c.forward.dtype, [&](auto format) {
    using Format = decltype(format);
    cosine_backward_rows<std::conditional_t<std::is_same_v<Format, F64>, double, float>, Format>(c, begin, end);
  });
}

}  // namespace ssl::SSL_ISA
