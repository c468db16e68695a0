// Cosines of paired rows: both read once forward, once backward.
#include "api.h"
#include "elements.h"
#include "warps.h"

namespace ssl::cuda {
namespace {

template <class T> struct Pair {
  const T *x, *y;
  bool vector;
};
template <class T> SSL_DEVICE Pair<T> pair_of_rows(const Cosine& call, int64_t row) {
  const T *const x = static_cast<const T*>(call.x), *const y = static_cast<const T*>(call.y);
  return {x + row * call.x_stride, y + row * call.y_stride, aligned(x, call.x_stride) && aligned(y, call.y_stride)};
}

// max(norm, eps), but NaN for NaN.
template <class Real> SSL_DEVICE Real at_least(Real norm, double eps) { return norm < Real(eps) ? Real(eps) : norm; }

template <class T> __global__ void __launch_bounds__(ROW_THREADS) cosine_rows(const Cosine call, int lanes) {
  using Real = RealOf<T>;
  const int64_t row = (int64_t(blockIdx.x) * ROW_THREADS + threadIdx.x) / lanes;
  const int lane = int(threadIdx.x) % lanes;
  Real xx = 0, yy = 0, xy = 0;
  if (row < call.rows) {
    const Pair<T> from = pair_of_rows<T>(call, row);
    for (int64_t d = 8 * lane; d < call.width; d += 8 * lanes) {
      Real a[8], b[8];
      load_eight(a, from.x + d, up_to_eight(call.width - d), from.vector);
      load_eight(b, from.y + d, up_to_eight(call.width - d), from.vector);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        xx += a[k] * a[k];
        yy += b[k] * b[k];
        xy += a[k] * b[k];
      }
    }
  }
  xx = sum_of_lanes(xx, lanes);
  yy = sum_of_lanes(yy, lanes);
  xy = sum_of_lanes(xy, lanes);
  if (row < call.rows && lane == 0) {
    const Real nx = std::sqrt(xx), ny = std::sqrt(yy);
    // one division after the other: the product of the norms may leave the range of float32
    static_cast<Real*>(call.value)[row] = xy / at_least(nx, call.eps) / at_least(ny, call.eps);
    static_cast<Real*>(call.x_norm)[row] = nx;
    static_cast<Real*>(call.y_norm)[row] = ny;
  }
}

// d = g times the cosine's gradient by a; a norm below eps counts as eps and has none of its own.
template <class T, class Real>
SSL_DEVICE void write_gradient(T* to, int count, bool vector, Real g, Real cosine, const Real (&a)[8], Real norm_a,
                               const Real (&b)[8], Real norm_b, double eps) {
  const Real by_a = at_least(norm_a, eps), by_b = at_least(norm_b, eps);
  const bool held = by_a > norm_a;
  Real d[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    d[k] = g / by_a * (b[k] / by_b - (held ? Real(0) : cosine) * (a[k] / by_a));
    if constexpr (is_half<T>)  // of a row of zeros: finite in float32, and kept so in what is narrower
      if (held) d[k] = d[k] > LARGEST<T> ? LARGEST<T> : d[k] < -LARGEST<T> ? -LARGEST<T> : d[k];
  }
  store_eight(to, d, count, vector);
}

template <class T> __global__ void __launch_bounds__(ROW_THREADS) cosine_gradients(const CosineBackward call, int lanes) {
  using Real = RealOf<T>;
  const Cosine& f = call.forward;
  const int64_t row = (int64_t(blockIdx.x) * ROW_THREADS + threadIdx.x) / lanes;
  const int lane = int(threadIdx.x) % lanes;
  if (row >= f.rows) return;
  const Pair<T> from = pair_of_rows<T>(f, row);
  const Real g = static_cast<const Real*>(call.dvalue)[row], cosine = static_cast<const Real*>(f.value)[row];
  const Real nx = static_cast<const Real*>(f.x_norm)[row], ny = static_cast<const Real*>(f.y_norm)[row];
  T *const dx = static_cast<T*>(call.dx), *const dy = static_cast<T*>(call.dy);
  for (int64_t d = 8 * lane; d < f.width; d += 8 * lanes) {
    const int count = up_to_eight(f.width - d);
    Real a[8], b[8];
    load_eight(a, from.x + d, count, from.vector);
    load_eight(b, from.y + d, count, from.vector);
    const int64_t at = row * f.width + d;
    if (dx) write_gradient(dx + at, count, aligned(dx, f.width), g, cosine, a, nx, b, ny, f.eps);
    if (dy) write_gradient(dy + at, count, aligned(dy, f.width), g, cosine, b, ny, a, nx, f.eps);
  }
}

dim3 blocks_of_rows(int64_t rows, int lanes) {
  return dim3(unsigned((rows * lanes + ROW_THREADS - 1) / ROW_THREADS));
}

}  // namespace

int cosine(const Cosine& call, void* stream) {
  const int lanes = lanes_of_row(call.width);
  return with_elements(call.dtype, [&]<class T>() {
    return launch(cosine_rows<T>, blocks_of_rows(call.rows, lanes), ROW_THREADS, 0, stream, call, lanes);
  });
}

int cosine_backward(const CosineBackward& call, void* stream) {
  const int lanes = lanes_of_row(call.forward.width);
  return with_elements(call.forward.dtype, [&]<class T>() {
    return launch(cosine_gradients<T>, blocks_of_rows(call.forward.rows, lanes), ROW_THREADS, 0, stream, call, lanes);
  });
}

}  // namespace ssl::cuda
