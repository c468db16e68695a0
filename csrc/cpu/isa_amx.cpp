// AMX for float, with AVX-512 around it; double has no use for bf16 and goes by AVX-512.
#define SSL_ISA amx
#define SSL_VECTOR_BYTES 64
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 4
#include "amx_sweep.h"

namespace ssl {
bool amx_usable() { return SSL_ISA::tiles::usable(); }

const Isa& isa_amx() {
  using namespace SSL_ISA;
  static const Isa isa{
      "amx",
      {panel<float>, false, layout_tiles, memory_of_tiles, pack_tiles, forward_tiles, backward_tiles,
       gradient_tiles<Entry::attend>, gradient_tiles<Entry::softplus>, finish_tiles},
      isa_avx512().f64,
      isa_avx512().streams,
      isa_avx512().points,
  };
  return isa;
}
}  // namespace ssl
