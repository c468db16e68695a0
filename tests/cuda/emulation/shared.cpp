// The shared memory of the block that runs: poisoned, and guarded behind its end.
#include <cstring>
#include "block.h"

namespace ssl::emulated {
namespace {

constexpr size_t GUARD = 4096;
alignas(1024) unsigned char arena[SHARED_LIMIT + GUARD];
size_t arena_size = 0;

}  // namespace

void poison_shared(size_t bytes) {
  arena_size = (bytes + 15) / 16 * 16;
  memset(arena, 0xff, arena_size + GUARD);
}
void check_guard() {
  for (size_t k = 0; k < GUARD; ++k)
    if (arena[arena_size + k] != 0xff) fault("a store %zu bytes past the %zu of shared memory", k, arena_size);
}

unsigned char* shared_memory() { return arena; }

uint32_t shared_address(const void* p) {
  const auto* at = static_cast<const unsigned char*>(p);
  if (at < arena || at >= arena + arena_size) fault("not an address in the %zu bytes of shared memory", arena_size);
  return uint32_t(at - arena) + 1024;  // the first KiB is CUDA's
}
unsigned char* shared_at(uint32_t address) {
  if (address < 1024 || address >= 1024 + arena_size)
    fault("address %u is not in the %zu bytes of shared memory", address, arena_size);
  return arena + (address - 1024);
}

}  // namespace ssl::emulated
