// Exponential moving averages of any number of tensors. Their addresses come as the kernel's parameters: one launch for some
// hundreds of them, no table to copy to the device first, and a CUDA graph keeps them by itself.
#include "api.h"
#include "arrivals.h"
#include "elements.h"
#include "logits.h"
#include "random_bits.h"

namespace ssl::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int64_t PIECE = 8192;  // elements, or words to copy, of a block: 32 a thread

#if !defined(SSL_EMULATED) && CUDART_VERSION < 12010
constexpr int PAIRS = 96;  // in 4 KiB
#else
constexpr int PAIRS = 800;  // in 32 KiB
#endif

// How the elements of a pair are to be read: by their two dtypes, or as 16, 4 or 1 bytes that are copied.
constexpr int WORDS_OF_16 = 16, WORDS_OF_4 = 17, WORDS_OF_1 = 18;
int kind_of(DType to, DType from) { return int(to) * 4 + int(from); }

struct Table {
  void* to[PAIRS];
  const void* of[PAIRS];
  int64_t count[PAIRS];  // of elements, or of words
  int64_t first[PAIRS];
  int block[PAIRS];  // the first that works on the pair
  uint8_t kind[PAIRS];
  bool copied[PAIRS];
};
struct Settings {
  int pairs;
  Number momentum;
  double keep, take;
  int64_t* rounding;
  bool last;  // of the launches: it advances the number of the call
};

// One of the two neighbours in T, with the chances that keep the expectation; what is finite stays so.
template <class T> SSL_DEVICE T rounded_at_random(float value, uint32_t random) {
  const uint32_t bits = __float_as_uint(value), sign = bits & 0x80000000u, size = bits & 0x7fffffffu;
  if (value != value) return narrowed<T>(value);
  if constexpr (same_type<T, bfloat_t>) {
    const uint32_t up = size + (random >> 16);
    return __ushort_as_bfloat16(uint16_t((sign | (up >= 0x7f800000u ? size : up)) >> 16));
  } else {
    random >>= 19;
    if (size < 0x38800000u) {
      // the smallest numbers are multiples of 2^-24; no sum here, which might be rounded
      const float multiple = fabsf(value) * 16777216.0f, whole = floorf(multiple);
      const bool up = multiple - whole >= 1.0f - float(random) * (1.0f / 8192.0f);
      return __ushort_as_half(uint16_t(sign >> 16 | (uint32_t(whole) + up)));
    }
    const uint32_t up = (size - 0x38000000u + random) >> 13;
    return __ushort_as_half(uint16_t(sign >> 16 | (up < 0x7c00u ? up : size >= 0x477ff000u ? 0x7c00u : 0x7bffu)));
  }
}

template <class To, class From>
SSL_DEVICE void average_piece(To* to, const From* of, int64_t count, int64_t first, double keep, double take,
                              const uint32_t (&keys)[2]) {
  using Real = RealOf<To>;
  const bool to_vector = aligned(to, 0), of_vector = aligned(of, 0);
  for (int64_t k = 8 * int64_t(threadIdx.x); k < count; k += 8 * THREADS) {
    const int here = up_to_eight(count - k);
    From source[8];
    To target[8];
    read_eight(source, of + k, here, of_vector);
    if (keep == 0) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if constexpr (same_type<To, From>) target[e] = source[e];
        else target[e] = narrowed<To>(widened(source[e]));
      }
    } else {
      read_eight(target, to + k, here, to_vector);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const Real t = Real(widened(target[e])), s = Real(widened(source[e]));
        // from the nearer of the two, so that the rounding error is one of the step
        const Real value = take < 0.5 ? t + Real(take) * (s - t) : s + Real(keep) * (t - s);
        if constexpr (is_half<To>) {
          const uint64_t at = uint64_t(first + k + e);
          target[e] = rounded_at_random<To>(value, mixed(mixed(uint32_t(at) + keys[0]) ^ (uint32_t(at >> 32) + keys[1])));
        } else {
          target[e] = value;
        }
      }
    }
    write_eight(to + k, target, here, to_vector);
  }
}

template <class Word> SSL_DEVICE void copy_piece(void* to, const void* of, int64_t from, int64_t count) {
  for (int64_t k = threadIdx.x; k < count; k += THREADS)
    static_cast<Word*>(to)[from + k] = static_cast<const Word*>(of)[from + k];
}

