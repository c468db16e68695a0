#include "machine.h"
#include <sys/mman.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#ifndef __x86_64__
#error "the emulation switches its fibres in x86-64 assembly"
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Saves what a call must not change, and goes on where `to` was left.
extern "C" void ssl_switch_fibre(void** from, void* to);
asm(R"(
.text
.globl ssl_switch_fibre
.type ssl_switch_fibre, @function
ssl_switch_fibre:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ssl_switch_fibre, .-ssl_switch_fibre
)");

namespace ssl::emulated {
namespace {

constexpr size_t STACK = 256 * 1024, MAX_THREADS = 1024, GUARD = 4096;

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

std::mutex running;
uint32_t seed = 0;
std::mt19937 random_source;
enum class Copies { late, early, either } copies = Copies::late;
bool restless = false;  // warps change in the middle of everything, instead of running ahead as far as they can

char* stacks() {
  static char* const memory = static_cast<char*>(mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED) throw Fault("no memory for the stacks of 1,024 threads");
  return memory;
}
alignas(1024) unsigned char arena[SHARED_LIMIT + GUARD];
size_t arena_size = 0;

Block* block = nullptr;
void (*body)(void*);
void* argument;

bool chance(uint32_t of) { return seed && random_source() % of == 0; }
bool now() { return copies == Copies::early || (copies == Copies::either && random_source() % 2); }

// ---------------------------------------------------------------------------------------------------------- scheduling
void go_to(Thread& next) {
  Thread* me = block->current;
  block->current = &next;
  threadIdx = dim3(unsigned(next.number));
  ssl_switch_fibre(me ? &me->stack_pointer : &block->scheduler, next.stack_pointer);
}
void to_scheduler() {
  Thread* me = block->current;
  block->current = nullptr;
  ssl_switch_fibre(&me->stack_pointer, block->scheduler);
}
Warp& warp_of(const Thread& t) { return block->warps[t.number / 32]; }
Thread& lane_of(const Thread& t, int lane) { return block->threads[t.number / 32 * 32 + lane]; }

// Lets other lanes of the warp come to where this one waits.
void wait_in_warp() {
  Thread& me = *block->current;
  const Warp& warp = warp_of(me);
  for (int k = 0; k < warp.lanes; ++k) {
    Thread& other = lane_of(me, warp.order[k]);
    if (other.state == State::ready) return go_to(other);
  }
  to_scheduler();
}

void shuffle_warps() {
  if (seed) std::shuffle(block->order.begin(), block->order.end(), random_source);
}

bool arrived(const Thread& t) {
  const auto found = block->arrivals.find(t.arrival);
  return found != block->arrivals.end() && (found->second.phase & 1) != t.parity;
}

Thread* next_ready() {
  for (const int w : block->order) {
    Warp& warp = block->warps[w];
    if (seed && chance(4)) std::shuffle(warp.order, warp.order + warp.lanes, random_source);
    for (int k = 0; k < warp.lanes; ++k) {
      Thread& t = block->threads[w * 32 + warp.order[k]];
      if (t.state == State::polling && arrived(t)) t.state = State::ready;
      if (t.state == State::ready) return &t;
    }
  }
  return nullptr;
}

void settle(Arrival& a) {
  if (a.pending == 0 && a.bytes == 0) {
    ++a.phase;
    a.pending = a.count;
  }
}
Arrival& arrival_at(uint64_t* at) {
  const auto found = block->arrivals.find(at);
  if (found == block->arrivals.end()) fault("an arrival barrier is used before it is initialised");
  return found->second;
}
void complete(const Bulk& b) {
  memcpy(b.copy.to, b.copy.from, b.bytes);
  Arrival& a = arrival_at(b.arrival);
  a.bytes -= b.bytes;
  settle(a);
}
bool complete_one() {
  if (block->bulk.empty()) return false;
  const size_t which = seed ? random_source() % block->bulk.size() : 0;
  const Bulk b = block->bulk[which];
  block->bulk.erase(block->bulk.begin() + long(which));
  complete(b);
  return true;
}

bool same(const Site& a, const Site& b) { return a.line() == b.line() && a.column() == b.column(); }

std::string where(const Site& site) {
  const char* slash = strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

std::string who_waits() {
  std::map<std::string, int> where_how_many;
  for (const Thread& t : block->threads) {
    switch (t.state) {
      case State::done: ++where_how_many["have ended"]; break;
      case State::in_warp: ++where_how_many["wait for their warp at " + where(t.site)]; break;
      case State::at_barrier: ++where_how_many["wait at a barrier at " + where(t.site)]; break;
      case State::polling: ++where_how_many["wait for an arrival at " + where(t.site)]; break;
      case State::ready: break;
    }
  }
  std::string text;
  for (const auto& [what, count] : where_how_many)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " threads " + what;
  return text;
}

void entry() {
  try {
    body(argument);
    block->current->state = State::done;
  } catch (const std::exception& e) {
    block->failure = e.what();
  }
  to_scheduler();
}

void reset(Thread& t, int number) {
  t = Thread{};
  t.number = number;
  // As if it had called ssl_switch_fibre from a function that was called by nobody
  auto* top = reinterpret_cast<void**>(stacks() + (size_t(number) + 1) * STACK) - 1;  // as after a call: 8 mod 16
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&entry);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  t.stack_pointer = top;
}

void run_block(unsigned threads) {
  Block b;
  b.threads.resize(threads);
  for (unsigned t = 0; t < threads; ++t) reset(b.threads[t], int(t));
  b.warps.resize((threads + 31) / 32);
  for (size_t w = 0; w < b.warps.size(); ++w) {
    b.order.push_back(int(w));
    b.warps[w].lanes = int(std::min<size_t>(32, threads - 32 * w));
    for (int k = 0; k < 32; ++k) b.warps[w].order[k] = k;
  }
  b.writer.resize(SHARED_LIMIT / 16);
  b.current = nullptr;
  block = &b;
  memset(arena, 0xff, arena_size + GUARD);
  shuffle_warps();
  for (;;) {
    if (copies == Copies::either && chance(8)) complete_one();
    if (Thread* next = next_ready()) {
      go_to(*next);
      if (!b.failure.empty()) throw Fault(b.failure);
    } else if (!complete_one()) {
      break;
    }
  }
  if (std::any_of(b.threads.begin(), b.threads.end(), [](const Thread& t) { return t.state != State::done; }))
    fault("block (%u, %u, %u) is stuck: %s", blockIdx.x, blockIdx.y, blockIdx.z, who_waits().c_str());
  for (size_t w = 0; w + 3 < b.warps.size(); w += 4)
    for (size_t k = 1; k < 4; ++k)
      if (b.warps[w].products != b.warps[w + k].products)
        fault("the warps of a group took part in different numbers of its products: %zu and %zu", b.warps[w].products,
              b.warps[w + k].products);
  for (size_t k = 0; k < GUARD; ++k)
    if (arena[arena_size + k] != 0xff) fault("a store %zu bytes past the %zu of shared memory", k, arena_size);
}

// Runs all blocks, and leaves nothing behind if one fails.
struct Launch {
  std::unique_lock<std::mutex> alone{running};
  ~Launch() { block = nullptr; }
};

}  // namespace

void fault(const char* format, ...) {
  char text[1024];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw Fault(text);
}

void choose_seed(uint32_t chosen) {
  seed = chosen;
  random_source.seed(chosen);
  copies = seed % 3 == 0 ? Copies::late : seed % 3 == 1 ? Copies::early : Copies::either;
  restless = seed / 3 % 2;
}

int run(dim3 grid, unsigned threads, size_t shared, size_t parameters, void (*kernel)(void*), void* its_argument) {
  constexpr int invalid_value = 1, invalid_configuration = 9;
  if (shared > SHARED_LIMIT || parameters > PARAMETER_LIMIT) return invalid_value;
  if (threads == 0 || threads > MAX_THREADS || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff)
    return invalid_configuration;
  const Launch launch;
  body = kernel;
  argument = its_argument;
  arena_size = (shared + 15) / 16 * 16;
  gridDim = grid;
  blockDim = dim3(threads);
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  for (size_t k = 0; k < blocks.size(); ++k) blocks[k] = k;
  if (seed) std::shuffle(blocks.begin(), blocks.end(), random_source);
  for (const uint64_t k : blocks) {
    blockIdx = dim3(unsigned(k % grid.x), unsigned(k / grid.x % grid.y), unsigned(k / grid.x / grid.y));
    run_block(threads);
  }
  return 0;
}

// ------------------------------------------------------------------------------------------------- threads among others
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

int lane() { return block->current->number % 32; }

void together(Work work, unsigned mask, const void* in, void* out, const Site& site) {
  Thread& me = *block->current;
  Warp& warp = warp_of(me);
  if (!(mask >> (me.number % 32) & 1)) fault("%s: a lane that its mask does not name", where(site).c_str());
  me.work = work;
  me.mask = mask;
  me.in = in;
  me.out = out;
  me.site = site;
  me.state = State::in_warp;
  bool all = true;
  for (int k = 0; k < 32 && all; ++k) {
    if (!(mask >> k & 1)) continue;
    if (k >= warp.lanes) fault("%s: the mask names lane %d of a warp of %d", where(site).c_str(), k, warp.lanes);
    const Thread& other = lane_of(me, k);
    if (other.state == State::done) fault("%s: lane %d, which the mask names, has ended", where(site).c_str(), k);
    all = other.state == State::in_warp;
    if (all && (other.work != work || other.mask != mask || !same(other.site, site)))
      fault("lanes of one warp meet at %s and at %s", where(site).c_str(), where(other.site).c_str());
  }
  if (!all) return wait_in_warp();
  const void* ins[32] = {};
  void* outs[32] = {};
  for (int k = 0; k < 32; ++k)
    if (mask >> k & 1) {
      ins[k] = lane_of(me, k).in;
      outs[k] = lane_of(me, k).out;
    }
  work(ins, outs);
  for (int k = 0; k < 32; ++k)
    if (mask >> k & 1) lane_of(me, k).state = State::ready;
  if (restless && chance(16)) {
    shuffle_warps();
    to_scheduler();
  }
}

void barrier(int number, int threads, bool wait, const Site& site) {
  Thread& me = *block->current;
  auto& [come, expected] = block->barriers[number];
  const int all = threads ? threads : int(block->threads.size());
  if (come && expected != all)
    fault("%s: barrier %d of %d threads, of %d elsewhere", where(site).c_str(), number, all, expected);
  expected = all;
  me.barrier = number;
  me.site = site;
  if (threads == 0)
    for (const Thread& t : block->threads)
      if (t.state == State::at_barrier && t.barrier == number && !same(t.site, site))
        fault("threads of one block meet at the barriers of %s and %s", where(site).c_str(), where(t.site).c_str());
  if (wait) me.state = State::at_barrier;
  if (++come == expected) {
    come = 0;
    for (Thread& t : block->threads)
      if (t.state == State::at_barrier && t.barrier == number) t.state = State::ready;
    shuffle_warps();
  }
  if (wait) to_scheduler();
}

// -------------------------------------------------------------------------------------------------------------- copies
namespace {
void perform(Thread& t, const Copy& c) {
  memcpy(c.to, c.from, 16);
  block->writer[(shared_address(c.to) - 1024) / 16] = {t.number + 1, t.fences};
}
}  // namespace

void copy16(void* to, const void* from) {
  const uint32_t at = shared_address(to);
  if (at % 16 || reinterpret_cast<uintptr_t>(from) % 16) fault("an asynchronous copy of 16 bytes that are not aligned");
  Thread& me = *block->current;
  if (now())
    perform(me, {to, from});
  else
    me.open.push_back({to, from});
}
void copy_commit() {
  Thread& me = *block->current;
  me.groups.push_back(std::exchange(me.open, {}));
}
void copy_wait(size_t pending) {
  Thread& me = *block->current;
  for (; me.groups.size() > pending; me.groups.pop_front())
    for (const Copy& c : me.groups.front()) perform(me, c);
}
void fence_async_proxy() { ++block->current->fences; }
bool hidden_from_async_proxy(uint32_t address) {
  const auto [thread, fences] = block->writer[(address - 1024) / 16];
  return thread && block->threads[size_t(thread) - 1].fences == fences;
}

void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* arrival) {
  const uint32_t at = shared_address(to);
  if (at % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16)
    fault("a bulk copy of %u bytes at addresses that are not all multiples of 16", bytes);
  if (bytes) shared_at(at + bytes - 1);
  arrival_at(arrival);
  const Bulk b{{to, from}, bytes, arrival};
  if (now())
    complete(b);
  else
    block->bulk.push_back(b);
}
void arrival_init(uint64_t* arrival, uint32_t count) {
  if (shared_address(arrival) % 8) fault("an arrival barrier that is not aligned");
  block->arrivals[arrival] = {count, count, 0, 0};
}
void arrival_arrive(uint64_t* arrival, uint32_t bytes_to_come) {
  Arrival& a = arrival_at(arrival);
  if (a.pending == 0) fault("more arrivals at a barrier than the %u it was made for", a.count);
  a.bytes += bytes_to_come;
  --a.pending;
  settle(a);
}
void arrival_wait(uint64_t* arrival, uint32_t parity, const Site& site) {
  Thread& me = *block->current;
  arrival_at(arrival);
  me.arrival = arrival;
  me.parity = parity;
  me.site = site;
  if (arrived(me) && !(restless && chance(4))) return;
  me.state = State::polling;
  to_scheduler();
}

