// The tile registers of AMX: eight matrices of 16 rows of 64 bytes, the product of two of them, and the rounding to what
// they multiply. Tiles in assembly, since the compilers' intrinsics want the register's number as a literal, and gcc's _tile_loadconfig declares only 8 of the
// 64 bytes as read, so that the stores of the others may be deleted.
#pragma once
#include <cpuid.h>
#include <immintrin.h>
#include <cstdint>
#include <sys/syscall.h>
#include <unistd.h>

namespace ssl::SSL_ISA::tiles {

constexpr int rows = 16, row_bytes = 64;

// The processor has them (CPUID), the system saves them (XCR0), and lets this process use them: the state is 8 KiB a
// thread, so Linux wants to be asked, once a process. Wants a processor with AVX.
inline bool usable() {
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, tile_state = 3u << 17;
  constexpr long request_permission = 0x1023, tile_data = 18;
  unsigned a, b, c, d, xcr0, high;
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & amx_bf16) || !(d & amx_tile)) return false;
  asm("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  return (xcr0 & tile_state) == tile_state && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// The first 16 numbers are those of `low`.
inline __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The calling thread's tiles, all of full size, from here to the end of the scope; their contents start as zeros.
class Scope {
 public:
  Scope() {
    Config config{};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.rows[t] = rows;
      config.row_bytes[t] = row_bytes;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Scope() { asm volatile("tilerelease"); }
  Scope(const Scope&) = delete;

 private:
  struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Config) == 64);
};

template <int Tile> inline void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(Tile)); }

// The compiler does not know what memory a tile reads, hence "memory": every store before it is done by then.
template <int Tile> inline void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile> inline void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}

// C [16][16] float += A [16][32] bf16 * B [32][16] bf16, B as [16][16] pairs of rows.
template <int C, int A, int B> inline void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace ssl::SSL_ISA::tiles
