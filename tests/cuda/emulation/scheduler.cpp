// Who runs: fibres, the order of lanes, warps and blocks, and what the seed decides.
#include <sys/mman.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include "block.h"

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

Block* block = nullptr;

namespace {

constexpr size_t STACK = 256 * 1024, MAX_THREADS = 1024;

std::mutex running;
uint32_t seed = 0;
std::mt19937 random_source;
enum class Copies { late, early, either } copies = Copies::late;
bool warps_change = false;
void (*body)(void*);
void* argument;

char* stacks() {
  static char* const memory = static_cast<char*>(mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED) throw Fault("no memory for the stacks of 1,024 threads");
  return memory;
}

void go_to(Thread& next) {
  Thread* me = block->current;
  block->current = &next;
  threadIdx = dim3(unsigned(next.number));
  ssl_switch_fibre(me ? &me->stack_pointer : &block->scheduler, next.stack_pointer);
}

}  // namespace

uint32_t draw(uint32_t of) { return seed ? uint32_t(random_source() % of) : 0; }
bool chance(uint32_t of) { return seed && draw(of) == 0; }
bool now() { return copies == Copies::early || (copies == Copies::either && draw(2)); }
bool restless() { return warps_change; }

void to_scheduler() {
  Thread* me = block->current;
  block->current = nullptr;
  ssl_switch_fibre(&me->stack_pointer, block->scheduler);
}

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

std::string where(const Site& site) {
  const char* slash = strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

namespace {

Thread* next_ready() {
  for (const int w : block->order) {
    Warp& warp = block->warps[w];
    if (chance(4)) std::shuffle(warp.order, warp.order + warp.lanes, random_source);
    for (int k = 0; k < warp.lanes; ++k) {
      Thread& t = block->threads[w * 32 + warp.order[k]];
      if (t.state == State::polling && arrived(t)) t.state = State::ready;
      if (t.state == State::ready) return &t;
    }
  }
  return nullptr;
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

void run_block(unsigned threads, size_t shared) {
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
  poison_shared(shared);
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
  check_guard();
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
  warps_change = seed / 3 % 2;
}

int run(dim3 grid, unsigned threads, size_t shared, size_t parameters, void (*kernel)(void*), void* its_argument) {
  constexpr int invalid_value = 1, invalid_configuration = 9;
  if (shared > SHARED_LIMIT || parameters > PARAMETER_LIMIT) return invalid_value;
  if (threads == 0 || threads > MAX_THREADS || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff)
    return invalid_configuration;
  const Launch launch;
  body = kernel;
  argument = its_argument;
  gridDim = grid;
  blockDim = dim3(threads);
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  for (size_t k = 0; k < blocks.size(); ++k) blocks[k] = k;
  if (seed) std::shuffle(blocks.begin(), blocks.end(), random_source);
  for (const uint64_t k : blocks) {
    blockIdx = dim3(unsigned(k % grid.x), unsigned(k / grid.x % grid.y), unsigned(k / grid.x / grid.y));
    run_block(threads, shared);
  }
  return 0;
}

}  // namespace ssl::emulated

extern "C" __attribute__((visibility("default"))) void ssl_emulated_seed(uint32_t seed) { ssl::emulated::choose_seed(seed); }
