// Cross-entropies between views, logits given: a block takes some columns of one sample, all of the teacher's views and all of the
// student's, so that every logit is read once. What a row's columns gave is put together by the warp of its sample.
#include "logits.h"
#include "numbers.h"
#include "warps.h"

namespace ssl::cuda {
namespace {

constexpr int WARPS = 8;

// A lane's share of a block's columns.
template <int COLUMNS> struct Lane {
  static constexpr int SHARE = COLUMNS / 32;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int first = int(blockIdx.y) * COLUMNS;
  SSL_DEVICE int in_block(int k) const { return 32 * k + lane; }
  // How many of the lane's are inside.
  SSL_DEVICE int count(const Views& v) const { return (v.width - first - lane + 31) / 32; }
};

// The teacher's logits less the centre, or its probabilities; `otherwise` beyond the last column.
template <class Real, int COLUMNS>
SSL_DEVICE void load_teacher(Real (&x)[COLUMNS / 32], const Views& v, const Lane<COLUMNS>& l, int t, int b, Real otherwise) {
  const int first = l.first + l.lane, count = l.count(v);
  load_share(x, v.teacher, v.dtype, (int64_t(t) * v.batch + b) * v.teacher_stride + first, 32, count, otherwise);
  if (!v.center) return;
  const Real* const center = static_cast<const Real*>(v.center) + (t * v.center_stride + first);
#pragma unroll
  for (int k = 0; k < l.SHARE; ++k)
    if (k < count) x[k] -= center[32 * k];
}
template <class Real, int COLUMNS>
SSL_DEVICE void load_student(Real (&x)[COLUMNS / 32], const Views& v, const Lane<COLUMNS>& l, int view, int b, Real otherwise) {
  const int64_t first = (int64_t(view) * v.batch + b) * v.student_stride + l.first + l.lane;
  load_share(x, v.student, v.dtype, first, 32, l.count(v), otherwise);
}

// Of every row over these columns: the largest logit, the exponentials' sum relative to it; of every pair the teacher's
// exponentials (or probabilities) times what the student's logits are below their largest.
template <class Real, int COLUMNS> __global__ void __launch_bounds__(32 * WARPS) sum_views(const ViewSums call) {
  const Views& v = call.views;
  const Lane<COLUMNS> l;
  const int b = int(blockIdx.x), c = int(blockIdx.y);
  Real* const teacher = reinterpret_cast<Real*>(shared_memory());  // [teachers][COLUMNS]
  const Real scale = Real(v.student_scale * LOG2E), teacher_scale = Real(v.teacher_scale * LOG2E);
  Real x[Lane<COLUMNS>::SHARE];
  for (int t = l.warp; t < v.teachers; t += WARPS) {
    Real top = v.given ? Real(0) : Real(LOWEST), sum = 0;
    load_teacher(x, v, l, t, b, v.given ? Real(0) : -Real(INFINITY));
#pragma unroll
    for (int k = 0; k < l.SHARE; ++k)
      if (!v.given) top = larger(top, x[k]);
    top = largest_of_lanes(top, 32);
#pragma unroll
    for (int k = 0; k < l.SHARE; ++k) {
      const Real e = v.given ? x[k] : exp2_fast((x[k] - top) * teacher_scale);
      teacher[t * COLUMNS + l.in_block(k)] = e;
      sum += e;
    }
    sum = sum_of_lanes(sum, 32);
    if (l.lane == 0) {
      const int64_t at = (int64_t(c) * v.teachers + t) * v.batch + b;
      static_cast<Real*>(call.teacher_tops)[at] = top;
      static_cast<Real*>(call.teacher_sums)[at] = sum;
    }
  }
  __syncthreads();
  for (int view = l.warp; view < v.views; view += WARPS) {
    Real top = Real(LOWEST), sum = 0;
    load_student(x, v, l, view, b, -Real(INFINITY));
#pragma unroll
    for (int k = 0; k < l.SHARE; ++k) top = larger(top, x[k]);
    top = largest_of_lanes(top, 32);
#pragma unroll
    for (int k = 0; k < l.SHARE; ++k) {
      sum += exp2_fast((x[k] - top) * scale);
      x[k] = l.first + l.in_block(k) < v.width ? x[k] - top : Real(0);
    }
    sum = sum_of_lanes(sum, 32);
    const int64_t row = int64_t(c) * v.students + v.first_view + view;
    if (l.lane == 0) {
      static_cast<Real*>(call.student_tops)[row * v.batch + b] = top;
      static_cast<Real*>(call.student_sums)[row * v.batch + b] = sum;
    }
    for (int t = 0; t < v.teachers; ++t) {
      Real along = 0;
#pragma unroll
      for (int k = 0; k < l.SHARE; ++k) along += teacher[t * COLUMNS + l.in_block(k)] * x[k];
      along = sum_of_lanes(along, 32);
      if (l.lane == 0) static_cast<Real*>(call.along)[(row * v.teachers + t) * v.batch + b] = along;
    }
  }
}

// A row's largest logit and sum of exponentials, from those of its chunks of columns.
template <class Real> struct Whole {
  Real top, sum;
  SSL_DEVICE Whole(const void* tops, const void* sums, int view, int views, int b, const ViewValues& call, Real scale, int lane) {
    top = Real(LOWEST);
    sum = 0;
    for (int c = lane; c < call.chunks; c += 32)
      top = larger(top, static_cast<const Real*>(tops)[(int64_t(c) * views + view) * call.views.batch + b]);
    top = largest_of_lanes(top, 32);
    for (int c = lane; c < call.chunks; c += 32) {
      const int64_t at = (int64_t(c) * views + view) * call.views.batch + b;
      sum += static_cast<const Real*>(sums)[at] * exp2_fast((static_cast<const Real*>(tops)[at] - top) * scale);
    }
    sum = sum_of_lanes(sum, 32);
  }
};

// One sample a warp: its value, and what is kept of its rows; of given probabilities their sum.
template <class Real> __global__ void __launch_bounds__(32 * WARPS) value_views(const ViewValues call) {
  const Views& v = call.views;
  const int b = int(blockIdx.x) * WARPS + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (b >= v.batch) return;
  const ViewSums& s = call.sums;
  Real* const tops = static_cast<Real*>(call.kept);
  Real* const shares = tops + int64_t(v.students + v.teachers) * v.batch;
  const Real scale = Real(v.student_scale), teacher_scale = v.given ? Real(0) : Real(v.teacher_scale * LOG2E);
  Real value = 0;
  for (int t = 0; t < v.teachers; ++t) {
    const Whole<Real> w(s.teacher_tops, s.teacher_sums, t, v.teachers, b, call, teacher_scale, lane);
    if (lane == 0) {
      tops[(v.students + t) * int64_t(v.batch) + b] = w.top;
      shares[(v.students + t) * int64_t(v.batch) + b] = v.given ? w.sum : 1 / w.sum;
    }
  }
  for (int view = 0; view < v.students; ++view) {
    const Whole<Real> w(s.student_tops, s.student_sums, view, v.students, b, call, scale * Real(LOG2E), lane);
    if (lane == 0) {
      tops[view * int64_t(v.batch) + b] = w.top;
      shares[view * int64_t(v.batch) + b] = 1 / w.sum;
    }
    for (int t = 0; t < v.teachers; ++t) {
      if (!v.same && t == view) continue;
      const Whole<Real> of(s.teacher_tops, s.teacher_sums, t, v.teachers, b, call, teacher_scale, lane);
      Real cross = 0;
      for (int c = lane; c < call.chunks; c += 32) {
        const int64_t mine = (int64_t(c) * v.students + view) * v.batch + b, theirs = (int64_t(c) * v.teachers + t) * v.batch + b;
        const Real lower = static_cast<const Real*>(s.student_tops)[mine] - w.top;
        const Real along = static_cast<const Real*>(s.along)[((int64_t(c) * v.students + view) * v.teachers + t) * v.batch + b];
        cross += exp2_fast((static_cast<const Real*>(s.teacher_tops)[theirs] - of.top) * teacher_scale)
                 * (along + static_cast<const Real*>(s.teacher_sums)[theirs] * lower);
      }
      cross = sum_of_lanes(cross, 32);
      const Real total = Real(log(double(w.sum)));
      value += v.given ? of.sum * total - scale * cross : total - scale * cross / of.sum;
    }
  }
  if (lane == 0) static_cast<Real*>(call.value)[b] = value;
}

template <class Real, int COLUMNS> __global__ void __launch_bounds__(32 * WARPS) receive_views(const ViewGradients call) {
  const Views& v = call.views;
  const Lane<COLUMNS> l;
  const int b = int(blockIdx.x);
  Real* const p = reinterpret_cast<Real*>(shared_memory());  // [teachers][COLUMNS]
  const Real* const tops = static_cast<const Real*>(call.kept);
  const Real* const shares = tops + int64_t(v.students + v.teachers) * v.batch;
  const Real scale = Real(v.student_scale), teacher_scale = Real(v.teacher_scale * LOG2E);
  const Real g = static_cast<const Real*>(call.dvalue)[b];
  Real x[Lane<COLUMNS>::SHARE];
  for (int t = l.warp; t < v.teachers; t += WARPS) {
    const int64_t at = (v.students + t) * int64_t(v.batch) + b;
    const Real top = v.given ? Real(0) : tops[at], share = v.given ? Real(0) : shares[at];
    load_teacher(x, v, l, t, b, Real(0));
#pragma unroll
    for (int k = 0; k < l.SHARE; ++k)
      p[t * COLUMNS + l.in_block(k)] = v.given ? x[k] : exp2_fast((x[k] - top) * teacher_scale) * share;
  }
  __syncthreads();
  auto paired = [&](int t, int view) { return v.same || t != v.first_view + view; };
  if (call.dstudent)
    for (int view = l.warp; view < v.views; view += WARPS) {
      const int64_t at = int64_t(v.first_view + view) * v.batch + b;
      Real mass = 0;
      for (int t = 0; t < v.teachers; ++t)
        if (paired(t, view)) mass += v.given ? shares[(v.students + t) * int64_t(v.batch) + b] : Real(1);
      load_student(x, v, l, view, b, Real(0));
      const Real top = tops[at], share = mass * shares[at];
#pragma unroll
      for (int k = 0; k < l.SHARE; ++k) x[k] = share * exp2_fast((x[k] - top) * scale * Real(LOG2E));
      for (int t = 0; t < v.teachers; ++t)
        if (paired(t, view))
#pragma unroll
          for (int k = 0; k < l.SHARE; ++k) x[k] -= p[t * COLUMNS + l.in_block(k)];
#pragma unroll
      for (int k = 0; k < l.SHARE; ++k) x[k] *= g * scale;
      put_share(call.dstudent, v.dtype, (int64_t(view) * v.batch + b) * v.width + l.first + l.lane, 32, l.count(v), x);
    }
  if (call.dteacher)
    for (int t = l.warp; t < v.teachers; t += WARPS) {
      Real logs[Lane<COLUMNS>::SHARE] = {};
      for (int view = 0; view < v.views; ++view) {
        if (!paired(t, view)) continue;
        const int64_t at = int64_t(v.first_view + view) * v.batch + b;
        const Real top = tops[at], log_share = Real(log(double(shares[at])));
        load_student(x, v, l, view, b, Real(0));
#pragma unroll
        for (int k = 0; k < l.SHARE; ++k) logs[k] += (x[k] - top) * scale + log_share;
      }
      Real* const to = static_cast<Real*>(call.dteacher) + (int64_t(t) * v.batch + b) * v.width;
#pragma unroll
      for (int k = 0; k < l.SHARE; ++k) {
        const int column = l.first + l.in_block(k);
        // a launch a tensor of the student, one after the other
        if (column < v.width) to[column] = (v.first_view ? to[column] : Real(0)) - g * logs[k];
      }
    }
}

// As many columns a block as the teacher's probabilities leave room for in 64 KiB.
template <class F> int with_columns(const Views& v, F&& f) {
  const int most = 64 * 1024 / (v.teachers * (v.dtype == DType::f64 ? 8 : 4));
  auto by_columns = [&]<class Real>() {
    if (most >= 1024) return f.template operator()<Real, 1024>();
    if (most >= 256) return f.template operator()<Real, 256>();
    return f.template operator()<Real, 32>();
  };
  return v.dtype == DType::f64 ? by_columns.template operator()<double>() : by_columns.template operator()<float>();
}

}  // namespace

int view_columns(const Views& v) {
  // [&], though it needs nothing: without, it converts to a pointer to function, and nvcc warns of that one
  return with_columns(v, [&]<class, int COLUMNS>() { return COLUMNS; });
}

int view_sums(const ViewSums& call, void* stream) {
  const Views& v = call.views;
  return with_columns(v, [&]<class Real, int COLUMNS>() {
    const dim3 grid(unsigned(v.views ? v.batch : 0), unsigned((v.width + COLUMNS - 1) / COLUMNS));
    return launch(sum_views<Real, COLUMNS>, grid, 32 * WARPS, v.teachers * COLUMNS * sizeof(Real), stream, call);
  });
}

int view_values(const ViewValues& call, void* stream) {
  const dim3 grid(unsigned((call.views.batch + WARPS - 1) / WARPS));
  const auto kernel = call.views.dtype == DType::f64 ? value_views<double> : value_views<float>;
  return launch(kernel, grid, 32 * WARPS, 0, stream, call);
}

int view_gradients(const ViewGradients& call, void* stream) {
  const Views& v = call.views;
  return with_columns(v, [&]<class Real, int COLUMNS>() {
    const dim3 grid(unsigned(v.views ? v.batch : 0), unsigned((v.width + COLUMNS - 1) / COLUMNS));
    return launch(receive_views<Real, COLUMNS>, grid, 32 * WARPS, v.teachers * COLUMNS * sizeof(Real), stream, call);
  });
}

}  // namespace ssl::cuda
