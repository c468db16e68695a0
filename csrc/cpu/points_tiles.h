// Points in and gradients out: panels of transposed rows.
#pragma once
#include "elements.h"
#include "points.h"

namespace ssl::SSL_ISA {

// Of row i, the first coordinate; the next are a panel apart.
template <class T> SSL_INLINE T* point(const Points<T>& p, T* z, int64_t i) {
  constexpr int64_t P = panel<T>;
  return z + i / P * p.width * P + i % P;
}

template <class T> void pack_points(const Points<T>& p, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  with_any_dtype(p.dtype, [&](auto format) {
    using Format = decltype(format);
    using Element = typename Format::Element;
    RowCursor at(p.parts, p.part_count, first_panel * P);
    for (int64_t i = first_panel * P; i < last_panel * P; i += L) {
      const Element* x[L] = {};
      for (int64_t r = 0; r < L && i + r < p.rows; ++r, at.next())
        x[r] = static_cast<const Element*>(at.part->data) + at.row * at.part->stride;
      T* z = point(p, p.z, i);
      for (int64_t k = 0; k < p.width; k += L) {
        const int64_t n = p.width - k < L ? p.width - k : L;
        Vec<T> square[L] = {};
        for (int64_t r = 0; r < L; ++r)
          if (x[r]) square[r] = n == L ? read_elements<T, Format>(x[r] + k) : read_last<T, Format>(x[r] + k, n);
        transpose<T>(square);
        for (int64_t c = 0; c < n; ++c) store<T>(z + (k + c) * P, square[c]);
      }
      if (!p.normalize) continue;
      Vec<T> squares{};
      for (int64_t k = 0; k < p.width; ++k) squares += load<T>(z + k * P) * load<T>(z + k * P);
      Vec<T> norm;
      for (int64_t r = 0; r < L; ++r) norm[r] = std::sqrt(squares[r]);
      norm = norm < splat<T>(T(smallest_norm)) ? splat<T>(T(smallest_norm)) : norm;
      for (int64_t k = 0; k < p.width; ++k) store<T>(z + k * P, load<T>(z + k * P) / norm);
    }
  });
}

}  // namespace ssl::SSL_ISA
