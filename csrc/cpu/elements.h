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

// Rounded to nearest.
template <class T, class Format> SSL_INLINE void write_elements(typename Format::Element* p, Vec<T> v) {
  if constexpr (same_dtype<T, Format>) {
    store<T>(p, v);
  } else if constexpr (std::is_same_v<Format, BF16> && sizeof(T) == 4) {
    using Bits = typename Simd<T>::Bits;
    const Bits bits = (Bits)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves h = __builtin_convertvector(v == v ? rounded : Bits{} + 0x7fc0, Halves);
    memcpy(p, &h, sizeof h);
#if defined(__AVX512F__) && SSL_VECTOR_BYTES == 64
  } else if constexpr (std::is_same_v<Format, F16> && sizeof(T) == 4) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && SSL_VECTOR_BYTES == 32
  } else if constexpr (std::is_same_v<Format, F16> && sizeof(T) == 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else {
    T values[lanes<T>];
    store<T>(values, v);
    for (int k = 0; k < lanes<T>; ++k) p[k] = Format::template write<T>(values[k]);
  }
}

// Past the caches, for what will not be read soon; p is aligned to the vector.
template <class T> SSL_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__) && SSL_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX__) && SSL_VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__) && SSL_VECTOR_BYTES == 16
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store<T>(p, v);
#endif
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
