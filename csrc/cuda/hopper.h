// What sm_90a adds: products by groups of four warps that read shared memory themselves, copies of whole spans by an engine of
// their own, and barriers at which these copies arrive. Thin wrappers; for other architectures their bodies are empty, and the
// kernels that use them are never launched there.
#pragma once
#include "device.h"

#ifndef SSL_EMULATED
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SSL_HOPPER(...) __VA_ARGS__
#else
#define SSL_HOPPER(...)
#endif

namespace ssl::cuda {

// ---------------------------------------------------------------------------------------------------------- arrivals
// A barrier in shared memory that `count` arrivals and the bytes they announced complete, again and again. Who waits names the
// parity of the completion it waits for: 0 for the first.
SSL_DEVICE void arrival_init(uint64_t* arrival, uint32_t count) {
  SSL_HOPPER(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrival)), "r"(count) : "memory");)
}
// After initialising, before others use it; followed by a barrier of the block.
SSL_DEVICE void arrival_init_fence() {
  SSL_HOPPER(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");)
}
SSL_DEVICE void arrive(uint64_t* arrival) {
  SSL_HOPPER(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(arrival)) : "memory");)
}
SSL_DEVICE void arrive_expecting(uint64_t* arrival, uint32_t bytes) {
  SSL_HOPPER(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes)
                          : "memory");)
}
SSL_DEVICE void wait_for(uint64_t* arrival, uint32_t parity) {
  SSL_HOPPER(asm volatile("{\n.reg .pred done;\n"
                          "again:\n"
                          "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                          "@done bra over;\nbra again;\nover:\n}" ::"r"(shared_address(arrival)), "r"(parity) : "memory");)
}
// Copies a span, multiples of 16 bytes, by the copy engine; arrives at the barrier when it is there.
SSL_DEVICE void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* arrival) {
  SSL_HOPPER(asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                              shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(arrival)) : "memory");)
}
// What this thread wrote to shared memory by stores or copy_async16, made visible to bulk copies and to products.
SSL_DEVICE void fence_async_proxy() { SSL_HOPPER(asm volatile("fence.proxy.async.shared::cta;" ::: "memory");) }

// ------------------------------------------------------------------------------------------------- barriers by number
// Of `threads` threads, a multiple of 32; number 0 is __syncthreads'.
SSL_DEVICE void sync_some(int number, int threads) {
  SSL_HOPPER(asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");)
}
SSL_DEVICE void arrive_some(int number, int threads) {
  SSL_HOPPER(asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");)
}
// Registers of every thread of a warp group from here on, a multiple of 8: taken from the pool, or given back to it.
template <int COUNT> SSL_DEVICE void take_registers() {
  SSL_HOPPER(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));)
}
template <int COUNT> SSL_DEVICE void give_registers() {
  SSL_HOPPER(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));)
}

// The same address, seen as if for the first time: what was computed from it is computed again, not kept in registers, or aside.
SSL_DEVICE const char* anew(const char* p) {
  SSL_HOPPER(asm volatile("" : "+l"(p));)
  return p;
}