// ------------------------------------------------------------------------------------------------ products of warp groups
namespace {
float half_at(uint32_t address) {
  if (hidden_from_async_proxy(address))
    fault("a product reads shared memory that a copy wrote and nobody fenced for the asynchronous proxy");
  _Float16 h;
  memcpy(&h, shared_at(address), 2);
  return float(h);
}
uint32_t field(uint64_t descriptor, int from) { return uint32_t(descriptor >> from & 0x3fff) << 4; }

// Element (row, k) of an operand whose rows of 128 bytes hold k, or (k, row) where they hold rows: the swizzle of 128 bytes.
float element(uint64_t descriptor, int row, int k, bool transposed) {
  if (descriptor >> 62 != 1) fault("a product of an operand that is not swizzled by 128 bytes");
  const uint32_t start = field(descriptor, 0), leading = field(descriptor, 16), stride = field(descriptor, 32);
  const uint32_t at = transposed ? start + row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2
                                 : start + row / 8 * stride + row % 8 * 128 + k * 2;
  return half_at(at ^ (at >> 7 & 7) << 4);
}

void multiply(const GroupProduct& p, int warp) {
  float a[16][16], b[256][16];
  for (int k = 0; k < 16; ++k) {
    for (int r = 0; r < 16; ++r) {
      if (!p.from_registers) {
        a[r][k] = element(p.a_rows, warp % 4 * 16 + r, k, false);
        continue;
      }
      _Float16 h[2];
      memcpy(h, &p.a[r % 8 * 4 + k % 8 / 2][r / 8 + k / 8 * 2], 4);
      a[r][k] = float(h[k % 2]);
    }
    for (int n = 0; n < p.n; ++n) b[n][k] = element(p.b_rows, n, k, p.transposed);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int n = 0; n < p.n; n += 8)
      for (int e = 0; e < 4; ++e) {
        float& d = p.d[lane][n / 2 + e];
        const float *row = a[lane / 4 + e / 2 * 8], *column = b[n + lane % 4 * 2 + e % 2];
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
        d = p.accumulate ? d + sum : sum;
      }
}
Warp& my_warp() { return warp_of(*block->current); }
int my_warp_number() { return block->current->number / 32; }
constexpr unsigned ALL = 0xffffffffu;
}  // namespace

