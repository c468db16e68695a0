// Log-sum-exp of similarities that fall off with the distance: a row belongs to four lanes, each with every fourth column.
//
// Logits are outer y in base 2: y = log(1 + inner d2) for a Student-t, d2 for a Gaussian. Every row counts from the nearest point
// it has met, 2^(outer (y - near)): differences of y are exact where they count, and none underflows. One degree of freedom,
// the Cauchy kernel, is 1 / u, u = 1 + inner d2, and counts as near / u.
#include "logits.h"

namespace ssl::cuda {
namespace {

constexpr int LANES = 4, THREADS = 128, ROWS = THREADS / LANES;
constexpr int AT_ONCE = 4;                    // columns of a lane between two looks at the nearest
constexpr int COLUMNS = 8 * LANES * AT_ONCE;  // of a tile in shared memory
// Further than any two points are; only pairs that do not count are infinitely far.
constexpr float FURTHEST = 1.0e37f;

template <class Real> SSL_DEVICE Real at_most(Real x, Real most) { return x > most ? most : x; }  // NaN stays NaN

template <Falloff KIND, class Real> struct Kernel {
  Real inner, outer;

  SSL_DEVICE explicit Kernel(const Points& p) {
    double t = logit_factor<double>(p.scale, p.multiplier);
    if (!(t >= 0)) t = NAN;
    // a Gaussian of T = 0 must not count what is infinitely far
    inner = KIND == Falloff::gaussian ? Real(0 * t) : Real(2 * t / p.dof);
    outer = KIND == Falloff::gaussian ? Real(-LOG2E * (t < 1e-30 ? 1e-30 : t)) : Real(-0.5 * LOG2E * (p.dof + 1));
  }
  SSL_DEVICE Real u(Real d2) const { return KIND == Falloff::gaussian ? Real(1) : 1 + at_most(inner * d2, Real(FURTHEST)); }
  SSL_DEVICE Real y(Real d2) const {
    if (KIND == Falloff::gaussian) return at_most(d2, Real(FURTHEST)) + inner;  // NaN where T is
    if (KIND == Falloff::cauchy) return u(d2);
    return log1p_of(at_most(inner * d2, Real(FURTHEST)));
  }
  // What an entry counts, seen from `near`.
  SSL_DEVICE Real share(Real y, Real near) const {
    return KIND == Falloff::cauchy ? near * reciprocal_fast(y) : exp2_fast(outer * (y - near));
  }
};

// The points, coordinate by coordinate. Of two coordinates, as these losses have, a lane's own are in registers and those of a
// tile's columns in shared memory; wider points are read where they are.
template <int WIDTH, class Real> struct Cloud {
  const Points& p;
  const Real* const z;
  Real* const columns;
  const int i, lane;
  Real own[WIDTH ? WIDTH : 1];

  SSL_DEVICE explicit Cloud(const Points& p)
      : p(p), z(static_cast<const Real*>(p.points)), columns(reinterpret_cast<Real*>(shared_memory())),
        i(int(blockIdx.x) * ROWS + int(threadIdx.x) / LANES), lane(int(threadIdx.x) % LANES) {
#pragma unroll
    for (int d = 0; d < WIDTH; ++d) own[d] = coordinate(d);
  }
  SSL_DEVICE int width() const { return WIDTH ? WIDTH : p.width; }
  SSL_DEVICE Real coordinate(int d) const { return i < p.rows ? z[int64_t(d) * p.rows + i] : Real(0); }
  SSL_DEVICE Real mine(int d) const { return WIDTH ? own[WIDTH ? d : 0] : coordinate(d); }

  // All threads of the block: the points of columns from `first` on.
  SSL_DEVICE void load(int first) {
    if (!WIDTH) return;
    __syncthreads();
    for (int k = int(threadIdx.x); k < WIDTH * COLUMNS; k += THREADS) columns[k] = of_column(k / COLUMNS, first + k % COLUMNS);
    __syncthreads();
  }
  SSL_DEVICE Real of_column(int d, int j) const { return j < p.rows ? z[int64_t(d) * p.rows + j] : Real(0); }
  // Coordinate d of column k of the tile that begins at `first`.
  SSL_DEVICE Real theirs(int d, int first, int k) const { return WIDTH ? columns[d * COLUMNS + k] : of_column(d, first + k); }
  SSL_DEVICE void squared_distances(int first, int step, Real (&d2)[AT_ONCE]) const {
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) d2[k] = 0;
#pragma unroll
    for (int d = 0; d < width(); ++d) {
      const Real a = mine(d);
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k) {
        const Real difference = a - theirs(d, first, step + k * LANES + lane);
        d2[k] += difference * difference;
      }
    }
  }
  // May the block have pairs of one sample, or points beyond the last, in the tile that begins at `first`? Of most it is known at
  // once that they have none, and a division at every pair would take longer than all the rest.
  SSL_DEVICE bool special(int first) const {
    const int d = (first + COLUMNS - 1 - int(blockIdx.x) * ROWS) % p.period, past = d < 0 ? d + p.period : d;
    return past < COLUMNS + ROWS - 1 || first + COLUMNS > p.rows;
  }
  // Is (i, j) a pair of different samples, and inside?
  template <bool SPECIAL> SSL_DEVICE bool counts(int j) const {
    return !SPECIAL || (j < p.rows && (i - j) % p.period != 0);
  }
};