// ------------------------------------------------------------------------------------------------ products of warp groups
// d[64, N] (+)= a[64, 16] b[16, N], float16 to float32, N = 64, 128 or 256. Thread t of the group holds of d rows
// t / 32 * 16 + t % 32 / 4 and the eighth after it, as multiply_add lays them: d[4 p + e] is entry e of the 16 x 8 piece p.
//
// Before the first product, and after any change of the registers that it reads: group_fence. d means something after
// group_wait(d) only, which the compiler is told changes it, so that nothing moves in front of it.
SSL_DEVICE void group_fence() { SSL_HOPPER(asm volatile("wgmma.fence.sync.aligned;" ::: "memory");) }
SSL_DEVICE void group_commit() { SSL_HOPPER(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");) }
template <int N> SSL_DEVICE void group_wait() {
  SSL_HOPPER(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");)
}

#define SSL_LIST_32                                                                                                          \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SSL_LIST_64                                                                                                          \
  SSL_LIST_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"    \
              "%58,%59,%60,%61,%62,%63"
#define SSL_LIST_128                                                                                                         \
  SSL_LIST_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,"    \
              "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,"    \
              "%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SSL_D_8(k)                                                                                                           \
  "+f"(d[k]), "+f"(d[k + 1]), "+f"(d[k + 2]), "+f"(d[k + 3]), "+f"(d[k + 4]), "+f"(d[k + 5]), "+f"(d[k + 6]), "+f"(d[k + 7])
#define SSL_D_32(k) SSL_D_8(k), SSL_D_8(k + 8), SSL_D_8(k + 16), SSL_D_8(k + 24)
#define SSL_D_64(k) SSL_D_32(k), SSL_D_32(k + 32)
#define SSL_D_128(k) SSL_D_64(k), SSL_D_64(k + 64)

#define SSL_NEW_8(k)                                                                                                         \
  "=f"(d[k]), "=f"(d[k + 1]), "=f"(d[k + 2]), "=f"(d[k + 3]), "=f"(d[k + 4]), "=f"(d[k + 5]), "=f"(d[k + 6]), "=f"(d[k + 7])
#define SSL_NEW_32(k) SSL_NEW_8(k), SSL_NEW_8(k + 8), SSL_NEW_8(k + 16), SSL_NEW_8(k + 24)
#define SSL_NEW_64(k) SSL_NEW_32(k), SSL_NEW_32(k + 32)
#define SSL_NEW_128(k) SSL_NEW_64(k), SSL_NEW_64(k + 64)

#define SSL_GROUP_WAIT(COUNT)                                                                                                \
  template <int N> SSL_DEVICE void group_wait(float (&d)[COUNT]) {                                                           \
    SSL_HOPPER(asm volatile("wgmma.wait_group.sync.aligned %" #COUNT ";" : SSL_D_##COUNT(0) : "n"(N) : "memory");)           \
  }
SSL_GROUP_WAIT(32)
SSL_GROUP_WAIT(64)
SSL_GROUP_WAIT(128)

// FIRST: d = a b, and whatever d held is forgotten. Not a flag of the instruction alone: an assembler that sees registers of a
// product made by anything else while products are under way runs them one after the other.
// p0 .. p5: the operands' numbers that follow those of d.
#define SSL_GROUP_PRODUCT(N, COUNT, p0, p1, p2, p3, p4, p5)                                                                  \
  template <bool TRANSPOSED, bool FIRST>                                                                                     \
  SSL_DEVICE void group_multiply(float (&d)[COUNT], uint64_t a, uint64_t b) {                                                \
    if constexpr (FIRST) {                                                                                                   \
      SSL_HOPPER(asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" SSL_LIST_##COUNT "}, " p0 ", " p1   \
                              ", 0, 1, 1, 0, " p2 ";" : SSL_NEW_##COUNT(0) : "l"(a), "l"(b), "n"(int(TRANSPOSED)));)         \
    } else {                                                                                                                 \
      SSL_HOPPER(asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" SSL_LIST_##COUNT "}, " p0 ", " p1   \
                              ", 1, 1, 1, 0, " p2 ";" : SSL_D_##COUNT(0) : "l"(a), "l"(b), "n"(int(TRANSPOSED)));)           \
    }                                                                                                                        \
  }                                                                                                                          \
  template <bool TRANSPOSED>                                                                                                 \
  SSL_DEVICE void group_multiply(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b) {                                    \
    SSL_HOPPER(asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" SSL_LIST_##COUNT "}, {" p0 "," p1     \
                            "," p2 "," p3 "}, " p4 ", 1, 1, 1, " p5 ";"                                                      \
                            : SSL_D_##COUNT(0)                                                                               \
                            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(TRANSPOSED)));)                    \
  }
SSL_GROUP_PRODUCT(64, 32, "%32", "%33", "%34", "%35", "%36", "%37")
SSL_GROUP_PRODUCT(128, 64, "%64", "%65", "%66", "%67", "%68", "%69")
SSL_GROUP_PRODUCT(256, 128, "%128", "%129", "%130", "%131", "%132", "%133")

}  // namespace ssl::cuda
#else
#include "emulated_hopper.h"
#endif

namespace ssl::cuda {

// An operand of a product in shared memory: panels of 128 bytes a row, as operands.h swizzles them, each row eight rows' 1,024
// bytes; a panel starts at a multiple of 1,024 bytes. Along rows (b[k, n] = row n, entry k) the next 16 entries are 32 bytes on.
// TRANSPOSED (b[k, n] = row k, entry n) the next 16 rows are 2,048 bytes on, and entries beyond 64 lie in the next panel,
// `panel_bytes` on.
SSL_DEVICE uint64_t matrix_descriptor(const void* panel, uint32_t panel_bytes) {
  constexpr uint64_t swizzle_of_128_bytes = uint64_t(1) << 62, eight_rows = uint64_t(1024 >> 4) << 32;
  return swizzle_of_128_bytes | eight_rows | uint64_t(panel_bytes >> 4) << 16 | (shared_address(panel) & 0x3ffff) >> 4;
}

}  // namespace ssl::cuda
