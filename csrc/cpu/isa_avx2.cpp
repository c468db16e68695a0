// AVX2 and FMA: every x86-64 machine since 2013.
#define SSL_ISA avx2
#define SSL_VECTOR_BYTES 32
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 2
#include "points_of.h"
#include "streams_of.h"
#include "tiles.h"

namespace ssl {
const Isa& isa_avx2() {
  static const Isa isa{"avx2", SSL_ISA::kernels<float>(), SSL_ISA::kernels<double>(), &SSL_ISA::streams,
                       &SSL_ISA::points};
  return isa;
}
}  // namespace ssl
