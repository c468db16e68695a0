// Averages of runs of elements.
#pragma once
#include "averaging.h"
#include "elements.h"
#include "random_bits.h"

namespace ssl::SSL_ISA {

typedef uint32_t Words __attribute__((vector_size(SSL_VECTOR_BYTES)));

// The random bits of elements first, first + 1, ...
SSL_INLINE Words random_bits(const uint32_t (&keys)[2], int64_t first) {
  Words lane;
  for (uint32_t k = 0; k < sizeof lane / 4; ++k) lane[k] = k;
  const Words low = uint32_t(first) + lane;
  const Words high = uint32_t(uint64_t(first) >> 32) - (Words)(low < lane);  // a comparison that holds is -1
  return mixed(mixed(low + keys[0]) ^ (high + keys[1]));
}

// Up or down to a neighbour in bfloat16, up with the chance that is the part cut off. What is finite stays so.
SSL_INLINE Halves rounded_at_random(BF16, Vec<float> v, Words random) {
  const Words bits = (Words)v, up = bits + (random >> 16);
  const Words over = (Words)((up & 0x7f800000) == 0x7f800000);  // infinite, NaN, or about to be
  Words result = ((over & bits) | (~over & up)) >> 16;
  result = v == v ? result : Words{} + 0x7fc0;
  return __builtin_convertvector(result, Halves);
}

// The same in float16, whose smallest numbers are multiples of 2^-24.
SSL_INLINE Halves rounded_at_random(F16, Vec<float> v, Words random) {
  typedef Simd<float>::Bits Bits;
  const Words sign = (Words)v >> 16 & 0x8000, bits = (Words)v & 0x7fffffff;
  random >>= 19;
  const Words up = (bits - 0x38000000 + random) >> 13;
  const Words most = bits >= 0x477ff000 ? Words{} + 0x7c00 : Words{} + 0x7bff;  // 65520 is nearer to infinity
  const auto tiny = bits < 0x38800000;
  const Vec<float> size = tiny ? (Vec<float>)bits * 16777216.f : Vec<float>{};
  const Vec<float> part = __builtin_convertvector((Bits)random, Vec<float>) / 8192.f;
  const Bits whole = __builtin_convertvector(size, Bits);
  // a comparison that holds is -1; no sum here, which might be rounded
  const Words multiple = (Words)(whole - (size - __builtin_convertvector(whole, Vec<float>) >= 1.f - part));
  const Words result = sign | (tiny ? multiple : up < 0x7c00 ? up : most);
  return __builtin_convertvector(v == v ? result : Words{} + 0x7e00, Halves);
}

template <class T, class To, class From, class Next>
SSL_INLINE void average_run(const AveragedPair& p, int64_t begin, int64_t end, const AverageRule& rule, Next&& next) {
  constexpr bool at_random = sizeof(typename To::Element) == 2;
  constexpr int64_t ahead = 2048 / sizeof(T);
  auto* target = static_cast<typename To::Element*>(p.target);
  const auto* source = static_cast<const typename From::Element*>(p.source);
  int64_t k = begin;
  for (; k + lanes<T> <= end; k += lanes<T>) {
    // 32 lines of either stream under way: without, it was a tenth to a fifth slower
    __builtin_prefetch(target + k + ahead, 1);
    __builtin_prefetch(source + k + ahead);
    const Vec<T> v = next(read_elements<T, To>(target + k), read_elements<T, From>(source + k));
    if constexpr (at_random) {
      const Halves h = rounded_at_random(To{}, v, random_bits(rule.keys, p.first + k));
      memcpy(target + k, &h, sizeof h);
    } else {
      write_elements<T, To>(target + k, v);
    }
  }
  if (const int64_t rest = end - k; rest > 0) {
    const Vec<T> v = next(read_last<T, To>(target + k, rest), read_last<T, From>(source + k, rest));
    if constexpr (at_random) {
      const Halves h = rounded_at_random(To{}, v, random_bits(rule.keys, p.first + k));
      memcpy(target + k, &h, rest * sizeof *target);
    } else {
      write_last<T, To>(target + k, rest, v);
    }
  }
}

template <class T, class To, class From> void copy_run(const AveragedPair& p, int64_t begin, int64_t end) {
  auto* target = static_cast<typename To::Element*>(p.target);
  const auto* source = static_cast<const typename From::Element*>(p.source);
  int64_t k = begin;
  for (; k + lanes<T> <= end; k += lanes<T>) write_elements<T, To>(target + k, read_elements<T, From>(source + k));
  if (k < end) write_last<T, To>(target + k, end - k, read_last<T, From>(source + k, end - k));
}

inline void average_span(const AveragedPair& p, int64_t begin, int64_t end, const AverageRule& rule) {
  with_any_dtype(p.to, [&](auto to) {
    with_any_dtype(p.from, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      using T = std::conditional_t<std::is_same_v<To, F64>, double, float>;
      if (p.copied) return copy_run<T, To, From>(p, begin, end);
      // from the nearer of the two, so that the rounding error is one of the step; as torch.lerp does
      const Vec<T> momentum = splat<T>(T(rule.momentum)), weight = splat<T>(T(rule.weight));
      if (rule.weight < 0.5)
        average_run<T, To, From>(p, begin, end, rule, [=](Vec<T> t, Vec<T> s) __attribute__((always_inline)) { return t + weight * (s - t); });
      else
        average_run<T, To, From>(p, begin, end, rule, [=](Vec<T> t, Vec<T> s) __attribute__((always_inline)) { return s + momentum * (t - s); });
    });
  });
}

}  // namespace ssl::SSL_ISA
