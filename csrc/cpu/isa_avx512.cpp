// AVX-512 (F, BW, VL, DQ).
#define SSL_ISA avx512
#define SSL_VECTOR_BYTES 64
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 4
#include "points_of.h"
#include "streams_of.h"
#include "tiles.h"

namespace ssl {
const Isa& isa_avx512() {
  static const Isa isa{"avx512", SSL_ISA::kernels<float>(), SSL_ISA::kernels<double>(), &SSL_ISA::streams,
                       &SSL_ISA::points};
  return isa;
}
}  // namespace ssl
