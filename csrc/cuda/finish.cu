// From what rows received to the gradients of the inputs, and to that of the scale.
#include "inputs.h"
#include "operand_rows.h"

namespace ssl::cuda {
namespace {

constexpr int WARPS = ROW_THREADS / 32;  // a row each

// What row i received in entries d .. d + 7: the spans' sums in their order, and the positives.
template <class Element, int PIECES> struct Received {
  using Real = RealOf<Element>;
  const Finish& call;
  Rows<Element, PIECES> y;
  Real unit;

  SSL_DEVICE explicit Received(const Finish& call)
      : call(call), y(call.matrix.y, call.matrix),
        unit((call.unit ? *static_cast<const Real*>(call.unit) : Real(1)) / Real(UNIT) *
             (call.matrix.y.largest ? Real(*call.matrix.y.largest) : Real(1))) {}

  SSL_DEVICE void load(Real (&g)[8], int i, int d) const {
    const Matrix& m = call.matrix;
    const Real* const from = static_cast<const Real*>(call.received) + (int64_t(i) * m.width + d);
    load_eight(g, from, 8, true);
#pragma unroll 2
    for (int c = 1; c < call.spans; ++c) {
      Real part[8];
      load_eight(part, from + int64_t(c) * m.x.padded * m.width, 8, true);
#pragma unroll
      for (int k = 0; k < 8; ++k) g[k] += part[k];
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) g[k] *= unit;
    if (!call.dpos) return;
    const int positives = positives_of_a_row(m);
    for (int k = 0; k < positives; ++k) {
      const Positive p = positive(m, i, k);
      if (!p.exists) continue;
      Real w = static_cast<const Real*>(call.dpos)[p.at];
      // in a set against itself the other's positive that row i is
      if (m.self) w += static_cast<const Real*>(call.dpos)[p.other + int64_t(positives - 1 - k) * m.x.rows];
      else if (call.y_dpos) w += static_cast<const Real*>(call.y_dpos)[p.at];
      Real row[8];
      y.load(row, p.other, d);
      w *= y.factor(p.other);
#pragma unroll
      for (int e = 0; e < 8; ++e) g[e] += w * row[e];
    }
  }
};

// What was received is read twice, the second time from a cache: to hold a row of any width would take as much of the chip.
template <class T, class Out, class Element, int PIECES>
__global__ void __launch_bounds__(ROW_THREADS) finish_rows(const Finish call) {
  using Real = RealOf<Element>;
  const Matrix& m = call.matrix;
  const int lane = int(threadIdx.x) % 32, width = call.inputs.width;
  const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  const int i = int(row);
  Real along = 0;
  if (row < m.x.rows) {
    const Received<Element, PIECES> received(call);
    const InputRow<T> from = input_row<T>(call.inputs, i);
    const Real top = m.normalize ? largest_entry<Real>(from, width, lane, 32) : Real(1);
    Real squares = 0;
    for (int d = 8 * lane; d < width; d += 256) {
      Real x[8], g[8];
      load_eight(x, from.at + d, width - d, from.vector);
      received.load(g, i, d);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        x[k] /= top;
        squares += x[k] * x[k];
        along += x[k] * g[k];
      }
    }
    const Real norm = m.normalize ? top * std::sqrt(sum_of_lanes(squares, 32)) : Real(1);
    const Real by = m.normalize ? divisor(norm) : Real(1);
    along = sum_of_lanes(along, 32) * (top / by);

    const Real factor = logit_factor<Real>(m.scale, m.multiplier);
    Out* const to = static_cast<Out*>(call.inputs.parts[from.part].grad) + from.local * width;
    const bool vector = aligned(to, 0);
    for (int d = 8 * lane; d < width; d += 256) {
      Real x[8], g[8];
      load_eight(x, from.at + d, width - d, from.vector);
      received.load(g, i, d);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if (!m.normalize) {
          g[k] *= factor;
        } else if (norm > Real(EPS)) {
          g[k] = (g[k] - along * (x[k] / by)) * (factor / by);
        } else {
          // below EPS the norm is a constant: no projection, and a huge gradient that half precision must not overflow
          g[k] *= factor / Real(EPS);
          if constexpr (is_half<Out>) {
            const Real most = Real(LARGEST<Out>);
            g[k] = g[k] > most ? most : g[k] < -most ? -most : g[k];
          }
        }
      }
      store_eight(to + d, g, width - d, vector);
    }
  }
  Real* const room = reinterpret_cast<Real*>(shared_memory());
  if (lane == 0) room[threadIdx.x / 32] = along;
  __syncthreads();
  if (threadIdx.x == 0) {
    Real total = 0;
    for (int w = 0; w < WARPS; ++w) total += room[w];
    static_cast<Real*>(call.along)[blockIdx.x] = m.self ? total / 2 : total;  // there every entry is received twice
  }
}

template <class T, class Out> int launch_finish(const Finish& call, void* stream) {
  return with_operands(call.matrix.operands, [&]<class Element, int PIECES>() {
    return launch(finish_rows<T, Out, Element, PIECES>, unsigned(finish_blocks(call.matrix.x.rows)), ROW_THREADS,
                  WARPS * sizeof(double), stream, call);
  });
}

}  // namespace

int finish_blocks(int rows) { return (rows + WARPS - 1) / WARPS; }

// Gradients are of the inputs' dtype or, of a sum over pairs, what was computed in.
int finish(const Finish& call, void* stream) {
  return with_elements(call.inputs.dtype, [&]<class T>() {
    if (call.grads == call.inputs.dtype) return launch_finish<T, T>(call, stream);
    return launch_finish<T, RealOf<T>>(call, stream);
  });
}

}  // namespace ssl::cuda
