// AVX-512 with VNNI: bfloat16, and float32 below "highest", on a grid of integers; the rest goes by AVX-512.
#define SSL_ISA vnni
#define SSL_VECTOR_BYTES 64
#define SSL_TILE_ROWS 6
#define SSL_TILE_VECTORS 4
#include "fixed_point.h"

namespace ssl {
namespace {

// A grid is finer than bfloat16 and not always than float16.
bool may_round(const Sweep<float>& s) {
  const bool coarse = s.dtype == DType::bf16 || (s.dtype == DType::f32 && s.precision != Precision::highest);
  return coarse && SSL_ISA::many_rows(s);
}

// A function of the table, of one that may round or one that may not.
template <auto Member> struct Either;
template <class R, class... More, R (*Kernels<float>::*Member)(const Sweep<float>&, More...)> struct Either<Member> {
  static R run(const Sweep<float>& s, More... more) {
    static constexpr Kernels<float> on_grid = SSL_ISA::kernels_on_grid();
    return ((may_round(s) ? on_grid : isa_avx512().f32).*Member)(s, more...);
  }
};

}  // namespace

const Isa& isa_vnni() {
  using K = Kernels<float>;
  const Isa& wide = isa_avx512();
  static const Isa isa{
      "vnni",
      {wide.f32.panel, wide.f32.keeps_entries, Either<&K::layout>::run, Either<&K::memory>::run, Either<&K::pack>::run,
       Either<&K::forward>::run, Either<&K::backward>::run, Either<&K::attend>::run, Either<&K::softplus>::run,
       Either<&K::finish>::run},
      wide.f64,
      wide.streams,
      wide.points,
  };
  return isa;
}
}  // namespace ssl
