// The tile registers of AMX, and the rounding to bf16, in plain AVX-512, to run csrc/cpu/amx_*.h on machines without them:
// takes the place of csrc/cpu/amx_tiles.h. Products are rounded as the instruction's definition has it (Intel's manual, TDPBF16PS).
// Stricter than the hardware: what it would refuse by a signal, and reading a register never filled, is an exception.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ssl::SSL_ISA::tiles {

constexpr int rows = 16, row_bytes = 64;

inline bool usable() { return true; }

// As VCVTNE2PS2BF16: to nearest, ties to even, denormals are zeros, NaN stays NaN.
inline __m256i to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), sign = _mm512_set1_epi32(int(0x80000000));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
  const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  rounded = _mm512_mask_and_epi32(rounded, tiny, bits, sign);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
inline __m512i to_bf16(__m512 low, __m512 high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
}

struct Register {
  alignas(64) uint8_t bytes[rows][row_bytes];
  bool filled;
};

struct Machine {
  bool configured = false;
  Register tile[8];

  Register& get(int t, bool filled) {
    if (t < 0 || t > 7) throw std::logic_error("AMX: there is no tile " + std::to_string(t));
    if (!configured) throw std::logic_error("AMX: tile " + std::to_string(t) + " used without a configuration");
    if (filled && !tile[t].filled) throw std::logic_error("AMX: tile " + std::to_string(t) + " was never filled");
    return tile[t];
  }
};

inline Machine& machine() {
  static thread_local Machine mine;
  return mine;
}

class Scope {
 public:
  Scope() {
    if (machine().configured) throw std::logic_error("AMX: configured twice");
    machine().configured = true;
    for (Register& r : machine().tile) r.filled = false;
  }
  ~Scope() { machine().configured = false; }
  Scope(const Scope&) = delete;
};

template <int Tile> __attribute__((noinline)) void zero() {
  Register& r = machine().get(Tile, false);
  memset(r.bytes, 0, sizeof r.bytes);
  r.filled = true;
}

template <int Tile> __attribute__((noinline)) void load(const void* from, int64_t stride) {
  Register& r = machine().get(Tile, false);
  for (int k = 0; k < rows; ++k) memcpy(r.bytes[k], static_cast<const char*>(from) + k * stride, row_bytes);
  r.filled = true;
}

template <int Tile> __attribute__((noinline)) void store(void* to, int64_t stride) {
  const Register& r = machine().get(Tile, true);
  for (int k = 0; k < rows; ++k) memcpy(static_cast<char*>(to) + k * stride, r.bytes[k], row_bytes);
}

inline __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 odd(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))));
}

template <int C, int A, int B> __attribute__((noinline)) void multiply_add() {
  static_assert(C != A && C != B && A != B, "the instruction wants three different tiles");
  Register& c = machine().get(C, true);
  const Register &a = machine().get(A, true), &b = machine().get(B, true);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // round to nearest, denormals are zeros in and out
  for (int m = 0; m < rows; ++m) {
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int k = 0; k < rows; ++k) {
      int32_t pair;
      memcpy(&pair, a.bytes[m] + 4 * k, 4);
      const __m512i left = _mm512_set1_epi32(pair), right = _mm512_load_si512(b.bytes[k]);
      sums[0] = _mm512_fmadd_ps(even(left), even(right), sums[0]);
      sums[1] = _mm512_fmadd_ps(odd(left), odd(right), sums[1]);
    }
    _mm512_store_ps(c.bytes[m], _mm512_add_ps(_mm512_load_ps(c.bytes[m]), _mm512_add_ps(sums[0], sums[1])));
  }
  _mm_setcsr(before);
}

}  // namespace ssl::SSL_ISA::tiles
