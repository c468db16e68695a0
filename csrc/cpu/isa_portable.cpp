// Any machine: 128-bit vectors are what x86-64 and arm64 always have.
#define SSL_ISA portable
#define SSL_VECTOR_BYTES 16
#define SSL_TILE_ROWS 4
#define SSL_TILE_VECTORS 2
#include "points_of.h"
#include "streams_of.h"
#include "tiles.h"

namespace ssl {
const Isa& isa_portable() {
  static const Isa isa{"portable", SSL_ISA::kernels<float>(), SSL_ISA::kernels<double>(), &SSL_ISA::streams,
                       &SSL_ISA::points};
  return isa;
}
}  // namespace ssl
