// Asynchronous copies: those that a thread waits for in groups, and those that report to an arrival barrier.
#include <cstring>
#include "block.h"

namespace ssl::emulated {
namespace {

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

void perform(Thread& t, const Copy& c) {
  memcpy(c.to, c.from, 16);
  block->writer[(shared_address(c.to) - 1024) / 16] = {t.number + 1, t.fences};
}

}  // namespace

bool arrived(const Thread& t) {
  const auto found = block->arrivals.find(t.arrival);
  return found != block->arrivals.end() && (found->second.phase & 1) != t.parity;
}

bool complete_one() {
  if (block->bulk.empty()) return false;
  const size_t which = draw(uint32_t(block->bulk.size()));
  const Bulk b = block->bulk[which];
  block->bulk.erase(block->bulk.begin() + long(which));
  complete(b);
  return true;
}

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
  if (arrived(me) && !(restless() && chance(4))) return;
  me.state = State::polling;
  to_scheduler();
}

}  // namespace ssl::emulated
