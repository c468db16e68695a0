// Random bits from numbers: the same for the same element, step and seed, on any number of threads and any backend.
#pragma once
#include <cstdint>

namespace ssl {

// Every bit of the result depends on every bit of x: two rounds of xor, shift and product, with the constants of least bias
// that the search at https://github.com/skeeto/hash-prospector found.
constexpr uint32_t mix_shifts[3] = {16, 15, 15};
constexpr uint32_t mix_factors[2] = {0x21f0aaad, 0xd35a2d97};

inline uint32_t mixed(uint32_t x) {
  x = (x ^ x >> mix_shifts[0]) * mix_factors[0];
  x = (x ^ x >> mix_shifts[1]) * mix_factors[1];
  return x ^ x >> mix_shifts[2];
}

}  // namespace ssl
