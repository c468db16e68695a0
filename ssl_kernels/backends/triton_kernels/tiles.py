"""Every tile size of the Triton backend, in one table, with its reason."""

from __future__ import annotations

import math
from typing import NamedTuple

from ssl_kernels.backends.gpu.kernels import DOUBLE, HALF, SPLIT


class Tile(NamedTuple):
    """``BLOCK_K`` of None: the whole width stays on the chip; ``BLOCK_D`` is the width of the backward's result."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int | None
    BLOCK_D: int | None
    STAGES: int
    num_warps: int

    @property
    def alone(self) -> bool:
        return False  # every entry of the table leaves room for two

    def arguments(self) -> dict[str, int | bool | None]:
        return {**self._asdict(), "num_stages": self.STAGES, "enable_fp_fusion": True}


# (kernel, operands) -> [(widest padded row it serves, tile)]; the first that is wide enough serves. All fit 99 KiB of
# shared memory (sm_86, sm_89, sm_120; in the exceptions for 9 and 10 the 227 KiB that these have) and spill nowhere:
# docs/triton-aot.md has the registers of each. None of them was timed yet, so the reasons are counts:
#   * the wider the tile in columns, the fewer bytes a product fetches, and the fuller a tensor-core instruction;
#   * two or more programs on a multiprocessor overlap one's exponentials with the other's products;
#   * rows stay on the chip for the whole sweep while they fit (they then cost no traffic), else both are streamed.
TABLE: dict[tuple[str, str], list[tuple[float, Tile]]] = {
    ("forward", HALF): [
        (128, Tile(128, 64, None, None, 3, 8)),  # two programs of eight warps
        (256, Tile(64, 64, None, None, 2, 4)),  # 128 rows would be half the traffic, but one program alone
        (math.inf, Tile(128, 128, 64, None, 3, 8)),  # as a matrix product
    ],
    ("forward", SPLIT): [
        (128, Tile(64, 64, None, None, 2, 4)),  # two pieces a row: half the rows of HALF
        (math.inf, Tile(128, 64, 32, None, 3, 8)),
    ],
    ("forward", DOUBLE): [(math.inf, Tile(32, 32, 16, None, 2, 4))],  # correct, not tuned
    # two sets: as above, with a second maximum and exponential an entry where a fixed shift does not serve
    ("cross", HALF): [
        (128, Tile(128, 64, None, None, 3, 8)),
        (256, Tile(64, 64, None, None, 2, 4)),
        (math.inf, Tile(128, 64, 64, None, 3, 8)),  # 128 columns would spill
    ],
    ("cross", SPLIT): [
        (128, Tile(64, 64, None, None, 2, 4)),
        (math.inf, Tile(128, 64, 32, None, 3, 8)),
    ],
    ("cross", DOUBLE): [(math.inf, Tile(32, 32, 16, None, 2, 4))],
    ("backward", HALF): [
        (128, Tile(64, 64, None, None, 2, 4)),  # the result takes 64 registers a thread, the tile 32
        (256, Tile(64, 32, None, None, 2, 4)),  # the result takes 128: half the columns
        (math.inf, Tile(64, 64, 64, 256, 3, 8)),  # wider results do not fit: the tile is computed once for every 256
    ],
    ("backward", SPLIT): [
        (128, Tile(64, 32, None, None, 2, 4)),
        (math.inf, Tile(64, 64, 64, 128, 2, 8)),
    ],
    ("backward", DOUBLE): [(math.inf, Tile(32, 32, 16, 64, 2, 4))],
    # as the backward, whose products it has; a maximum and a sum a row come on top
    ("attend", HALF): [
        (128, Tile(64, 64, None, None, 2, 4)),
        (256, Tile(64, 32, None, None, 2, 4)),
        (math.inf, Tile(64, 64, 64, 256, 3, 8)),
    ],
    ("attend", SPLIT): [
        (128, Tile(64, 32, None, None, 2, 4)),
        (math.inf, Tile(64, 64, 64, 128, 2, 8)),
    ],
    ("attend", DOUBLE): [(math.inf, Tile(32, 32, 16, 64, 2, 4))],
    ("softplus", HALF): [
        (128, Tile(64, 64, None, None, 2, 4)),
        (math.inf, Tile(64, 64, 64, 256, 3, 8)),
    ],
    ("softplus", SPLIT): [
        (128, Tile(64, 32, None, None, 2, 4)),
        (math.inf, Tile(64, 64, 64, 128, 2, 8)),
    ],
    ("softplus", DOUBLE): [(math.inf, Tile(32, 32, 16, 64, 2, 4))],
}


# Where one generation wants another tile, mostly because the table's spills there: 8 is everything without Hopper's
# products of warp groups (9) and Blackwell's tensor memory (10), so sm_120 too. By the class's widest row, or for one
# width alone.
EXCEPTIONS: dict[tuple[int, str, str, float], Tile] = {
    (8, "forward", HALF, 128): Tile(64, 64, None, None, 3, 4),  # under triton 3.7
    (8, "forward", SPLIT, 128): Tile(64, 64, None, None, 2, 8),
    (8, "cross", HALF, 128): Tile(64, 64, None, None, 3, 4),
    (8, "cross", SPLIT, 128): Tile(128, 64, 32, None, 3, 8),
    (8, "softplus", HALF, 128): Tile(64, 32, None, None, 2, 4),
    (8, "softplus", HALF, math.inf): Tile(64, 64, 64, 256, 2, 8),
    (8, "softplus", SPLIT, 128): Tile(64, 64, 64, 128, 2, 8),
    (9, "backward", HALF, 512): Tile(64, 32, None, None, 2, 8),  # 132 KiB: whole rows, no tile computed twice
    (10, "backward", HALF, 512): Tile(64, 32, None, None, 2, 8),
    (10, "forward", HALF, 128): Tile(64, 64, None, None, 3, 8),
    (10, "forward", HALF, 256): Tile(128, 64, 64, None, 3, 8),
    (10, "forward", HALF, math.inf): Tile(128, 64, 64, None, 3, 8),
    (10, "forward", SPLIT, 128): Tile(64, 64, 32, None, 3, 4),  # under triton 3.6, and so the next
    (10, "cross", HALF, 128): Tile(64, 64, None, None, 3, 8),
    (10, "cross", HALF, 256): Tile(128, 64, 64, None, 3, 8),
    (10, "cross", SPLIT, 128): Tile(64, 64, 32, None, 3, 4),
    (10, "backward", HALF, 16): Tile(64, 64, None, None, 2, 8),
    (10, "backward", HALF, 256): Tile(64, 64, 64, 256, 3, 8),
    (10, "backward", SPLIT, 128): Tile(64, 32, None, None, 2, 8),
    (10, "attend", HALF, 256): Tile(64, 64, 64, 256, 3, 8),
    (10, "attend", DOUBLE, math.inf): Tile(32, 32, 16, 32, 2, 4),
    (10, "softplus", SPLIT, math.inf): Tile(64, 32, 64, 128, 2, 8),
    (10, "softplus", DOUBLE, math.inf): Tile(32, 32, 16, 32, 2, 4),
}


def tile(kernel: str, operands: str, width: int, arch: int) -> Tile:
    if kernel == "value":  # nothing but products in the registers, as in a sum of exponentials
        kernel = "cross"
    widest, entry = next(row for row in TABLE[kernel, operands] if width <= row[0])
    generation = arch // 10 if arch // 10 in (9, 10) else 8
    for key in (widest, width):
        entry = EXCEPTIONS.get((generation, kernel, operands, key), entry)
    return entry._replace(BLOCK_K=min(entry.BLOCK_K or width, width), BLOCK_D=min(entry.BLOCK_D or width, width))


# The kernels that go by rows hold them whole, about 4,096 entries a program (half as many where an entry takes more
# registers: float64, and float32 in two pieces); those that go over one number a row take 4,096.
VECTOR = {"BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": True}


def whole_rows(width: int, operands: str) -> dict[str, int | bool]:
    block = 1 << (width - 1).bit_length()
    entries = 4096 if operands == HALF else 2048
    return {"ROWS": min(32, max(1, entries // block)), "BLOCK_D": block, "num_warps": 4, "enable_fp_fusion": True}


def rows_of_spans(by_row: dict[str, int | bool], rows: int, spans: int, programs: int) -> dict[str, int | bool]:
    """An eighth of the rows a program, where few rows are put together from many spans of columns, and most of a chip
    that runs so many programs at a time would idle."""
    few = spans > 8 and 4 * rows < by_row["ROWS"] * programs
    return {**by_row, "ROWS": max(1, by_row["ROWS"] // 8)} if few else by_row


def padded_width(width: int) -> int:
    """Tiles are powers of two up to 256 and multiples of 64 above; 16 is the least depth of a tensor-core product."""
    if width > 256:
        return -(-width // 64) * 64
    return max(16, 1 << (width - 1).bit_length())