void group_fence(const Site& site) {
  together([](auto&, auto&) { my_warp().fenced = true; }, ALL, nullptr, nullptr, site);
}

void group_multiply(const GroupProduct& shape, float* d, const uint32_t* a, const Site& site) {
  struct In {
    const GroupProduct* shape;
    const uint32_t* a;
  } in{&shape, a};
  together(
      [](const void* const(&ins)[32], void* const(&outs)[32]) {
        const GroupProduct& first = *static_cast<const In*>(ins[0])->shape;
        GroupProduct p = first;
        for (int k = 0; k < 32; ++k) {
          const In& in = *static_cast<const In*>(ins[k]);
          if (in.shape->a_rows != p.a_rows || in.shape->b_rows != p.b_rows || in.shape->accumulate != p.accumulate)
            fault("lanes of one warp ask for different products");
          p.d[k] = static_cast<float*>(outs[k]);
          if (in.a) memcpy(p.a[k], in.a, sizeof p.a[k]);
        }
        Warp& warp = my_warp();
        if (!warp.fenced) fault("a product of a warp group without a fence before it");
        ++warp.products;
        if (warp.open.empty() && warp.groups.empty() && now())  // in their order, whenever that is
          multiply(p, my_warp_number());
        else
          warp.open.push_back(p);
      },
      ALL, &in, d, site);
}

void group_commit(const Site& site) {
  together([](auto&, auto&) { my_warp().groups.push_back(std::exchange(my_warp().open, {})); }, ALL, nullptr, nullptr, site);
}

void group_wait(size_t pending, const Site& site) {
  together(
      [](const void* const(&ins)[32], void* const(&)[32]) {
        Warp& warp = my_warp();
        const size_t pending = *static_cast<const size_t*>(ins[0]);
        for (; warp.groups.size() > pending; warp.groups.pop_front())
          for (const GroupProduct& p : warp.groups.front()) multiply(p, my_warp_number());
        warp.fenced = false;
      },
      ALL, &pending, nullptr, site);
}

}  // namespace ssl::emulated

extern "C" __attribute__((visibility("default"))) void ssl_emulated_seed(uint32_t seed) { ssl::emulated::choose_seed(seed); }
