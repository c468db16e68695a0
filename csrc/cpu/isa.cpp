// Which instruction set runs: the best this machine has of those that were built.
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include "isa.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ssl {
namespace {

#ifdef SSL_HAVE_AVX_VNNI
// By its bit: __builtin_cpu_supports of clang 16 does not know the name.
bool avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

std::vector<const Isa*> runnable() {
  std::vector<const Isa*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
#ifdef SSL_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
#ifdef SSL_HAVE_AMX
    if (amx_usable()) found.push_back(&isa_amx());
#endif
#ifdef SSL_HAVE_VNNI
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(&isa_vnni());
#endif
    found.push_back(&isa_avx512());
  }
#endif
#ifdef SSL_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#ifdef SSL_HAVE_AVX_VNNI
    if (avx_vnni()) found.push_back(&isa_avx_vnni());
#endif
    found.push_back(&isa_avx2());
  }
#endif
#endif
  found.push_back(&isa_portable());
  return found;
}

const std::vector<const Isa*>& here() {
  static const std::vector<const Isa*> found = runnable();
  return found;
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const Isa& current_isa() {
  const Isa* isa = chosen.load(std::memory_order_relaxed);
  return isa ? *isa : *here().front();
}

const char* isa() { return current_isa().name; }

std::vector<const char*> isas() {
  std::vector<const char*> names;
  for (const Isa* isa : here()) names.push_back(isa->name);
  return names;
}

void use_isa(const char* name) {
  for (const Isa* isa : here())
    if (!strcmp(isa->name, name)) {
      chosen = isa;
      return;
    }
  std::string message = std::string("isa: expected one of");
  for (const Isa* isa : here()) message += std::string(" ") + isa->name;
  throw std::invalid_argument(message + ", got " + name);
}

}  // namespace ssl
