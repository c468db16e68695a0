// AVX-VNNI, laptops and desktops without AVX-512: the integers of AVX2 in one instruction; the rest goes by AVX2.
#define SSL_ISA avx_vnni
#define SSL_VECTOR_BYTES 32
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 2
#include "fixed_point.h"

namespace ssl {
namespace {
const Kernels<float>& exact() { return isa_avx2().f32; }
}  // namespace

const Isa& isa_avx_vnni() {
  const Isa& wide = isa_avx2();
  static const Isa isa{"avx_vnni", SSL_ISA::kernels_with_grid<exact>(), wide.f64, wide.streams, wide.points};
  return isa;
}
}  // namespace ssl