__global__ void __launch_bounds__(THREADS) average_pieces(const __grid_constant__ Table table,
                                                          const __grid_constant__ Settings settings) {
  int pair = 0;  // the last whose first block is not beyond this one
  for (int step = 512; step > 0; step /= 2)
    if (pair + step < settings.pairs && table.block[pair + step] <= int(blockIdx.x)) pair += step;
  const int64_t from = (int64_t(blockIdx.x) - table.block[pair]) * PIECE, left = table.count[pair] - from;
  const int64_t count = left < PIECE ? left : PIECE;

  double keep = settings.keep, take = settings.take;
  if (settings.momentum.at) {
    keep = load_number<double>(settings.momentum, 0);
    take = 1 - keep;
  }
  if (table.copied[pair]) keep = 0, take = 1;
  uint32_t keys[2] = {};
  int64_t step = 0;
  if (settings.rounding) {
    step = read_before_arrival(settings.rounding + 1);
    random_keys(settings.rounding[0], step, keys);
  }

  void* const to = table.to[pair];
  const void* const of = table.of[pair];
  if (take != 0) {
    auto average_as = [&]<class To, class From>() {
      average_piece(static_cast<To*>(to) + from, static_cast<const From*>(of) + from, count, table.first[pair] + from, keep,
                    take, keys);
    };
    auto average_into = [&]<class To>(int source) {
      switch (source) {
        case int(DType::f32): return average_as.template operator()<To, float>();
        case int(DType::f64): return average_as.template operator()<To, double>();
        case int(DType::bf16): return average_as.template operator()<To, bfloat_t>();
        default: return average_as.template operator()<To, half_t>();
      }
    };
    const int kind = table.kind[pair];
    switch (kind / 4) {
      case int(DType::f32): average_into.template operator()<float>(kind % 4); break;
      case int(DType::f64): average_into.template operator()<double>(kind % 4); break;
      case int(DType::bf16): average_into.template operator()<bfloat_t>(kind % 4); break;
      case int(DType::f16): average_into.template operator()<half_t>(kind % 4); break;
      default:
        if (kind == WORDS_OF_16) copy_piece<uint4>(to, of, from, count);
        else if (kind == WORDS_OF_4) copy_piece<uint32_t>(to, of, from, count);
        else copy_piece<uint8_t>(to, of, from, count);
    }
  }
  if (settings.rounding && settings.last) arrive_and_replace(settings.rounding + 1, step + 1);
}

}  // namespace

int average(const Average& call, void* stream) {
  Table table;
  Settings settings{0, {call.momentum, call.momentum_dtype}, call.keep, call.take, call.rounding, false};
  int64_t blocks = 0;
  auto flush = [&](bool last) {
    settings.last = last;
    const int code = launch(average_pieces, dim3(unsigned(blocks)), THREADS, 0, stream, table, settings);
    settings.pairs = 0;
    blocks = 0;
    return code;
  };
  auto add = [&](void* to, const void* of, int64_t count, int64_t first, int kind, bool copied) {
    const int k = settings.pairs++;
    table.to[k] = to;
    table.of[k] = of;
    table.count[k] = count;
    table.first[k] = first;
    table.block[k] = int(blocks);
    table.kind[k] = uint8_t(kind);
    table.copied[k] = copied;
    blocks += (count + PIECE - 1) / PIECE;
  };
  int64_t left = call.pair_count + call.copy_count;
  for (int64_t k = 0; k < call.pair_count; ++k, --left) {
    const AveragedPair& p = call.pairs[k];
    if (p.count) add(p.target, p.source, p.count, p.first, kind_of(p.to, p.from), p.copied);
    if (settings.pairs == PAIRS && left > 1)
      if (const int code = flush(false)) return code;
  }
  for (int64_t k = 0; k < call.copy_count; ++k, --left) {
    const CopiedBytes& c = call.copies[k];
    const uint64_t bits = reinterpret_cast<uintptr_t>(c.target) | reinterpret_cast<uintptr_t>(c.source) | uint64_t(c.count);
    const int word = bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
    const int kind = word == 16 ? WORDS_OF_16 : word == 4 ? WORDS_OF_4 : WORDS_OF_1;
    if (c.count) add(c.target, c.source, c.count / word, 0, kind, true);
    if (settings.pairs == PAIRS && left > 1)
      if (const int code = flush(false)) return code;
  }
  return flush(true);
}

}  // namespace ssl::cuda
