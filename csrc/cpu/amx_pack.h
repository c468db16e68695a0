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
template <int LogitTerms, int GradientTerms, bool Scaled> struct Mode {
  using Logits = Split<LogitTerms>;
  using Gradient = Split<GradientTerms>;
  static_assert(Gradient::parts <= Logits::parts, "the gradient's operands are laid out from those of the logits");
  static constexpr int logit_products = LogitTerms;
  static constexpr bool scaled = Scaled;
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
  if (s.dtype == DType::bf16) return many_rows(s) ? f(Mode<1, 1, true>{}) : f(Mode<3, 3, true>{});
  if (s.dtype == DType::f16) return f(Mode<4, 3, true>{});
  if (s.precision == Precision::medium) return f(Mode<1, 1, false>{});
  if (s.precision == Precision::high) return f(Mode<3, 3, false>{});
  return flat_softmax(s) ? f(Mode<6, 3, false>{}) : f(Mode<6, 6, false>{});
}

inline int64_t steps_of(const Sweep<float>& s) { return (s.width + 31) / 32; }

// Where the operands of the logits of a side are, in its zt. A group is 16 rows, a step 32 columns. Rows are counted
// from the first packed one.
template <class M> class Operands {
 public:
  Operands(const Sweep<float>& s, const Side<float>& side)
      : steps(steps_of(s)), first(side.first), factor(side.zt), size_(side.padded * steps * 32),
        left_(reinterpret_cast<bf16*>(factor + factors(side))), right_(left_ + M::Logits::parts * size_) {}

  static int64_t floats(const Sweep<float>& s, const Side<float>& side) {
    return factors(side) + M::Logits::parts * side.padded * steps_of(s) * 32;  // each part twice, at half a float
  }

  // 16 rows by 32 columns; and transposed, 32 columns in pairs by 16 rows.
  bf16* left(int part, int64_t group, int64_t step) const { return left_ + at(part, group, step); }
  bf16* right(int part, int64_t group, int64_t step) const { return right_ + at(part, group, step); }

  const int64_t steps, first;
  float* const factor;  // [padded]: x_i . y_j = factor_i factor_j (product of the operands); where M::scaled

 private:
  static int64_t factors(const Side<float>& side) { return M::scaled ? side.padded : 0; }
  int64_t at(int part, int64_t group, int64_t step) const {
    return part * size_ + (group * steps + step) * tile_elements;
  }
  int64_t size_;
  bf16 *left_, *right_;
};

// ------------------------------------------------------------------------------------------------------- numbers
SSL_INLINE __m512i to_bf16(Vec<float> low, Vec<float> high) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
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
// Row i's operand before it is split: 32 columns from k on.
template <class Format> struct OperandRow {
  const float* z;                          // chunks of the normalised row, `chunk_stride` apart
  const typename Format::Element* x;       // or, not null, the row as it came,
  float power;                             // times this
  SSL_INLINE void read(int64_t k, int64_t width, int64_t chunk_stride, Vec<float> (&out)[2]) const {
    if (!x) {
      const float* from = z + k / panel<float> * chunk_stride + k % panel<float>;
      out[0] = load<float>(from);
      out[1] = load<float>(from + 16);
      return;
    }
    alignas(64) float values[32] = {};
    const int64_t n = width - k < 32 ? width - k : 32;
    for (int64_t c = 0; c < n; ++c) values[c] = power * Format::template read<float>(x[k + c]);
    out[0] = load<float>(values);
    out[1] = load<float>(values + 16);
  }
};

// The power of two that brings a row's norm into [1, 2), which loses no bit, and what is then left to divide by. Rows
// too long for that go by their normalised values.
SSL_INLINE bool scale_exactly(bool normalize, float norm, float& power, float& factor) {
  power = factor = 1;
  if (!normalize) return true;
  if (!(norm < 1e30f)) return false;
  const float by = norm < float(smallest_norm) ? float(smallest_norm) : norm;
  uint32_t bits;
  memcpy(&bits, &by, 4);
  bits &= 0x7f800000;
  float whole;
  memcpy(&whole, &bits, 4);
  power = 1 / whole;
  factor = whole / by;
  return true;
}

template <class M, class Format>
void pack_pair(const Sweep<float>& s, const Side<float>& side, const Operands<M>& to, int64_t i0) {
  OperandRow<Format> rows[32];
  const int64_t at0 = i0 - side.first;
  RowCursor at(side.parts, side.part_count, i0 < side.rows ? i0 : side.rows - 1);
  for (int64_t r = 0; r < 32; ++r) {
    rows[r] = {z_row(side, 0, i0 + r), nullptr, 1};
    if constexpr (M::scaled) {
      to.factor[at0 + r] = 1;
      if (i0 + r >= side.rows) continue;
      if (scale_exactly(s.normalize, side.norm[at0 + r], rows[r].power, to.factor[at0 + r]))
        rows[r].x = static_cast<const typename Format::Element*>(at.part->data) + at.row * at.part->stride;
      at.next();
    }
  }
  constexpr int parts = M::Logits::parts;
  for (int64_t step = 0; step < to.steps; ++step) {
    alignas(64) bf16 split[parts][32][32];
    for (int r = 0; r < 32; ++r) {
      Vec<float> x[2];
      rows[r].read(step * 32, s.width, side.padded * panel<float>, x);
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
          store_row(to.left(part, at0 / 16 + half, step), r, tile[r]);
        }
        store_transposed(to.right(part, at0 / 16 + half, step), tile);
      }
  }
}

inline void pack_tiles(const Sweep<float>& s, const Side<float>& side, int64_t first_panel, int64_t last_panel) {
  const int64_t i0 = side.first + first_panel * panel<float>, i1 = side.first + last_panel * panel<float>;
  read_rows<float>(s, side, i0, i1);
  with_mode(s, [&](auto mode) {
    using M = decltype(mode);
    const Operands<M> operands(s, side);
    with_dtype<float>(s.dtype, [&](auto format) {
      for (int64_t i = i0; i < i1; i += 32) pack_pair<M, decltype(format)>(s, side, operands, i);
    });
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
    for (int64_t slice = 0; slice < to.slices; ++slice)
      for (int64_t pair = 0; pair < to.pairs; ++pair) {
        __m512i rows[16];
        for (int r = 0; r < 16; ++r) {
          const int64_t i = i0 - z.first + 32 * pair + 2 * r;
          const bf16* const from = z.left(part, i / 16, slice / 2) + i % 16 * 32 + slice % 2 * 16;
          const __m512i even = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)from));
          const __m512i odd = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)(from + 32)));
          rows[r] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
        }
        bf16* const tile = to.at(part, slice, pair);
        if constexpr (Left)
          store_transposed(tile, rows);
        else
          for (int r = 0; r < 16; ++r) store_row(tile, r, rows[r]);
      }
}

}  // namespace ssl::SSL_ISA
