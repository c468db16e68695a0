// Rows on the sphere and the distances of pairs of them, in double: of two rows that nearly coincide the difference is
// beyond the digits of a float, and its inverse is the gradient.
#pragma once
#include <cmath>
#include <limits>
#include "elements.h"
#include "log_distance.h"
#include "workspace.h"

namespace ssl::SSL_ISA {

typedef float HalfOfFloats __attribute__((vector_size(SSL_VECTOR_BYTES / 2)));

// `factor` times a row.
template <class Format>
SSL_INLINE void read_row(const typename Format::Element* x, int64_t width, double factor, double* out) {
  int64_t k = 0;
  for (; k + lanes<float> <= width; k += lanes<float>) {
    const Vec<float> v = read_elements<float, Format>(x + k);
    HalfOfFloats halves[2];
    memcpy(halves, &v, sizeof v);
    for (int h = 0; h < 2; ++h)
      store<double>(out + k + h * lanes<double>, __builtin_convertvector(halves[h], Vec<double>) * factor);
  }
  for (; k < width; ++k) out[k] = double(Format::template read<float>(x[k])) * factor;
}

// of(v, k), rounded, for all v = in[k]; `of` takes vectors and numbers.
template <class Format, class Of>
SSL_INLINE void write_row(typename Format::Element* x, int64_t width, const double* in, Of&& of) {
  int64_t k = 0;
  for (; k + lanes<float> <= width; k += lanes<float>) {
    HalfOfFloats halves[2];
    for (int h = 0; h < 2; ++h) {
      const int64_t at = k + h * lanes<double>;
      halves[h] = __builtin_convertvector(of(load<double>(in + at), at), HalfOfFloats);
    }
    Vec<float> v;
    memcpy(&v, halves, sizeof v);
    write_elements<float, Format>(x + k, v);
  }
  for (; k < width; ++k) x[k] = Format::template write<float>(float(of(in[k], k)));
}

SSL_INLINE double product(const double* a, const double* b, int64_t width) {
  Vec<double> sums{};
  int64_t k = 0;
  for (; k + lanes<double> <= width; k += lanes<double>) sums += load<double>(a + k) * load<double>(b + k);
  double sum = sum_lanes<double>(sums);
  for (; k < width; ++k) sum += a[k] * b[k];
  return sum;
}

// |a - b + eps|^2
SSL_INLINE double squared_distance(const double* a, const double* b, double eps, int64_t width) {
  Vec<double> sums{};
  int64_t k = 0;
  for (; k + lanes<double> <= width; k += lanes<double>) {
    const Vec<double> d = load<double>(a + k) - load<double>(b + k) + eps;
    sums += d * d;
  }
  double sum = sum_lanes<double>(sums);
  for (; k < width; ++k) sum += (a[k] - b[k] + eps) * (a[k] - b[k] + eps);
  return sum;
}

// g += weight (a - b + eps), so that of rows that are the same either of a pair takes exactly what the other gave.
SSL_INLINE void add_difference(double* g, double weight, const double* a, const double* b, double eps, int64_t width) {
  const double constant = weight * eps;
  int64_t k = 0;
  for (; k + lanes<double> <= width; k += lanes<double>)
    store<double>(g + k, load<double>(g + k) + (weight * (load<double>(a + k) - load<double>(b + k)) + constant));
  for (; k < width; ++k) g[k] += weight * (a[k] - b[k]) + constant;
}

template <class Format> SSL_INLINE void read_unit_row(const LogDistanceCall& c, int64_t row, double* out) {
  const double n = c.norm[row], factor = 1 / (n < smallest_norm ? smallest_norm : n);
  read_row<Format>(static_cast<const typename Format::Element*>(c.x) + row * c.stride, c.width, factor, out);
}

inline void norms_of_rows(const LogDistanceCall& c, int64_t begin, int64_t end) {
  const Buffer<double> row = allocate<double>(c.width);
  with_dtype<float>(c.dtype, [&](auto format) {
    using Format = decltype(format);
    for (int64_t i = begin; i < end; ++i) {
      read_row<Format>(static_cast<const typename Format::Element*>(c.x) + i * c.stride, c.width, 1, row.get());
      c.norm[i] = std::sqrt(product(row.get(), row.get(), c.width));
    }
  });
}

inline void log_distance_rows(const LogDistanceCall& c, int64_t begin, int64_t end) {
  const Buffer<double> a = allocate<double>(c.width), b = allocate<double>(c.width);
  with_dtype<float>(c.dtype, [&](auto format) {
    using Format = decltype(format);
    for (int64_t i = begin; i < end; ++i) {
      read_unit_row<Format>(c, c.first + i, a.get());
      read_unit_row<Format>(c, c.index[i], b.get());
      c.distance[i] = std::sqrt(squared_distance(a.get(), b.get(), c.eps, c.width));
      c.value[i] = float(std::log(c.distance[i] + c.eps));
    }
  });
}

inline void log_distance_backward_rows(const LogDistanceBackwardCall& c, int64_t begin, int64_t end) {
  const LogDistanceCall& f = c.forward;
  const int64_t width = f.width;
  const Buffer<double> rows = allocate<double>(3 * width);
  double *const z = rows.get(), *const y = z + width, *const g = y + width;
  // d log(|v| + eps) / dv = v / (|v| (|v| + eps)), and at v = 0, where there is none, 0
  auto weight = [&](int64_t i) {
    const double d = f.distance[i];
    return d == 0 ? 0. : double(c.dvalue[i]) / (d * (d + f.eps));
  };
  with_dtype<float>(f.dtype, [&](auto format) {
    using Format = decltype(format);
    for (int64_t row = begin; row < end; ++row) {
      read_unit_row<Format>(f, row, z);
      std::memset(g, 0, width * sizeof(double));
      if (const int64_t i = row - f.first; i >= 0 && i < f.count) {
        read_unit_row<Format>(f, f.index[i], y);
        add_difference(g, weight(i), z, y, f.eps, width);
      }
      for (int64_t k = c.starts[row]; k < c.starts[row + 1]; ++k) {
        const int64_t i = c.from[k];
        read_unit_row<Format>(f, f.first + i, y);
        add_difference(g, -weight(i), y, z, f.eps, width);
      }
      // A row of zeros is not projected; its gradient is huge, finite in float32, and kept so in what is narrower.
      const bool held = f.norm[row] < smallest_norm;
      const double along = held ? 0. : product(g, z, width), factor = 1 / (held ? smallest_norm : f.norm[row]);
      const double top = held ? Format::largest : std::numeric_limits<double>::infinity();
      auto projected = [&](auto v, int64_t k) __attribute__((always_inline)) {
        decltype(v) unit, most{};
        memcpy(&unit, z + k, sizeof unit);
        most += top;
        const decltype(v) d = factor * (v - along * unit);
        return d > most ? most : d < -most ? -most : d;
      };
      write_row<Format>(static_cast<typename Format::Element*>(c.dx) + row * width, width, g, projected);
    }
  });
}

}  // namespace ssl::SSL_ISA
