"""All randomness of a run is a function of its seed and a position, so that nothing has to be restored to resume it."""

from __future__ import annotations

import hashlib


def seed_of(*key: int | str) -> int:
    """A 32-bit seed for ``(seed, "views", step)`` and the like; unrelated for keys that differ anywhere.

    torch's CPU generator reads 32 bits of its seed, so neighbouring keys must not share those.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "little")
