// Random bits from numbers: the same for the same element, step and seed, on any number of threads and any backend.
#pragma once
#include <cstdint>
#include "portable.h"

namespace ssl {

// Every bit of the result depends on every bit of x: two rounds of xor, shift and product, with the constants of least bias
// that the search at https://github.com/skeeto/hash-prospector found. Words: uint32_t, or a vector of them.
template <class Words> SSL_SHARED Words mixed(Words x) {
  x = (x ^ x >> 16) * 0x21f0aaadu;
  x = (x ^ x >> 15) * 0xd35a2d97u;
  return x ^ x >> 15;
}

// The keys of one call, from the user's seed and the number of the call.
SSL_SHARED void random_keys(int64_t seed, int64_t step, uint32_t (&keys)[2]) {
  keys[0] = mixed(uint32_t(seed) ^ mixed(uint32_t(step)));
  keys[1] = mixed(uint32_t(uint64_t(seed) >> 32) + mixed(uint32_t(uint64_t(step) >> 32) + keys[0]));
}

}  // namespace ssl
