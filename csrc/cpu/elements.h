// Elements of any dtype, a vector of them at a time.
#pragma once
#include <type_traits>
#include "rows.h"

namespace ssl::SSL_ISA {

template <class T, class Format> constexpr bool same_dtype = std::is_same_v<T, typename Format::Element>;
typedef uint16_t Halves __attribute__((vector_size(SSL_VECTOR_BYTES / 2)));

template <class T, class Format> SSL_INLINE Vec<T> read_elements(const typename Format::Element* p) {
  if constexpr (same_dtype<T, Format>) {
    return load<T>(p);
  } else if constexpr (std::is_same_v<Format, BF16> && sizeof(T) == 4) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return (Vec<T>)(__builtin_convertvector(h, typename Simd<T>::Bits) << 16);
#if defined(__AVX512F__) && SSL_VECTOR_BYTES == 64
  } else if constexpr (std::is_same_v<Format, F16> && sizeof(T) == 4) {
    return (Vec<T>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && SSL_VECTOR_BYTES == 32
  } else if constexpr (std::is_same_v<Format, F16> && sizeof(T) == 4) {
    return (Vec<T>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  } else {
    T values[lanes<T>];
    for (int k = 0; k < lanes<T>; ++k) values[k] = Format::template read<T>(p[k]);
    return load<T>(values);
  }
}

// Rounded to nearest: a vector of elements of Format.
template <class T, class Format> SSL_INLINE auto to_elements(Vec<T> v) {
  using Element = typename Format::Element;
  if constexpr (same_dtype<T, Format>) {
    return v;
  } else if constexpr (std::is_same_v<Format, BF16> && sizeof(T) == 4) {
    using Bits = typename Simd<T>::Bits;
    const Bits bits = (Bits)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : Bits{} + 0x7fc0, Halves);
#if defined(__AVX512F__) && SSL_VECTOR_BYTES == 64
  } else if constexpr (std::is_same_v<Format, F16> && sizeof(T) == 4) {
    return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && SSL_VECTOR_BYTES == 32
  } else if constexpr (std::is_same_v<Format, F16> && sizeof(T) == 4) {
    return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#endif
  } else {
    typedef Element Elements __attribute__((vector_size(lanes<T> * sizeof(Element))));
    Elements e;
    for (int k = 0; k < lanes<T>; ++k) e[k] = Format::template write<T>(v[k]);
    return e;
  }
}
template <class T, class Format> SSL_INLINE void write_elements(typename Format::Element* p, Vec<T> v) {
  const auto e = to_elements<T, Format>(v);
  memcpy(p, &e, sizeof e);
}

// Past the caches, for what will not be read soon; p is aligned to the vector of elements.
template <class T, class Format> SSL_INLINE void stream_elements(typename Format::Element* p, Vec<T> v) {
  const auto e = to_elements<T, Format>(v);
#if defined(__AVX512F__)
  if constexpr (sizeof e == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)e);
#endif
#if defined(__AVX__)
  if constexpr (sizeof e == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)e);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof e == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)e);
#endif
  memcpy(p, &e, sizeof e);
}
inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// f(format) for any dtype, whatever T is.
template <class F> SSL_INLINE void with_any_dtype(DType dtype, F&& f) {
  if (dtype == DType::f64)
    f(F64{});
  else
    with_dtype<float>(dtype, f);
}

// The last `count` < lanes elements of a run; what is beyond them reads as zero and is not written.
template <class T, class Format> SSL_INLINE Vec<T> read_last(const typename Format::Element* p, int64_t count) {
  typename Format::Element padded[lanes<T>] = {};
  memcpy(padded, p, count * sizeof *p);
  return read_elements<T, Format>(padded);
}
template <class T, class Format> SSL_INLINE void write_last(typename Format::Element* p, int64_t count, Vec<T> v) {
  typename Format::Element padded[lanes<T>];
  write_elements<T, Format>(padded, v);
  memcpy(p, padded, count * sizeof *p);
}

}  // namespace ssl::SSL_ISA
