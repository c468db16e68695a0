"""Every tile size of the Triton backend, in one table, with its reason."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """``BLOCK_K`` of None: the whole width stays on the chip; ``BLOCK_D`` is the width of the backward's result."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int | None
    BLOCK_D: int | None
    STAGES: int
    num_warps: int

    def arguments(self) -> dict[str, int | bool | None]:
        return {**self._asdict(), "num_stages": self.STAGES, "enable_fp_fusion": True}


HALF, SPLIT, DOUBLE = "half", "split", "double"

# kernel, operands, widest padded row this serves -> tile. The first that is wide enough serves.
TABLE: dict[tuple[str, str], list[tuple[int | None, Tile]]] = {
    ("forward", HALF): [
        (128, Tile(128, 64, None, None, 2, 8)),
        (256, Tile(64, 64, None, None, 2, 4)),
        (None, Tile(128, 128, 64, None, 3, 8)),
    ],
    ("forward", SPLIT): [
        (128, Tile(64, 64, None, None, 2, 4)),
        (None, Tile(128, 64, 32, None, 3, 8)),
    ],
    ("forward", DOUBLE): [(None, Tile(32, 32, 16, None, 2, 4))],
    ("backward", HALF): [
        (128, Tile(64, 64, None, None, 2, 4)),
        (256, Tile(64, 64, None, None, 2, 8)),
        (None, Tile(64, 64, 64, 256, 3, 8)),
    ],
    ("backward", SPLIT): [
        (64, Tile(64, 64, None, None, 2, 4)),
        (None, Tile(64, 64, 32, 128, 2, 8)),
    ],
    ("backward", DOUBLE): [(None, Tile(32, 32, 16, 64, 2, 4))],
}


def tile(kernel: str, operands: str, width: int) -> Tile:
    for widest, entry in TABLE[kernel, operands]:
        if widest is None or width <= widest:
            break
    return entry._replace(BLOCK_K=min(entry.BLOCK_K or width, width), BLOCK_D=min(entry.BLOCK_D or width, width))


# The kernels that go by rows hold them whole, about 4,096 entries a program (half as many in float64, which takes twice
# the registers); those that go over one number a row take 4,096.
VECTOR = {"BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": True}


def whole_rows(width: int, operands: str) -> dict[str, int | bool]:
    block = 1 << (width - 1).bit_length()
    entries = 2048 if operands == DOUBLE else 4096
    return {"ROWS": min(32, max(1, entries // block)), "BLOCK_D": block, "num_warps": 4, "enable_fp_fusion": True}


def padded_width(width: int) -> int:
    """Tiles are powers of two up to 256 and multiples of 64 above; 16 is the least depth of a tensor-core product."""
    if width > 256:
        return -(-width // 64) * 64
    return max(16, 1 << (width - 1).bit_length())
