// Vectors of any width from the compiler's own vector types, so that one engine serves AVX-512, AVX2, NEON and plain
// code. Included by the isa_*.cpp files only, each compiled with its own flags and in a namespace of its own: an inline
// function shared between them could be linked with instructions the machine does not have.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own _mm512_undefined_ps
#endif

#define SSL_INLINE inline __attribute__((always_inline))

namespace ssl::SSL_ISA {

template <class T> struct Simd;
template <> struct Simd<float> {
  typedef float Vec __attribute__((vector_size(SSL_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(SSL_VECTOR_BYTES)));
  static constexpr int exponent_shift = 23;
  static constexpr float lowest_exponent = -126.f;
  static constexpr float round_magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
};
template <> struct Simd<double> {
  typedef double Vec __attribute__((vector_size(SSL_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(SSL_VECTOR_BYTES)));
  static constexpr int exponent_shift = 52;
  static constexpr double lowest_exponent = -1022.;
  static constexpr double round_magic = 6755399441055744.;
};
template <> struct Simd<int32_t> {
  typedef int32_t Vec __attribute__((vector_size(SSL_VECTOR_BYTES)));
};
template <class T> using Vec = typename Simd<T>::Vec;
template <class T> constexpr int lanes = SSL_VECTOR_BYTES / sizeof(T);

template <class T> SSL_INLINE Vec<T> splat(T x) { return x - Vec<T>{}; }
template <class T> SSL_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T> SSL_INLINE void store(T* p, Vec<T> v) { memcpy(p, &v, sizeof v); }
template <class V> SSL_INLINE V larger(V a, V b) { return a > b ? a : b; }

// What a product adds to a sum; of 32-bit integers, what the products of their two halves do.
template <class V> SSL_INLINE V plus_product(V sum, V a, V b) { return sum + a * b; }
#if SSL_VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
SSL_INLINE Vec<int32_t> plus_product(Vec<int32_t> sum, Vec<int32_t> a, Vec<int32_t> b) {
  return (Vec<int32_t>)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif SSL_VECTOR_BYTES == 32 && defined(__AVXVNNI__)
SSL_INLINE Vec<int32_t> plus_product(Vec<int32_t> sum, Vec<int32_t> a, Vec<int32_t> b) {
  return (Vec<int32_t>)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#elif SSL_VECTOR_BYTES == 32 && defined(__AVX2__)
SSL_INLINE Vec<int32_t> plus_product(Vec<int32_t> sum, Vec<int32_t> a, Vec<int32_t> b) {
  return sum + (Vec<int32_t>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#endif

template <class T, int Step, int... K> SSL_INLINE Vec<T> exchange(Vec<T> v, std::integer_sequence<int, K...>) {
  return __builtin_shufflevector(v, v, (K ^ Step)...);
}

// Halves added to halves, in registers: four times as fast as one lane after the other.
template <class T, int Step = lanes<T> / 2> SSL_INLINE T sum_lanes(Vec<T> v) {
  v += exchange<T, Step>(v, std::make_integer_sequence<int, lanes<T>>{});
  if constexpr (Step > 1)
    return sum_lanes<T, Step / 2>(v);
  else
    return v[0];
}

template <class T, int Step = lanes<T> / 2> SSL_INLINE T largest_lane(Vec<T> v) {
  v = larger(v, exchange<T, Step>(v, std::make_integer_sequence<int, lanes<T>>{}));
  if constexpr (Step > 1)
    return largest_lane<T, Step / 2>(v);
  else
    return v[0];
}

// Lanes with bit `Step` of the lane number clear from a, set from b, exchanged for the other of the pair.
template <class T, int Step, bool High, int... K>
SSL_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, K...>) {
  if constexpr (High)
    return __builtin_shufflevector(a, b, (K & Step ? K + lanes<T> : K + Step)...);
  else
    return __builtin_shufflevector(a, b, (K & Step ? K - Step + lanes<T> : K)...);
}

// rows[r][k] becomes rows[k][r]: quarters, eighths, ... swapped across the diagonal, in registers.
template <class T, int Step = lanes<T> / 2> SSL_INLINE void transpose(Vec<T> (&rows)[lanes<T>]) {
  constexpr auto all = std::make_integer_sequence<int, lanes<T>>{};
#pragma GCC unroll 16
  for (int r = 0; r < lanes<T>; ++r)
    if (!(r & Step)) {
      const Vec<T> a = rows[r], b = rows[r + Step];
      rows[r] = interleave<T, Step, false>(a, b, all);
      rows[r + Step] = interleave<T, Step, true>(a, b, all);
    }
  if constexpr (Step > 1) transpose<T, Step / 2>(rows);
}

// 2^f on [-1/2, 1/2]: minimax polynomials of our own Remez run, relative error 1.9e-9 (float, far under the rounding
// of its terms) and 3.1e-18 (double).
SSL_INLINE Vec<float> exp2_fraction(Vec<float> f) {
  Vec<float> p = f * 0.000153458124f + 0.00133999309f;
  p = p * f + 0.00961848907f;
  p = p * f + 0.0555032864f;
  p = p * f + 0.240226462f;
  p = p * f + 0.693147182f;
  return p * f + 1.f;
}
SSL_INLINE Vec<double> exp2_fraction(Vec<double> f) {
  Vec<double> p = f * 4.435282706957277e-10 + 7.074105613508143e-09;
  p = p * f + 1.0178198021671931e-07;
  p = p * f + 1.32154330896764e-06;
  p = p * f + 1.5252733489988525e-05;
  p = p * f + 0.00015403530462514432;
  p = p * f + 0.0013333558146789923;
  p = p * f + 0.009618129107588335;
  p = p * f + 0.055504108664819925;
  p = p * f + 0.24022650695910155;
  p = p * f + 0.6931471805599453;
  return p * f + 1.;
}

// 2^t for t below the largest exponent; underflow gives something between 0 and the smallest normal number, never a
// denormal, which would make every product it enters 30 times slower. NaN stays NaN.
template <class T> SSL_INLINE Vec<T> exp2(Vec<T> t) {
#if defined(__AVX512F__) && SSL_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    const __m512 r = _mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (Vec<T>)_mm512_scalef_ps((__m512)exp2_fraction(t - (Vec<T>)r), r);
  }
#endif
  using S = Simd<T>;
  const Vec<T> low = splat<T>(S::lowest_exponent);
  const Vec<T> x = t < low ? low : t;
  const Vec<T> u = x + S::round_magic;
  const Vec<T> p = exp2_fraction(x - (u - S::round_magic));
  const Vec<T> y = (Vec<T>)((typename S::Bits)p + ((typename S::Bits)u << S::exponent_shift));
  return t == t ? y : t;
}

// Flush denormals for as long as this lives, and put things back as they were.
struct [[maybe_unused]] FlushDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

}  // namespace ssl::SSL_ISA
