// What a block, its warps and its threads are in the middle of, and what the files of this machine ask of each other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>
#include "machine.h"

namespace ssl::emulated {

struct Copy {
  void* to;
  const void* from;
};

enum class State { ready, in_warp, at_barrier, polling, done };

struct Arrival {
  uint32_t count, pending;
  int64_t bytes;
  uint32_t phase;
};

struct Thread {
  void* stack_pointer;
  int number;
  State state;
  Site site;
  // at a barrier
  int barrier;
  // with its warp
  Work work;
  unsigned mask;
  const void* in;
  void* out;
  // copies: those not committed, and groups of those that are
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  uint32_t fences;
  // at an arrival barrier
  uint64_t* arrival;
  uint32_t parity;
};

struct Warp {
  int lanes;
  int order[32];
  bool fenced;
  size_t products;  // of all time: the four warps of a group must agree
  std::vector<GroupProduct> open;
  std::deque<std::vector<GroupProduct>> groups;
};

struct Bulk {
  Copy copy;
  uint32_t bytes;
  uint64_t* arrival;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> order;  // of warps
  std::map<int, std::pair<int, int>> barriers;  // number: arrived, expected
  std::map<uint64_t*, Arrival> arrivals;
  std::vector<Bulk> bulk;
  std::vector<std::pair<int, uint32_t>> writer;  // of 16 bytes of shared memory: thread + 1 and its fences so far
  Thread* current;
  void* scheduler;
  std::string failure;
};

extern Block* block;  // the one that runs
inline Warp& warp_of(const Thread& t) { return block->warps[t.number / 32]; }
inline Thread& lane_of(const Thread& t, int lane) { return block->threads[t.number / 32 * 32 + lane]; }

// scheduler.cpp: what the seed decides, and who runs.
uint32_t draw(uint32_t of);  // a number below; 0 with seed 0
bool chance(uint32_t of);    // one in so many; never with seed 0
bool now();                  // whether a copy that nobody waits for is done at once
bool restless();             // whether warps change in the middle of everything, instead of running ahead as far as they can
void shuffle_warps();
void wait_in_warp();  // lets other lanes of the warp come to where this one waits
void to_scheduler();  // and comes back when this thread is ready

// shared.cpp
void poison_shared(size_t bytes);
void check_guard();

// copies.cpp
bool arrived(const Thread& t);
bool complete_one();  // of the bulk copies; false if there is none

// Where a thread is, for what a Fault says.
std::string where(const Site& site);
inline bool same(const Site& a, const Site& b) { return a.line() == b.line() && a.column() == b.column(); }

}  // namespace ssl::emulated
