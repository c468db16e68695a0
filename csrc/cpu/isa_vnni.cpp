// AVX-512 with VNNI: bfloat16, and float32 below "highest", on a grid of integers; the rest goes by AVX-512.
#define SSL_ISA vnni
#define SSL_VECTOR_BYTES 64
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 4
#include "fixed_point.h"

namespace ssl {
namespace {
const Kernels<float>& exact() { return isa_avx512().f32; }
}  // namespace

const Isa& isa_vnni() {
  const Isa& wide = isa_avx512();
  static const Isa isa{"vnni", SSL_ISA::kernels_with_grid<exact>(), wide.f64, wide.streams, wide.points};
  return isa;
}
}  // namespace ssl
