"""Captions that say something else with the same words, or nearly: what a bag of words cannot tell apart.

Made as in NegCLIP and ARO (Yuksekgonul et al. 2022, https://arxiv.org/abs/2210.01936), by rules instead of a parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

from methods.batch import Batch

# Words that carry no meaning of their own here: moving them makes bad English and not another caption
SMALL = set("a an and at by for from in into is of on or over the their to under with without".split())
# Of one of these, another says something else about the same thing
ATTRIBUTES = [
    set(words.split())
    for words in (
        "black white red orange yellow green blue purple brown grey pink golden",
        "small medium large big little huge tiny tall short long",
        "left right up down upwards downwards",
        "north south east west",
        "top bottom upper lower",
        "man woman boy girl person",
        "men women boys girls people",
        "light dark",
        "open closed",
        "old young new",
        "full half empty",
        "one two three four five six seven eight nine ten",
        "happy sad angry",
    )
]
WORD = re.compile(r"\w+")


def swapped_words(caption: str, random: Random) -> str | None:
    """Two words have changed places; None where there are no two different ones that count."""
    words = caption.split()
    places = [k for k, word in enumerate(words) if word.lower().strip(",.:;") not in SMALL]
    pairs = [(i, j) for i in places for j in places if i < j and words[i].lower() != words[j].lower()]
    if not pairs:
        return None
    i, j = random.choice(pairs)
    words[i], words[j] = words[j], words[i]
    return " ".join(words)


def shuffled_words(caption: str, random: Random) -> str | None:
    """All words in another order; None where there is no other."""
    words = caption.split()
    if len({word.lower() for word in words}) < 2:
        return None
    other = words
    while other == words:
        other = random.sample(words, len(words))
    return " ".join(other)


def swapped_attributes(caption: str, random: Random) -> str | None:
    """Two attributes of a kind (colours, sizes, sides ...) have changed places, or the only one is another of its kind.

    None where there is none.
    """
    found = [(m, kind) for m in WORD.finditer(caption) for kind in ATTRIBUTES if m[0].lower() in kind]
    if not found:
        return None
    match, kind = random.choice(found)
    partners = [m for m, its in found if its is kind and m[0].lower() != match[0].lower()]
    if not partners:
        other = random.choice(sorted(kind - {match[0].lower()}))
        return caption[: match.start()] + other + caption[match.end() :]
    first, second = sorted((match, random.choice(partners)), key=lambda m: m.start())
    between = caption[first.end() : second.start()]
    return caption[: first.start()] + second[0] + between + first[0] + caption[second.end() :]


VERSIONS = {"order": swapped_words, "shuffle": shuffled_words, "attribute": swapped_attributes}


def with_hard_negatives(
    describe: Callable[[list[str]], Tensor], batch: Batch, kinds: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Features of the captions, and of a version of each, of one of the kinds at random; zeros where there is none."""
    chosen = [_version(caption, kinds, Random(s)) for caption, s in zip(batch.captions, batch.seeds, strict=True)]
    rows = torch.tensor([k for k, version in enumerate(chosen) if version is not None], dtype=torch.int64)
    features = describe([*batch.captions, *[version for version in chosen if version is not None]])
    own, others = features.split([len(chosen), len(rows)])
    return own, torch.zeros_like(own).index_copy(0, rows.to(own.device), others)


def _version(caption: str, kinds: Sequence[str], random: Random) -> str | None:
    versions = [VERSIONS[kind](caption, random) for kind in kinds]
    return random.choice([version for version in versions if version is not None] or [None])