template <int WIDTH, class Real> constexpr size_t SHARED = WIDTH * COLUMNS * sizeof(Real);

template <Falloff KIND, int WIDTH, class Real> __global__ void __launch_bounds__(THREADS) sum_points(const PointSums call) {
  const Kernel<KIND, Real> kernel(call.points);
  Cloud<WIDTH, Real> cloud(call.points);
  const int rows = call.points.rows;
  Real near = Real(FURTHEST), total = 0;
  auto count_from = [&](Real nearer) {
    total *= kernel.share(near, nearer);
    near = nearer;
  };
  auto add = [&]<bool SPECIAL>(int first) {
    for (int step = 0; step < COLUMNS; step += LANES * AT_ONCE) {
      Real y[AT_ONCE];
      cloud.squared_distances(first, step, y);
      Real nearer = near;
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k) {
        y[k] = cloud.template counts<SPECIAL>(first + step + k * LANES + cloud.lane) ? kernel.y(y[k]) : Real(INFINITY);
        if (y[k] < nearer) nearer = y[k];
      }
      count_from(nearer);
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k) total += kernel.share(y[k], near);
    }
  };
  for (int first = 0; first < rows; first += COLUMNS) {
    cloud.load(first);
    if (cloud.special(first))
      add.template operator()<true>(first);
    else
      add.template operator()<false>(first);
  }
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const Real other_near = __shfl_xor_sync(0xffffffffu, near, step), other = __shfl_xor_sync(0xffffffffu, total, step);
    count_from(other_near < near ? other_near : near);
    total += other * kernel.share(other_near, near);
  }
  if (cloud.i >= rows || cloud.lane > 0) return;
  double exact = log(double(total));
  exact += KIND == Falloff::cauchy ? -log(double(near)) : double(kernel.outer) * double(near) / LOG2E;
  if (total == 0) exact = -INFINITY;
  const Real rounded = Real(exact);
  static_cast<Real*>(call.neg)[cloud.i] = rounded;
  static_cast<Real*>(call.low)[cloud.i] = total == 0 ? Real(0) : Real(exact - double(rounded));
}

// From where each row counts so that its sum is one, and its gradient; what `near` cannot hold joins that.
template <Falloff KIND, class Real> __global__ void weigh_points(const PointGradients call) {
  const int i = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
  if (i >= call.points.rows) return;
  const Kernel<KIND, Real> kernel(call.points);
  const Real neg = static_cast<const Real*>(call.neg)[i];
  const bool alone = neg == -Real(INFINITY);  // without negatives there is nobody to send a gradient to
  double weight = alone ? 0.0 : double(static_cast<const Real*>(call.dneg)[i]);
  const double exact = alone ? 0.0 : double(neg) + double(static_cast<const Real*>(call.low)[i]);
  Real near = 1;
  if (KIND == Falloff::cauchy) {
    weight *= exp(-exact);
  } else {
    near = Real(exact * LOG2E / double(kernel.outer));
    weight *= exp2(double(kernel.outer) * double(near) - exact * LOG2E);
  }
  static_cast<Real*>(call.near)[i] = near;
  static_cast<Real*>(call.weight)[i] = Real(weight);
}

