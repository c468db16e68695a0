// From the inputs to operand rows: normalised, stacked, padded, rounded and laid as the tensor cores want them.
#include "inputs.h"

namespace ssl::cuda {
namespace {

// Unit rows go to float16 whatever the input: they lie in [-1, 1], where it is eight times finer than bfloat16 at the same rate.
// float32 becomes two of them, hi + lo. Rows that are not normalised go divided by a power of two, which loses nothing, and the
// power goes to `factors`.
template <class T, class Element, int PIECES>
__global__ void __launch_bounds__(ROW_THREADS) prepare_rows(const Prepare call, int lanes) {
  using Real = RealOf<Element>;
  const int row = int((int64_t(blockIdx.x) * ROW_THREADS + threadIdx.x) / lanes), lane = int(threadIdx.x) % lanes;
  const int width = call.inputs.width;
  const InputRow<T> from = input_row<T>(call.inputs, row);
  const Real top = largest_entry<Real>(from, width, lane, lanes);

  Real by = 1;
  if (call.normalize) {
    Real squares = 0;
    if (from.at)
      for (int d = 8 * lane; d < width; d += 8 * lanes) {
        Real x[8];
        load_eight(x, from.at + d, width - d, from.vector);
#pragma unroll
        for (int k = 0; k < 8; ++k) squares += x[k] / top * (x[k] / top);
      }
    by = divisor(top * std::sqrt(sum_of_lanes(squares, lanes)));
  } else if (call.factors) {
    const float power = from.at ? power_of_two_below(float(top)) : 1.0f;
    by = power > 0 ? power : 1.0f;
    if (lane == 0) call.factors[row] = float(by);
  }

  Element* const to = static_cast<Element*>(call.units);
  for (int d = 8 * lane; d < call.width; d += 8 * lanes) {
    Real x[8];
    if (from.at)
      load_eight(x, from.at + d, width - d, from.vector);
    else
#pragma unroll
      for (int k = 0; k < 8; ++k) x[k] = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) x[k] = x[k] / by * Real(UNIT);
    if constexpr (PIECES == 0) {  // doubles: four pieces of 16 bytes
#pragma unroll
      for (int k = 0; k < 8; k += 2)
        *reinterpret_cast<double2*>(to + operand_index<double>(row, d + k, call.width)) = make_double2(x[k], x[k + 1]);
    } else {
      const int64_t at = operand_index<half_t>(row, d, call.width);
      store_eight(to + at, x, 8, true);
      if constexpr (PIECES == 2) {
#pragma unroll
        for (int k = 0; k < 8; ++k) x[k] -= __half2float(__float2half_rn(x[k]));
        store_eight(to + at + call.low_offset, x, 8, true);
      }
    }
  }
}

template <class T> int launch_prepare(const Prepare& call, void* stream) {
  const int lanes = lanes_of_row(call.width);
  const dim3 grid(unsigned(int64_t(call.padded) * lanes / ROW_THREADS));
  switch (call.operands) {
    case Operands::doubles: return launch(prepare_rows<T, double, 0>, grid, ROW_THREADS, 0, stream, call, lanes);
    case Operands::split: return launch(prepare_rows<T, half_t, 2>, grid, ROW_THREADS, 0, stream, call, lanes);
    default: return launch(prepare_rows<T, half_t, 1>, grid, ROW_THREADS, 0, stream, call, lanes);
  }
}

constexpr int VECTOR_THREADS = 1024;

__global__ void __launch_bounds__(VECTOR_THREADS) find_largest(const LargestFactors call) {
  const int side = int(blockIdx.x);
  float top = 0;
  for (int j = int(threadIdx.x); j < call.rows[side]; j += VECTOR_THREADS) top = fmaxf(top, call.factors[side][j]);
  top = largest_of_block(top, reinterpret_cast<float*>(shared_memory()));
  if (threadIdx.x == 0) call.largest[side] = top;
}

}  // namespace

int prepare(const Prepare& call, void* stream) {
  return with_elements(call.inputs.dtype, [&]<class T>() { return launch_prepare<T>(call, stream); });
}

int largest_factors(const LargestFactors& call, void* stream) {
  return launch(find_largest, unsigned(call.sides), VECTOR_THREADS, VECTOR_THREADS / 32 * sizeof(float), stream, call);
}

}  // namespace ssl::cuda
