// A multiprocessor on the host: one block at a time, a fibre a thread, in an order drawn from a seed.
//
// What a GPU leaves open is decided by the seed, so that what relies on luck fails under some seed: which warp runs ahead and
// how far, in which order lanes and blocks come, and whether a copy that nobody waits for yet is done at once or at the last
// moment. What a GPU forbids is a Fault: a barrier that not all threads reach, lanes of a warp that meet in different
// instructions, an address that is not aligned, a store past the shared memory that was asked for.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace ssl::emulated {

using Site = std::source_location;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

constexpr size_t SHARED_LIMIT = 227 * 1024;
constexpr size_t PARAMETER_LIMIT = 32764;  // bytes, since CUDA 12.1

// Runs body(argument) as every thread of every block; returns what CUDA would of a launch it refuses.
int run(dim3 grid, unsigned threads, size_t shared, size_t parameters, void (*body)(void*), void* argument);

// Draws all decisions from here on; 0: threads in order, copies at the last moment.
void choose_seed(uint32_t seed);

unsigned char* shared_memory();
uint32_t shared_address(const void* p);
unsigned char* shared_at(uint32_t address);

int lane();

// Waits until all lanes of the mask have come to the same line, then one of them works for all.
using Work = void (*)(const void* const (&in)[32], void* const (&out)[32]);
void together(Work work, unsigned mask, const void* in, void* out, const Site& site);

// Waits until `threads` have come to this barrier; 0: all of the block, by the same line.
void barrier(int number, int threads, bool wait, const Site& site);

// Copies of 16 bytes by this thread into shared memory.
void copy16(void* to, const void* from);
void copy_commit();
void copy_wait(size_t pending);
void fence_async_proxy();
// Was [address, address + 16) written by a copy whose thread has not fenced it for the asynchronous proxy?
bool hidden_from_async_proxy(uint32_t address);

// Does it at once or as late as can be, as the seed has it: at the latest when every thread waits.
void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* arrival);
void arrival_init(uint64_t* arrival, uint32_t count);
void arrival_arrive(uint64_t* arrival, uint32_t bytes_to_come);
void arrival_wait(uint64_t* arrival, uint32_t parity, const Site& site);

// Products of a warp's share of a warp group's matrix.
struct GroupProduct {
  float* d[32];
  uint32_t a[32][4];  // of registers, or
  uint64_t a_rows;    // a descriptor
  uint64_t b_rows;
  int n;
  bool from_registers, transposed, accumulate;
};
void group_fence(const Site& site);
void group_multiply(const GroupProduct& mine, float* d, const uint32_t* a, const Site& site);
void group_commit(const Site& site);
void group_wait(size_t pending, const Site& site);

}  // namespace ssl::emulated
