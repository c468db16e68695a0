// AVX2 and FMA: every x86-64 machine since 2013. Integers as VNNI has them, in two instructions instead of one.
#define SSL_ISA avx2
#define SSL_VECTOR_BYTES 32
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 2
#include "fixed_point.h"
#include "points_of.h"
#include "streams_of.h"

namespace ssl {
namespace {
const Kernels<float>& exact() {
  static constexpr Kernels<float> kernels = SSL_ISA::kernels<float>();
  return kernels;
}
}  // namespace

const Isa& isa_avx2() {
  static const Isa isa{"avx2", SSL_ISA::kernels_with_grid<exact>(), SSL_ISA::kernels<double>(), &SSL_ISA::streams,
                       &SSL_ISA::points};
  return isa;
}
}  // namespace ssl
