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
  static constexpr int logit_products = LogitTerms;
  static constexpr bool scaled = Scaled;
};

// An entry of G in one part is off by 2^-9, in two by 2^-17. A sum over many rows keeps little of that; few rows, which
// take little time anyway, get one split more.
inline bool many_rows(const SelfLse<float>& s) { return s.rows >= 512; }

// A sharp softmax comes down to a few entries too, however many rows there are. Measured against float64 from 512 to
// 4096 rows at temperatures from 0.005 to 0.5: as long as this holds, the gradient in two parts has at most twice the
// error that float32 matrices have.
inline bool flat_softmax(const SelfLse<float>& s) {
  return !s.running && many_rows(s) && 4 * s.scale * s.scale <= float(s.rows);
}

// float16 keeps 11 bits, so all four products of its two parts are exact, and its gradient wants more than one's 8.
template <class F> SSL_INLINE void with_mode(const SelfLse<float>& s, F&& f) {
  if (s.dtype == DType::bf16) return many_rows(s) ? f(Mode<1, 1, true>{}) : f(Mode<1, 3, true>{});
  if (s.dtype == DType::f16) return f(Mode<4, 3, true>{});
  if (s.precision == Precision::medium) return f(Mode<1, 1, false>{});
  if (s.precision == Precision::high) return f(Mode<3, 3, false>{});
  return flat_softmax(s) ? f(Mode<6, 3, false>{}) : f(Mode<6, 6, false>{});
}

// Where the tiles of a call are, in s.zt. A group is 16 rows, a pair of groups 32, a step 32 columns, a slice 16.
template <class M> class Operands {
 public:
  explicit Operands(const SelfLse<float>& s)
      : steps(steps_of(s)), factor(s.zt), size_(s.padded * steps * 32), groups_(s.padded / 16),
        logit_left_(reinterpret_cast<bf16*>(factor + s.padded)), logit_right_(logit_left_ + M::Logits::parts * size_),
        gradient_left_(logit_right_ + M::Logits::parts * size_),
        gradient_right_(gradient_left_ + M::Gradient::parts * size_) {}

  static int64_t steps_of(const SelfLse<float>& s) { return (s.width + 31) / 32; }
  static int64_t floats(const SelfLse<float>& s) {
    const int64_t parts = M::Logits::parts + (s.with_gradient ? M::Gradient::parts : 0);
    return s.padded + parts * s.padded * steps_of(s) * 32;  // each part twice, at half a float
  }

  // Operands of t = Z Z': 16 rows by 32 columns; and transposed, 32 columns in pairs by 16 rows.
  bf16* logit_left(int part, int64_t group, int64_t step) const {
    return logit_left_ + at(part, group * steps + step);
  }
  bf16* logit_right(int part, int64_t group, int64_t step) const {
    return logit_right_ + at(part, group * steps + step);
  }
  // Operands of G' Z, transposed (16 columns by 32 rows), and of G Z (32 rows in pairs by 16 columns).
  bf16* gradient_left(int part, int64_t slice, int64_t pair) const {
    return gradient_left_ + at(part, slice * (groups_ / 2) + pair);
  }
  bf16* gradient_right(int part, int64_t pair, int64_t slice) const {
    return gradient_right_ + at(part, pair * (2 * steps) + slice);
  }

  const int64_t steps;
  float* const factor;  // [padded]: z_i . z_j = factor_i factor_j (product of the operands); where M::scaled

 private:
  int64_t at(int part, int64_t tile) const { return part * size_ + tile * tile_elements; }
  int64_t size_, groups_;
  bf16 *logit_left_, *logit_right_, *gradient_left_, *gradient_right_;
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

// The 16 rows of a tile as they are, and transposed as 4-byte numbers: rows of pairs become pairs of rows.
SSL_INLINE void store_both_ways(__m512i (&rows)[16], bf16* plain, bf16* transposed) {
  Vec<float> square[16];
  for (int r = 0; r < 16; ++r) {
    store_row(plain, r, rows[r]);
    square[r] = (Vec<float>)rows[r];
  }
  transpose<float>(square);
  for (int r = 0; r < 16; ++r) store_row(transposed, r, (__m512i)square[r]);
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
void pack_pair(const SelfLse<float>& s, const Operands<M>& to, int64_t i0) {
  OperandRow<Format> rows[32];
  RowCursor at(s.parts, s.part_count, i0 < s.rows ? i0 : s.rows - 1);
  for (int64_t r = 0; r < 32; ++r) {
    rows[r] = {z_row(s, s.z, 0, i0 + r), nullptr, 1};
    to.factor[i0 + r] = 1;
    if (!M::scaled || i0 + r >= s.rows) continue;
    if (scale_exactly(s.normalize, s.norm[i0 + r], rows[r].power, to.factor[i0 + r]))
      rows[r].x = static_cast<const typename Format::Element*>(at.part->data) + at.row * at.part->stride;
    at.next();
  }
  constexpr int logit_parts = M::Logits::parts, gradient_parts = M::Gradient::parts;
  constexpr int parts = logit_parts > gradient_parts ? logit_parts : gradient_parts;
  for (int64_t step = 0; step < to.steps; ++step) {
    alignas(64) bf16 split[parts][32][32];
    for (int r = 0; r < 32; ++r) {
      Vec<float> x[2];
      rows[r].read(step * 32, s.width, s.padded * panel<float>, x);
      for (int part = 0; part < parts; ++part) {
        const __m512i rounded = to_bf16(x[0], x[1]);
        store_row(split[part][0], r, rounded);
        subtract(x[0], x[1], rounded);
      }
    }
    for (int part = 0; part < logit_parts; ++part)
      for (int64_t half = 0; half < 2; ++half) {
        __m512i tile[16];
        for (int r = 0; r < 16; ++r) tile[r] = _mm512_load_si512(split[part][16 * half + r]);
        store_both_ways(tile, to.logit_left(part, i0 / 16 + half, step), to.logit_right(part, i0 / 16 + half, step));
      }
    if (!s.with_gradient) continue;
    for (int part = 0; part < gradient_parts; ++part)
      for (int64_t half = 0; half < 2; ++half) {
        __m512i tile[16];
        for (int r = 0; r < 16; ++r) {
          auto row = [&](int k) {
            return _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)(split[part][2 * r + k] + 16 * half)));
          };
          tile[r] = _mm512_or_si512(row(0), _mm512_slli_epi32(row(1), 16));
        }
        const int64_t slice = 2 * step + half;
        store_both_ways(tile, to.gradient_right(part, i0 / 32, slice), to.gradient_left(part, slice, i0 / 32));
      }
  }
}

inline void pack_tiles(const SelfLse<float>& s, int64_t first_panel, int64_t last_panel) {
  const int64_t i0 = first_panel * panel<float>, i1 = last_panel * panel<float>;
  read_rows<float>(s, i0, i1);
  with_mode(s, [&](auto mode) {
    using M = decltype(mode);
    const Operands<M> operands(s);
    with_dtype<float>(s.dtype, [&](auto format) {
      for (int64_t i = i0; i < i1; i += 32) pack_pair<M, decltype(format)>(s, operands, i);
    });
  });
}

}  // namespace ssl::SSL_ISA