template <Falloff KIND, int WIDTH, class Real>
__global__ void __launch_bounds__(THREADS) receive_points(const PointGradients call) {
  const Kernel<KIND, Real> kernel(call.points);
  Cloud<WIDTH, Real> cloud(call.points);
  const int rows = call.points.rows;
  const Real* const nears = static_cast<const Real*>(call.near);
  const Real* const weights = static_cast<const Real*>(call.weight);
  Real* const to = static_cast<Real*>(call.received) + cloud.i;
  const bool here = cloud.i < rows;
  const Real near = here ? nears[cloud.i] : Real(1), weight = here ? weights[cloud.i] : Real(0);
  Real moment = 0, received[WIDTH ? WIDTH : 1] = {};
  auto of_all_lanes = [](Real x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
  };
  auto receive = [&]<bool SPECIAL>(int first) {
    for (int step = 0; step < COLUMNS; step += LANES * AT_ONCE) {
      Real a[AT_ONCE], d2[AT_ONCE];
      cloud.squared_distances(first, step, d2);
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k) {
        const int j = first + step + k * LANES + cloud.lane;
        const bool counts = here && cloud.template counts<SPECIAL>(j), inside = !SPECIAL || j < rows;
        const Real near_j = inside ? nears[j] : Real(1), weight_j = inside ? weights[j] : Real(0);
        const Real y = kernel.y(d2[k]), u = kernel.u(d2[k]);
        a[k] = KIND == Falloff::cauchy ? (weight + weight_j) * reciprocal_fast(u)
                                       : kernel.share(y, near) * weight + kernel.share(y, near_j) * weight_j;
        if (KIND != Falloff::gaussian) a[k] *= reciprocal_fast(u);
        if (!counts) a[k] = 0;
        if (counts) moment += a[k] * d2[k];
      }
#pragma unroll
      for (int d = 0; d < cloud.width(); ++d) {
        const Real own = cloud.mine(d);
        Real sum = 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k)
          if (a[k] != 0) sum += a[k] * (own - cloud.theirs(d, first, step + k * LANES + cloud.lane));
        if (WIDTH) {
          received[WIDTH ? d : 0] += sum;
        } else {  // too many for registers: in the row's own place
          sum = of_all_lanes(sum);
          Real* const at = to + int64_t(d) * rows;
          if (here && cloud.lane == 0) *at = first + step ? *at + sum : sum;
        }
      }
    }
  };
  for (int first = 0; first < rows; first += COLUMNS) {
    cloud.load(first);
    if (cloud.special(first))
      receive.template operator()<true>(first);
    else
      receive.template operator()<false>(first);
  }
  moment = of_all_lanes(moment);
#pragma unroll
  for (int d = 0; d < WIDTH; ++d) {
    const Real sum = of_all_lanes(received[d]);
    if (here && cloud.lane == 0) to[int64_t(d) * rows] = sum;
  }
  if (here && cloud.lane == 0) static_cast<Real*>(call.moments)[cloud.i] = moment;
}

// Calls f.operator()<falloff, width where coordinates stay in registers or 0, real>().
template <class F> int with_kind(const Points& p, F&& f) {
  auto by_width = [&]<Falloff KIND, class Real>() {
    if (p.width == 2) return f.template operator()<KIND, 2, Real>();
    return f.template operator()<KIND, 0, Real>();
  };
  auto by_falloff = [&]<class Real>() {
    switch (p.falloff) {
      case Falloff::cauchy: return by_width.template operator()<Falloff::cauchy, Real>();
      case Falloff::student: return by_width.template operator()<Falloff::student, Real>();
      default: return by_width.template operator()<Falloff::gaussian, Real>();
    }
  };
  return p.doubles ? by_falloff.template operator()<double>() : by_falloff.template operator()<float>();
}

unsigned blocks_of(int rows, int of) { return unsigned((rows + of - 1) / of); }

}  // namespace

int point_sums(const PointSums& call, void* stream) {
  const Points& p = call.points;
  return with_kind(p, [&]<Falloff KIND, int WIDTH, class Real>() {
    return launch(sum_points<KIND, WIDTH, Real>, dim3(blocks_of(p.rows, ROWS)), THREADS, (SHARED<WIDTH, Real>), stream, call);
  });
}

int point_gradients(const PointGradients& call, void* stream) {
  const Points& p = call.points;
  return with_kind(p, [&]<Falloff KIND, int WIDTH, class Real>() {
    if (const int e = launch(weigh_points<KIND, Real>, dim3(blocks_of(p.rows, THREADS)), THREADS, 0, stream, call)) return e;
    return launch(receive_points<KIND, WIDTH, Real>, dim3(blocks_of(p.rows, ROWS)), THREADS, (SHARED<WIDTH, Real>), stream, call);
  });
}

}  // namespace ssl::cuda
