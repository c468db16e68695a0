// Every tile size of the CUDA kernels, in one table, with its reason.
#pragma once
#include "api.h"
#include "forward_hopper.h"
#include "streaming_hopper.h"
#include "weighing.h"
#include "weighing_hopper.h"

namespace ssl::cuda {

// All fit the 99 KiB of shared memory of sm_86, sm_89 and sm_120 and spill nowhere (the tests hold the compiler to it). None was
// timed yet, so the reasons are counts:
//  * four warps of 16 rows: two blocks then share a multiprocessor (three where registers allow), one's exponentials under another's
//    products;
//  * 64 columns while the result leaves the registers (32 a thread for the tile, 64 for a result 128 wide), 32 beyond;
//  * two slots where a slot is a whole tile, three where it is a panel and the copies are a quarter of that;
//  * a result wider than 256 (128 for two pieces) is cut, and the tile computed once for every piece.
//                          warps MT  BN   BD  whole stages blocks
using HalfNarrow = Cut<Half,      4, 1, 64,  64, true,  2, 3>;
using HalfMiddle = Cut<Half,      4, 1, 64, 128, true,  2, 2>;
using HalfWide = Cut<Half,        4, 1, 32, 256, true,  2, 2>;
using HalfStreamed = Cut<Half,    4, 1, 32, 256, false, 3, 2>;
using SplitNarrow = Cut<Split,    4, 1, 64,  64, true,  2, 2>;
using SplitMiddle = Cut<Split,    4, 1, 32, 128, true,  2, 2>;
using SplitStreamed = Cut<Split,  4, 1, 32, 128, false, 3, 2>;
using DoubleStreamed = Cut<Double, 4, 1, 32, 64, false, 2, 2>;

// On Hopper, while a result of 64 rows fits the registers of a warp group, two groups a block and one block a multiprocessor:
// 128 columns a product while the result leaves the registers, and as many slots as fit its 227 KiB.
//                               width  BN stages
using HopperHalfNarrow = HopperCut<Half, 64, 128, 4>;
using HopperHalfMiddle = HopperCut<Half, 128, 128, 3>;
using HopperHalfWide = HopperCut<Half, 256, 64, 4>;
using HopperSplitNarrow = HopperCut<Split, 64, 64, 4>;
using HopperSplitMiddle = HopperCut<Split, 128, 64, 3>;

// Rows up to 256 wide are padded to 64, 128 or 256, others to a multiple of 64 (padded_width in Python).
//
// Calls f.operator()<Cut>() with the cut of a weighing sweep. By architecture only as far as Hopper's own: otherwise the same
// bits on every GPU.
template <class F> auto with_weighing_cut(Operands operands, int width, int arch, F&& f) {
  const bool hopper = arch == 90;
  switch (operands) {
    case Operands::half:
      if (width <= 64) return hopper ? f.template operator()<HopperHalfNarrow>() : f.template operator()<HalfNarrow>();
      if (width <= 128) return hopper ? f.template operator()<HopperHalfMiddle>() : f.template operator()<HalfMiddle>();
      if (width <= 256) return hopper ? f.template operator()<HopperHalfWide>() : f.template operator()<HalfWide>();
      return f.template operator()<HalfStreamed>();
    case Operands::split:
      if (width <= 64) return hopper ? f.template operator()<HopperSplitNarrow>() : f.template operator()<SplitNarrow>();
      if (width <= 128) return hopper ? f.template operator()<HopperSplitMiddle>() : f.template operator()<SplitMiddle>();
      return f.template operator()<SplitStreamed>();
    default: return f.template operator()<DoubleStreamed>();
  }
}

// G kept instead of weighed with: no result in the registers either, so larger tiles.
using EntriesCut = Cut<Half, 4, 2, 64, 0, false, 3, 2>;
using SplitEntriesCut = Cut<Split, 4, 2, 32, 0, false, 2, 2>;
// 128 x 256 entries use what is fetched for them 85 times a byte, squares of 128 64 times; two pieces are three products of what was
// fetched once (96), and as many columns of them would leave room for two slots.
using HopperStreamed = HopperStreamedCut<Half, 256, 4>;
using HopperSplitStreamed = HopperStreamedCut<Split, 128, 3>;

// The same of a sweep without a result.
template <class F> auto with_resultless_cut(Operands operands, int width, int arch, F&& f) {
  if (arch == 90 && operands == Operands::half && width > 256) return f.template operator()<HopperStreamed>();
  if (arch == 90 && operands == Operands::split && width > 128) return f.template operator()<HopperSplitStreamed>();
  return with_weighing_cut(operands, width, arch, [&]<class Widest>() { return f.template operator()<typename Widest::WithoutResult>(); });
}

// Launches a weighing sweep by its rule, with a result or for what the rule itself stores. Whole: rows of float16 too wide for a
// block to receive all of theirs are somebody else's, who keeps the weights.
enum class Result { none, whole, cut };
template <template <class> class Rule, Result RESULT, class Call> int launch_sweep(const Call& call, void* stream) {
  const Matrix& m = call.matrix;
  auto start = [&]<class Cut>() -> int {
    if constexpr (RESULT == Result::whole && !Cut::WHOLE && !std::is_same_v<typename Cut::O, Double>) return cudaErrorInvalidValue;
    else return Cut::template launch<Rule<Cut>>(call, stream);
  };
  if constexpr (RESULT == Result::none) return with_resultless_cut(m.operands, m.width, m.arch, start);
  else return with_weighing_cut(m.operands, m.width, m.arch, start);
}

// Launches one whose rule keeps the weights.
template <template <class> class Rule, class Call> int launch_keeping(const Call& call, void* stream) {
  const bool hopper = call.matrix.arch == 90;
  if (call.matrix.operands == Operands::split)
    return hopper ? HopperSplitStreamed::launch<Rule<HopperSplitStreamed>>(call, stream)
                  : SplitEntriesCut::launch<Rule<SplitEntriesCut>>(call, stream);
  return hopper ? HopperStreamed::launch<Rule<HopperStreamed>>(call, stream) : EntriesCut::launch<Rule<EntriesCut>>(call, stream);
}

// The forward sweep has no result to keep in registers: a warp takes 32 rows, so that a column's operands serve two products.
// WHOLE: a block's rows stay in shared memory; streamed, both sides come by panels, and more columns make up for it.
template <class Operands, int WARPS_, int MT_, int BN_, bool WHOLE_, int STAGES_, int BLOCKS_> struct ForwardCut {
  using O = Operands;
  static constexpr int WARPS = WARPS_, MT = MT_, BM = WARPS_ * MT_ * 16, BN = BN_, STAGES = STAGES_, BLOCKS = BLOCKS_;
  static constexpr bool WHOLE = WHOLE_;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int PANEL = panel_width<typename O::Element>;
  static constexpr int X_PANEL = O::PIECES * BM * PANEL_BYTES, Y_PANEL = O::PIECES * BN * PANEL_BYTES;
  static constexpr int SLOT = Y_PANEL + (WHOLE ? 0 : X_PANEL);
  static constexpr int COLUMNS_FOUND = 2 * WARPS * 2 * BN * int(sizeof(typename O::Real));  // two tiles of Sums::Found
  static constexpr size_t shared(int width) {
    return COLUMNS_FOUND + (WHOLE ? width / PANEL * size_t(X_PANEL) : 0) + STAGES * size_t(SLOT);
  }
};
//                                       warps MT  BN  whole stages blocks
using ForwardHalf = ForwardCut<Half,          4, 2,  64, true,  3, 2>;  // up to 256 wide: 92 KiB
using ForwardHalfStreamed = ForwardCut<Half,  4, 2, 128, false, 2, 2>;
using ForwardSplit = ForwardCut<Split,        4, 2,  32, true,  2, 2>;  // up to 128 wide: 82 KiB
using ForwardSplitStreamed = ForwardCut<Split, 4, 2, 32, false, 2, 2>;
using ForwardDouble = ForwardCut<Double,      4, 1,  32, false, 3, 2>;

// On Hopper rows up to 256 wide stay, those of two blocks; wider ones are streamed. 128 columns are the fewest at which shared
// memory keeps up with the products of two groups, 256 use what is streamed as above; two pieces are three products of what was
// read once.
//                                          width  BN stages
using HopperForwardHalf64 = HopperForwardCut<Half, 64, 128, 6>;
using HopperForwardHalf128 = HopperForwardCut<Half, 128, 128, 6>;
using HopperForwardHalf256 = HopperForwardCut<Half, 256, 128, 4>;
using HopperForwardHalfStreamed = HopperForwardCut<Half, 0, 256, 4>;
using HopperForwardSplit64 = HopperForwardCut<Split, 64, 128, 4>;
using HopperForwardSplitStreamed = HopperForwardCut<Split, 0, 128, 3>;

template <class F> auto with_forward_cut(Operands operands, int width, int arch, F&& f) {
  const bool hopper = arch == 90;
  switch (operands) {
    case Operands::half:
      if (hopper && width <= 64) return f.template operator()<HopperForwardHalf64>();
      if (hopper && width <= 128) return f.template operator()<HopperForwardHalf128>();
      if (hopper && width <= 256) return f.template operator()<HopperForwardHalf256>();
      if (hopper) return f.template operator()<HopperForwardHalfStreamed>();
      return width <= 256 ? f.template operator()<ForwardHalf>() : f.template operator()<ForwardHalfStreamed>();
    case Operands::split:
      if (hopper && width <= 64) return f.template operator()<HopperForwardSplit64>();
      if (hopper) return f.template operator()<HopperForwardSplitStreamed>();
      return width <= 128 ? f.template operator()<ForwardSplit>() : f.template operator()<ForwardSplitStreamed>();
    default: return f.template operator()<ForwardDouble>();
  }
}

}  // namespace ssl::cuda
