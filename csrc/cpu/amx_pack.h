// Embeddings as AMX reads them: every float the sum of one, two or three bf16 numbers, in whole tiles of 1 KiB.
#pragma once
#include "amx_tiles.h"
#include "rows.h"

namespace ssl::SSL_ISA {

using bf16 = uint16_t;
constexpr int64_t tile_elements = 16 * 32, tile_floats = 16 * 16;

// A product of floats as a sum of products of their parts: (part of the left, part of the right), the smallest first,
// so that the fewest additions are rounded at full size.
struct Term {
  int left, right;
};
template <int Terms> struct Split;
template <> struct Split<1> {  // 8 bits of each
  static constexpr int parts = 1;
  static constexpr Term terms[] = {{0, 0}};
};
template <> struct Split<3> {  // 16 bits, what is dropped is 2^-17
  static constexpr int parts = 2;
  static constexpr Term terms[] = {{1, 0}, {0, 1}, {0, 0}};
};
template <> struct Split<4> {  // exact for what has 16 bits
  static constexpr int parts = 2;
  static constexpr Term terms[] = {{1, 1}, {1, 0}, {0, 1}, {0, 0}};
};
template <> struct Split<6> {  // 24 bits, all that a float has; what is dropped is 2^-26
  static constexpr int parts = 3;
  static constexpr Term terms[] = {{2, 0}, {1, 1}, {0, 2}, {1, 0}, {0, 1}, {0, 0}};
};

// How a call's numbers are split. Scaled: the operands are the rows as they came, times a power of two, which 16-bit
// formats hold exactly in one or two parts; what is left of the normalisation multiplies the products.
template <class Format_, int LogitTerms, int GradientTerms> struct Mode {
  using Format = Format_;
  using Logits = Split<LogitTerms>;
  using Gradient = Split<GradientTerms>;
  static_assert(Gradient::parts <= Logits::parts, "the gradient's operands are laid out from those of the logits");
  static constexpr int logit_products = LogitTerms;
  static constexpr bool scaled = sizeof(typename Format::Element) == 2;
};

// An entry of G in one part is off by 2^-9, in two by 2^-17. A sum over many rows keeps little of that; few rows get one
// split more. A sharp softmax comes down to a few entries too, however many rows there are. Measured against float64
// from 512 to 4096 rows at temperatures from 0.005 to 0.5: as long as this holds, the gradient in two parts has at most
// twice the error that float32 matrices have.
inline bool flat_softmax(const Sweep<float>& s) {
  return !s.running && many_rows(s) && 4 * s.scale * s.scale <= float(least_entries(s));
}

// float16 keeps 11 bits, so all four products of its two parts are exact, and its gradient wants more than one's 8.
template <class F> SSL_INLINE void with_mode(const Sweep<float>& s, F&& f) {
  if (s.dtype == DType::bf16) return many_rows(s) ? f(Mode<BF16, 1, 1>{}) : f(Mode<BF16, 3, 3>{});
  if (s.dtype == DType::f16) return f(Mode<F16, 4, 3>{});
  if (s.precision == Precision::medium) return f(Mode<F32, 1, 1>{});
  if (s.precision == Precision::high) return f(Mode<F32, 3, 3>{});
  return flat_softmax(s) ? f(Mode<F32, 6, 3>{}) : f(Mode<F32, 6, 6>{});
}

SSL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t steps_of(const Sweep<float>& s) { return (s.width + 31) / 32; }

// Where the operands of the logits of a side are, in its zt: left ones of rows, right ones of columns. A group is 16 rows,
// a step 32 columns. Rows are counted from the first packed one.
template <class M> class Operands {
 public:
  Operands(const Sweep<float>& s, const Side<float>& side)
      : steps(steps_of(s)), first(side.first), factor(side.zt), has_left(&side == s.x), has_right(&side == s.y),
        size_(side.padded * steps * 32), left_(reinterpret_cast<bf16*>(factor + factors(side))),
        right_(left_ + (has_left ? M::Logits::parts * size_ : 0)) {}

  static int64_t floats(const Sweep<float>& s, const Side<float>& side) {
    return factors(side) + (s.self() ? 2 : 1) * M::Logits::parts * side.padded * steps_of(s) * 16;  // half a float each
  }

  // 16 rows by 32 columns; and transposed, 32 columns in pairs by 16 rows.
  bf16* left(int part, int64_t group, int64_t step) const { return left_ + at(part, group, step); }
  bf16* right(int part, int64_t group, int64_t step) const { return right_ + at(part, group, step); }

  const int64_t steps, first;
  float* const factor;  // [padded]: x_i . y_j = factor_i factor_j (product of the operands); where M::scaled
  const bool has_left, has_right;

 private:
  static int64_t factors(const Side<float>& side) { return M::scaled ? side.padded : 0; }
  int64_t at(int part, int64_t group, int64_t step) const {
    return part * size_ + (group * steps + step) * tile_elements;
  }
  int64_t size_;
  bf16 *left_, *right_;
};

// ------------------------------------------------------------------------------------------------------- numbers
SSL_INLINE __m512i to_bf16(Vec<float> low, Vec<float> high) { return tiles::to_bf16((__m512)low, (__m512)high); }
SSL_INLINE Vec<float> widened(__m256i x) {
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}
// What rounding to bf16 left over, exactly
SSL_INLINE void subtract(Vec<float>& low, Vec<float>& high, __m512i rounded) {
  low -= widened(_mm512_castsi512_si256(rounded));
  high -= widened(_mm512_extracti64x4_epi64(rounded, 1));
}
SSL_INLINE void store_row(bf16* tile, int64_t row, __m512i x) { _mm512_store_si512(tile + row * 32, x); }

// A tile transposed as 4-byte numbers: rows of pairs become pairs of rows, and the other way round.
SSL_INLINE void store_transposed(bf16* tile, const __m512i (&rows)[16]) {
  Vec<float> square[16];
  for (int r = 0; r < 16; ++r) square[r] = (Vec<float>)rows[r];
  transpose<float>(square);
  for (int r = 0; r < 16; ++r) store_row(tile, r, (__m512i)square[r]);
}

// ----------------------------------------------------------------------------------------------------------- pack
// What a row is divided by before it is split, and what then is left to multiply the products with: the power of two that
// brings its norm into [1, 2), which loses no bit, or, for rows too long for that, all of the norm.
struct Divisor {
  float by, factor;
};
template <bool Scaled> SSL_INLINE Divisor divisor_of(bool normalize, float norm) {
  if (!normalize) return {1, 1};
  const float by = divisor(norm);
  if (!Scaled || !(norm < 1e30f)) return {by, 1};
  uint32_t bits;
  memcpy(&bits, &by, 4);
  bits &= 0x7f800000;
  float whole;
  memcpy(&whole, &bits, 4);
  return {whole, whole / by};
}

template <class M>
void pack_pair(const Sweep<float>& s, const Side<float>& side, const Operands<M>& to, int64_t i0) {
  using Format = typename M::Format;
  const typename Format::Element* from[32];
  float by[32];
  const int64_t at0 = i0 - side.first, there = smaller(32, side.rows - i0);
  RowCursor at(side.parts, side.part_count, i0);
  for (int64_t r = 0; r < 32; ++r) {
    by[r] = 1;
    if constexpr (M::scaled) to.factor[at0 + r] = 1;
    if (r >= there) continue;
    from[r] = row_of<Format>(at);
    at.next();
    const float norm = side.norm[at0 + r] = norm_of<Format, float>(from[r], s.width);
    const Divisor divisor = divisor_of<M::scaled>(s.normalize, norm);
    by[r] = divisor.by;
    if constexpr (M::scaled) to.factor[at0 + r] = divisor.factor;
  }
  constexpr int parts = M::Logits::parts;
  for (int64_t step = 0; step < to.steps; ++step) {
    alignas(64) bf16 split[parts][32][32];
    for (int r = 0; r < 32; ++r) {
      alignas(64) float room[32] = {};
      const float* const row = r < there ? read_numbers<Format, 32>(from[r] + step * 32, s.width - step * 32, room) : room;
      Vec<float> x[2] = {load<float>(row) / splat(by[r]), load<float>(row + 16) / splat(by[r])};
      for (int part = 0; part < parts; ++part) {
        const __m512i rounded = to_bf16(x[0], x[1]);
        store_row(split[part][0], r, rounded);
        subtract(x[0], x[1], rounded);
      }
    }
    for (int part = 0; part < parts; ++part)
      for (int64_t half = 0; half < 2; ++half) {
        __m512i tile[16];
        for (int r = 0; r < 16; ++r) {
          tile[r] = _mm512_load_si512(split[part][16 * half + r]);
          if (to.has_left) store_row(to.left(part, at0 / 16 + half, step), r, tile[r]);
        }
        if (to.has_right) store_transposed(to.right(part, at0 / 16 + half, step), tile);
      }
  }
}

inline void pack_tiles(const Sweep<float>& s, const Side<float>& side, int64_t first_panel, int64_t last_panel) {
  const int64_t i0 = side.first + first_panel * panel<float>, i1 = side.first + last_panel * panel<float>;
  with_mode(s, [&](auto mode) {
    using M = decltype(mode);
    const Operands<M> operands(s, side);
    for (int64_t i = i0; i < i1; i += 32) pack_pair<M>(s, side, operands, i);
  });
}

// An operand of the gradient's products for some rows of Z: 16 columns by 32 rows, the left of Z' G, or 32 rows in
// pairs by 16 columns, the right of G Z. Laid out when a strip of G comes to it: that is a small part of the strip's
// work, and for all rows at once it would take as much memory as the operands of the logits.
struct GradientOperand {
  bf16* tiles;
  int64_t pairs, slices;  // 32 rows, 16 columns each
  bf16* at(int part, int64_t slice, int64_t pair) const {
    return tiles + ((part * slices + slice) * pairs + pair) * tile_elements;
  }
};

template <class M, bool Left> void lay_out(const Operands<M>& z, int64_t i0, const GradientOperand& to) {
  for (int part = 0; part < M::Gradient::parts; ++part)
    for (int64_t step = 0; step < z.steps; ++step)
      for (int64_t pair = 0; pair < to.pairs; ++pair) {
        alignas(64) bf16 room[2][tile_elements];
        const bf16* groups[2];
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t group = (i0 - z.first) / 16 + 2 * pair + half;
          groups[half] = z.has_left ? z.left(part, group, step) : room[half];
          if (z.has_left) continue;
          __m512i tile[16];
          for (int r = 0; r < 16; ++r) tile[r] = _mm512_load_si512(z.right(part, group, step) + r * 32);
          store_transposed(room[half], tile);
        }
        for (int64_t slice = 0; slice < 2; ++slice) {
          __m512i rows[16];
          for (int r = 0; r < 16; ++r) {
            const bf16* const from = groups[r / 8] + r % 8 * 64 + slice * 16;
            const __m512i even = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)from));
            const __m512i odd = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)(from + 32)));
            rows[r] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
          }
          bf16* const tile = to.at(part, 2 * step + slice, pair);
          if constexpr (Left)
            store_transposed(tile, rows);
          else
            for (int r = 0; r < 16; ++r) store_row(tile, r, rows[r]);
        }
      }
}

}  // namespace ssl::SSL_ISA
