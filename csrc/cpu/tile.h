// Register-blocked matrix products: MR rows times one panel of NV vectors, the block that fills the register file.
#pragma once
#include "simd.h"

namespace ssl::SSL_ISA {

// AVX-512 has 32 registers: 6 x 4 accumulators, 4 of B, the rest for A; 16 registers elsewhere: 6 x 2 (AVX2, where A can
// be a memory operand of the product), 4 x 2 (plain code, which needs a register for it).
constexpr int MR = SSL_TILE_ROWS, NV = SSL_TILE_VECTORS;
template <class T> constexpr int64_t panel = NV * lanes<T>;

template <class T, int R, int V = NV> using Acc = Vec<T>[R][V];

template <class T, int R, int V> SSL_INLINE void clear(Acc<T, R, V>& acc) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = Vec<T>{};
}

template <class T, int R, int V> SSL_INLINE void read(Acc<T, R, V>& acc, const T* c, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = load<T>(c + r * stride + v * lanes<T>);
}

template <class T, int R, int V> SSL_INLINE void write(const Acc<T, R, V>& acc, T* c, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T>(c + r * stride + v * lanes<T>, acc[r][v]);
}

// acc[r][:] += sum_k a(r, k) * b[k][:], a(r, k) = a[r * row + k * step], b[k] at b + k * b_stride
template <class T, int R, int V>
SSL_INLINE void multiply_add(Acc<T, R, V>& acc, const T* __restrict a, int64_t row, int64_t step, const T* __restrict b,
                             int64_t b_stride, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k, a += step, b += b_stride) {
    Vec<T> bv[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) bv[v] = load<T>(b + v * lanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> av = splat<T>(a[r * row]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = plus_product(acc[r][v], av, bv[v]);
    }
  }
}

template <int N> struct Count {
  static constexpr int value = N;
};

// Calls f(Count<R>, row) over all rows in groups of MR, the last group smaller.
template <int R, class F> SSL_INLINE void tail_group(int64_t left, int64_t row, F&& f) {
  if constexpr (R > 0) {
    if (left == R)
      f(Count<R>{}, row);
    else
      tail_group<R - 1>(left, row, f);
  }
}
template <class F> SSL_INLINE void for_row_groups(int64_t rows, F&& f) {
  int64_t row = 0;
  for (; row + MR <= rows; row += MR) f(Count<MR>{}, row);
  tail_group<MR - 1>(rows - row, row, f);
}

// Asks for a block of C: rows that are far apart no prefetcher of the machine foresees.
template <int R, int V, class T> SSL_INLINE void fetch_ahead(const T* c, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int64_t byte = 0; byte < V * SSL_VECTOR_BYTES; byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(c + r * stride) + byte, 1);
}

// C[rows][V vectors] += A B, in place; A and B as in multiply_add, the rows of C `stride` apart.
template <class T, int V>
void add_product_columns(T* c, int64_t rows, int64_t stride, const T* a, int64_t a_row, int64_t a_step, const T* b,
                         int64_t b_stride, int64_t depth) {
  for_row_groups(rows, [&](auto count, int64_t r) __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
    Acc<T, R, V> acc;
    read<T, R, V>(acc, c + r * stride, stride);
    fetch_ahead<R, V>(c + (r + R) * stride, stride);
    multiply_add<T, R, V>(acc, a + r * a_row, a_row, a_step, b, b_stride, depth);
    write<T, R, V>(acc, c + r * stride, stride);
  });
}

// The same for the first `columns` of a panel, rounded up to whole vectors.
template <class T, int V = NV>
void add_product(int64_t columns, T* c, int64_t rows, int64_t stride, const T* a, int64_t a_row, int64_t a_step,
                 const T* b, int64_t b_stride, int64_t depth) {
  if constexpr (V > 1) {
    if (columns <= (V - 1) * lanes<T>)
      return add_product<T, V - 1>(columns, c, rows, stride, a, a_row, a_step, b, b_stride, depth);
  }
  add_product_columns<T, V>(c, rows, stride, a, a_row, a_step, b, b_stride, depth);
}

}  // namespace ssl::SSL_ISA
