// Products of warp groups, done in their order at once or when somebody waits for them.
#include <cstring>
#include <utility>
#include "block.h"

namespace ssl::emulated {
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
