// What Python needs to know of the table of tiles, to make its grids.
#include "tiles.h"

namespace ssl::cuda {

Tile tile(Kernel kernel, Operands operands, int width, int arch) {
  if (kernel == Kernel::forward || kernel == Kernel::cross)
    return with_forward_cut(operands, width, arch, [&]<class Cut>() { return Tile{Cut::BM, Cut::BN, width, Cut::BLOCKS == 1}; });
  if (kernel == Kernel::value)
    return with_resultless_cut(operands, width, arch, [&]<class Cut>() { return Tile{Cut::BM, Cut::BN, width, Cut::BLOCKS == 1}; });
  return with_weighing_cut(operands, width, arch, [&]<class Cut>() {
    return Tile{Cut::BM, Cut::BN, Cut::BD < width ? Cut::BD : width, Cut::BLOCKS == 1};
  });
}

}  // namespace ssl::cuda
