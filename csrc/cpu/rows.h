// Rows in and out: any input dtype to T, normalised and packed; gradients back through the normalisation.
#pragma once
#include <cmath>
#include "sweep.h"
#include "tile.h"

namespace ssl::SSL_ISA {

// As torch.nn.functional.normalize: rows are divided by max(norm, this).
constexpr double smallest_norm = 1e-12;

SSL_INLINE float from_bf16(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

SSL_INLINE uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if (f != f) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

SSL_INLINE float from_f16(uint16_t h) {
  uint32_t bits = uint32_t(h & 0x7fff) << 13;
  float f;
  memcpy(&f, &bits, 4);
  f *= 5.192296858534828e33f;  // 2^112 moves the exponent's bias, denormals included
  memcpy(&bits, &f, 4);
  if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinity and NaN
  bits |= uint32_t(h & 0x8000) << 16;
  memcpy(&f, &bits, 4);
  return f;
}

SSL_INLINE uint16_t to_f16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint16_t sign = uint16_t(bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to more than 65504
  if (bits < 0x38800000) {                       // denormal: adding 1/2 puts the rounded bits at the bottom
    float a;
    memcpy(&a, &bits, 4);
    a += 0.5f;
    memcpy(&bits, &a, 4);
    return sign | uint16_t(bits - 0x3f000000);
  }
  bits += 0xc8000fff + ((bits >> 13) & 1);  // the bias, and half a unit (ties to even)
  return sign | uint16_t(bits >> 13);
}

// Every result is a sum over at least so many entries. What each is rounded by averages out over many; few, which take
// little time anyway, are computed with more care.
inline int64_t least_entries(const Sweep<float>& s) {
  return s.rows_alone || s.x->rows > s.y->rows ? s.y->rows : s.x->rows;
}
inline bool many_rows(const Sweep<float>& s) { return least_entries(s) >= 512; }

struct F32 {
  typedef float Element;
  template <class T> static SSL_INLINE T read(float x) { return T(x); }
  template <class T> static SSL_INLINE float write(T x) { return float(x); }
  static constexpr double largest = 3.4028234663852886e38;
};
struct F64 {
  typedef double Element;
  template <class T> static SSL_INLINE T read(double x) { return T(x); }
  template <class T> static SSL_INLINE double write(T x) { return double(x); }
  static constexpr double largest = 1.7976931348623157e308;
};
struct BF16 {
  typedef uint16_t Element;
  template <class T> static SSL_INLINE T read(uint16_t x) { return T(from_bf16(x)); }
  template <class T> static SSL_INLINE uint16_t write(T x) { return to_bf16(float(x)); }
  static constexpr double largest = 3.3895313892515355e38;
};
struct F16 {
  typedef uint16_t Element;
  template <class T> static SSL_INLINE T read(uint16_t x) { return T(from_f16(x)); }
  template <class T> static SSL_INLINE uint16_t write(T x) { return to_f16(float(x)); }
  static constexpr double largest = 65504.;
};

// float64 comes with T = double, everything else with T = float
template <class T, class F> SSL_INLINE void with_dtype(DType dtype, F&& f) {
  if constexpr (sizeof(T) == 8) {
    f(F64{});
  } else {
    if (dtype == DType::f32) f(F32{});
    if (dtype == DType::bf16) f(BF16{});
    if (dtype == DType::f16) f(F16{});
  }
}

// Walks the parts row by row.
struct RowCursor {
  const Part *part, *last;
  int64_t row;
  RowCursor(const Part* parts, int64_t count, int64_t i) : part(parts), last(parts + count - 1), row(i) { settle(); }
  void next() {
    ++row;
    settle();
  }
  void settle() {
    while (part < last && row >= part->rows) row -= (part++)->rows;
  }
};

// Elements of [chunks][padded][panel].
template <class T> int64_t cells(const Sweep<T>& s, const Side<T>& side) { return s.chunks * side.padded * panel<T>; }
template <class T> SSL_INLINE T* z_row(const Side<T>& side, int64_t chunk, int64_t i) {
  return side.z + (chunk * side.padded + i - side.first) * panel<T>;
}
template <class T> SSL_INLINE T* g_row(const Side<T>& side, int64_t chunk, int64_t i) {
  T* g = side.g;
  int64_t row = i - side.first;
  if (side.g_in_parts) {
    const RowCursor at(side.parts, side.part_count, i);
    g = static_cast<T*>(at.part->grad);
    row = at.row;
  }
  return g + row * side.g_row + chunk * side.g_chunk;
}

// N numbers of a row from x on in T, where they are or in `room`: zeros beyond the n that the row still has.
template <class Format, int64_t N, class T>
SSL_INLINE const T* read_numbers(const typename Format::Element* x, int64_t n, T* room) {
  if (n >= N) {
    if constexpr (sizeof(*x) == sizeof(T)) return x;
    for (int64_t k = 0; k < N; ++k) room[k] = Format::template read<T>(x[k]);
    return room;
  }
  for (int64_t k = 0; k < n; ++k) room[k] = Format::template read<T>(x[k]);
  for (int64_t k = n; k < N; ++k) room[k] = 0;
  return room;
}
template <class Format, class T>
SSL_INLINE const T* read_panel(const typename Format::Element* x, int64_t n, T* room) {
  return read_numbers<Format, panel<T>>(x, n, room);
}

template <class Format, class T> SSL_INLINE T norm_of(const typename Format::Element* x, int64_t width) {
  constexpr int64_t P = panel<T>;
  alignas(64) T room[P];
  Vec<T> squares{};
  for (int64_t k = 0; k < width; k += P) {
    const T* const z = read_panel<Format>(x + k, width - k, room);
    for (int v = 0; v < NV; ++v) squares += load<T>(z + v * lanes<T>) * load<T>(z + v * lanes<T>);
  }
  return std::sqrt(sum_lanes<T>(squares));
}

// What normalisation divides a row by, of this norm. A division, not a product with the reciprocal: one rounding fewer,
// in step with the eager definition.
template <class T> SSL_INLINE T divisor(T norm) { return norm < T(smallest_norm) ? T(smallest_norm) : norm; }

template <class T> SSL_INLINE void divide(const T* panel, T by, T* to) {
  for (int v = 0; v < NV; ++v) store<T>(to + v * lanes<T>, load<T>(panel + v * lanes<T>) / splat<T>(by));
}

template <class Format> SSL_INLINE const typename Format::Element* row_of(const RowCursor& at) {
  return static_cast<const typename Format::Element*>(at.part->data) + at.row * at.part->stride;
}

// Rows [i0, i1) of z and their norms; zeros where rows and columns are padded.
template <class T> void read_rows(const Sweep<T>& s, const Side<T>& side, int64_t i0, int64_t i1) {
  constexpr int64_t P = panel<T>;
  const int64_t last = i1 < side.rows ? i1 : side.rows;
  with_dtype<T>(s.dtype, [&](auto format) {
    using Format = decltype(format);
    alignas(64) T room[P];
    RowCursor at(side.parts, side.part_count, i0);
    for (int64_t i = i0; i < last; ++i, at.next()) {
      const auto* const x = row_of<Format>(at);
      const T norm = side.norm[i - side.first] = norm_of<Format, T>(x, s.width);
      for (int64_t c = 0; c < s.chunks; ++c) {
        const T* const from = read_panel<Format>(x + c * P, s.width - c * P, room);
        T* const z = z_row(side, c, i);
        if (s.normalize)
          divide(from, divisor(norm), z);
        else
          memcpy(z, from, P * sizeof(T));
      }
    }
  });
  for (int64_t i = i0 > side.rows ? i0 : side.rows; i < i1; ++i)
    for (int64_t c = 0; c < s.chunks; ++c) memset(z_row(side, c, i), 0, P * sizeof(T));
}

// A row of z as finish() reads it, a chunk at a time: packed,
template <class T> struct PackedRow {
  const T* z;
  int64_t stride;
  PackedRow(const Sweep<T>&, const Side<T>& side, int64_t i) : z(z_row(side, 0, i)), stride(side.padded * panel<T>) {}
  SSL_INLINE const T* chunk(int64_t c, T*) const { return z + c * stride; }
};
// or, where the sweep packed something else, from the caller's memory once more.
template <class T> struct CallersRow {
  const Sweep<T>& s;
  RowCursor at;
  T norm;
  CallersRow(const Sweep<T>& s, const Side<T>& side, int64_t i)
      : s(s), at(side.parts, side.part_count, i), norm(side.norm[i - side.first]) {}
  SSL_INLINE const T* chunk(int64_t c, T* room) const {
    const T* z = room;
    with_dtype<T>(s.dtype, [&](auto format) __attribute__((always_inline)) {
      using Format = decltype(format);
      z = read_panel<Format>(row_of<Format>(at) + c * panel<T>, s.width - c * panel<T>, room);
    });
    if (!s.normalize) return z;
    divide(z, divisor(norm), room);
    return room;
  }
};

// to[k][r] = from[r][k] for a panel of rows and `columns` columns, a square of registers at a time. It reads on to the
// end of the last square.
template <class T> SSL_INLINE void transpose_panel(const T* from, int64_t stride, int64_t columns, T* to) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  for (int64_t k = 0; k < columns; k += L)
    for (int64_t i = 0; i < P; i += L) {
      Vec<T> square[L];
      for (int64_t r = 0; r < L; ++r) square[r] = load<T>(from + (i + r) * stride + k);
      transpose<T>(square);
      for (int64_t r = 0; r < L && k + r < columns; ++r) store<T>(to + (k + r) * P + i, square[r]);
    }
}

template <class T> void pack(const Sweep<T>& s, const Side<T>& side, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t P = panel<T>;
  for (int64_t p = first_panel; p < last_panel; ++p) {
    const int64_t i0 = side.first + p * P;
    read_rows(s, side, i0, i0 + P);
    if (&side != s.y) continue;  // rows go in one by one
    for (int64_t k = 0; k < s.width; k += P)
      transpose_panel<T>(z_row(side, k / P, i0), P, s.width - k < P ? s.width - k : P,
                         side.zt + (p * s.width + k) * P);
  }
}

// dz_i = scale (sum_j G_ij z_j + sum over positives p of their logits' gradients z_p), then through z = x / |x|.
template <class T, class Row = PackedRow<T>> double finish(const Sweep<T>& s, const Side<T>& side, int64_t i0, int64_t i1) {
  constexpr int64_t P = panel<T>;
  alignas(64) T room[P], more[P];
  double euler = 0;
  RowCursor at(side.parts, side.part_count, i0);
  for (int64_t i = i0; i < i1; ++i, at.next()) {
    T* const g = g_row(side, 0, i);
    const Row z(s, side, i);
    // z_i . g_i in two parts: positives that nearly cancel in g would leave few digits of their products
    Vec<T> sums{};
    for (int64_t c = 0; c < s.chunks; ++c) {
      const T* const a = z.chunk(c, room);
      for (int v = 0; v < NV; ++v)
        sums += load<T>(a + v * lanes<T>) * load<T>(g + c * side.g_chunk + v * lanes<T>);
    }
    double along = sum_lanes<T>(sums);
    for_positives(s, side, i, [&](const Side<T>& other, int64_t row, T w) __attribute__((always_inline)) {
      const Row p(s, other, row);
      Vec<T> products{};
      for (int64_t c = 0; c < s.chunks; ++c) {
        const T *const a = z.chunk(c, room), *const b = p.chunk(c, more);
        T* const to = g + c * side.g_chunk;
        for (int v = 0; v < NV; ++v) {
          const Vec<T> of_p = load<T>(b + v * lanes<T>);
          products += load<T>(a + v * lanes<T>) * of_p;
          store<T>(to + v * lanes<T>, load<T>(to + v * lanes<T>) + splat<T>(w) * of_p);
        }
      }
      along += double(w) * sum_lanes<T>(products);
    });
    euler += along;
    if (!at.part->grad) continue;
    const T n = side.norm[i - side.first];
    const bool through = s.normalize && !(n < T(smallest_norm));
    const T factor = s.normalize ? s.scale / divisor(n) : s.scale, back = through ? T(along) : T(0);
    auto put = [&](auto format) __attribute__((always_inline)) {
      using Format = decltype(format);
      typename Format::Element* out = static_cast<typename Format::Element*>(at.part->grad) + at.row * s.width;
      for (int64_t c = 0; c < s.chunks; ++c, out += P) {
        const T* const a = z.chunk(c, room);
        T* const d = g + c * side.g_chunk;
        for (int v = 0; v < NV; ++v) {
          Vec<T> x = factor * (load<T>(d + v * lanes<T>) - back * load<T>(a + v * lanes<T>));
          // A zero row's gradient is g / 1e-12: finite in float32, and kept so in what is narrower
          if (s.normalize && !through) {
            const Vec<T> top = splat(T(Format::largest));
            x = x > top ? top : x < -top ? -top : x;
          }
          store<T>(d + v * lanes<T>, x);
        }
        if (static_cast<void*>(out) == d) continue;  // where it belongs
        const int64_t n = s.width - c * P < P ? s.width - c * P : P;
        for (int64_t k = 0; k < n; ++k) out[k] = Format::template write<T>(d[k]);
      }
    };
    with_dtype<T>(s.wide_gradients ? DType::f32 : s.dtype, put);
  }
  return euler;
}

}  // namespace ssl::SSL_ISA
