"""Learning rate and weight decay over a run: functions of the step alone: a resumed run has nothing to restore."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """What the learning rate is multiplied by at ``step`` of ``total``: up linearly to 1, then half a cosine to 0.

    Step ``warmup - 1`` is the first at the full rate (a rate of 0 would waste the first step), and the rate only
    reaches 0 at ``step = total``, which is never taken.
    """
    if step < warmup:
        return (step + 1) / warmup
    return cosine(step - warmup, max(1, total - warmup), 1.0, 0.0)


def cosine(step: int, total: int, start: float, end: float) -> float:
    """From ``start`` at step 0 along half a cosine to ``end`` at ``step = total``, which is never taken."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / total))
