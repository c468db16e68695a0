// Threads that meet: lanes of a warp, and at the barriers of a block.
#include "block.h"

namespace ssl::emulated {

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
  if (restless() && chance(16)) {
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

}  // namespace ssl::emulated
