from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.batch import Batch
from methods.data import Split
from methods.hard_negatives import (
    ATTRIBUTES,
    VERSIONS,
    shuffled_words,
    swapped_attributes,
    swapped_words,
    with_hard_negatives,
)
from methods.image_text import class_features, compositional_probe, retrieval, zero_shot

WORDS = sorted({"a", "photo", "of", "cat", "dog", "the"}.union(*ATTRIBUTES))


def bag_of_words(captions: Sequence[str]) -> Tensor:
    counts = torch.tensor([[c.lower().split().count(w) for w in WORDS] for c in captions])
    return F.normalize(counts + 1e-3, dim=1)


def in_order(captions: Sequence[str]) -> Tensor:
    """Knows where words stand too."""
    rows = torch.zeros(len(captions), 8 * len(WORDS))
    for row, caption in zip(rows, captions, strict=True):
        for k, word in enumerate(caption.lower().split()):
            row[len(WORDS) * k + WORDS.index(word)] = 1
    return F.normalize(rows, dim=1)


# ---------------------------------------------------------------------------------------------------- hard negatives
def test_two_words_change_places_and_small_ones_stay():
    for seed in range(20):
        assert swapped_words("the cat of a dog", Random(seed)) == "the dog of a cat"
    assert {swapped_words("big red cat", Random(seed)) for seed in range(50)} == {
        "red big cat",
        "cat red big",
        "big cat red",
    }


@pytest.mark.parametrize("caption", ["cat", "", "the cat", "cat cat", "Cat cat of the"])
def test_nothing_to_swap(caption: str):
    assert swapped_words(caption, Random(0)) is None


def test_all_words_are_shuffled_to_another_order():
    for seed in range(20):
        other = shuffled_words("big red cat", Random(seed))
        assert sorted(other.split()) == ["big", "cat", "red"]
        assert other != "big red cat"
    assert shuffled_words("cat Cat", Random(0)) is None


def test_two_attributes_of_a_kind_change_places():
    for seed in range(20):
        assert swapped_attributes("a red cat, a blue dog", Random(seed)) == "a blue cat, a red dog"


def test_a_lone_attribute_becomes_another_of_its_kind():
    others = {swapped_attributes("cat facing left", Random(seed)) for seed in range(50)}
    assert "cat facing right" in others
    assert "cat facing left" not in others
    assert swapped_attributes("a cat", Random(0)) is None
    assert swapped_attributes("up-down arrow", Random(0)) == "down-up arrow"


def test_hard_negatives_stand_in_the_rows_of_their_captions():
    captions = ["red cat", "dog", "blue dog"]
    batch = Batch(captions=captions, seeds=[0, 1, 2])
    own, others = with_hard_negatives(in_order, batch, ("order",))
    assert torch.equal(own, in_order(captions))
    assert torch.equal(others[[0, 2]], in_order(["cat red", "dog blue"]))
    assert not others[1].any()
    assert not with_hard_negatives(in_order, batch, ())[1].any()


def test_hard_negatives_depend_on_the_place_in_the_whole_batch_alone():
    def others(seeds: Sequence[int]) -> Tensor:
        batch = Batch(captions=["big red small blue cat"] * len(seeds), seeds=list(seeds))
        return with_hard_negatives(in_order, batch, tuple(VERSIONS))[1]

    whole = others(range(20))
    assert len(whole.unique(dim=0)) > 5
    assert torch.equal(whole, torch.cat([others(range(8)), others(range(8, 20))]))


# --------------------------------------------------------------------------------------------------------- retrieval
def split_of(captions: Sequence[str], ids: Sequence[int], images: Sequence[int]) -> Split:
    pixels = torch.tensor(images, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Split(pixels, None, tuple(captions), torch.tensor(ids))


def test_retrieval_counts_every_image_and_every_caption_once():
    """The first image stands in two rows, with two captions; the last caption belongs to two images."""
    captions = ["big cat", "small cat", "red dog", "blue dog", "blue dog"]
    split = split_of(captions, [0, 0, 1, 2, 2], [1, 1, 2, 3, 4])
    right = bag_of_words(captions)
    perfect = retrieval(right, bag_of_words, split)
    assert perfect == {f"{a}_r{k}": 100.0 for a in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    wrong = retrieval(right[[2, 2, 0, 3, 4]], bag_of_words, split)  # images of the first two ids exchanged
    assert wrong["image_to_text_r1"] == 50
    assert wrong["text_to_image_r1"] == 25  # of four captions: "blue dog"
    assert wrong["text_to_image_r5"] == 100


def test_retrieval_is_the_plain_count():
    ids = torch.arange(60) % 40
    split = split_of([f"caption {k}" for k in range(60)], ids.tolist(), list(range(60)))
    x, y = (F.normalize(torch.randn(60, 4), dim=1) for _ in range(2))
    values = retrieval(x, lambda captions: y[[int(c.split()[1]) for c in captions]], split)
    for k in (1, 5, 10):
        hits = [bool((ids[(x @ t).argsort(descending=True)[:k]] == i).any()) for t, i in zip(y, ids, strict=True)]
        assert values[f"text_to_image_r{k}"] == pytest.approx(100 * sum(hits) / 60)


# --------------------------------------------------------------------------------------------------------- zero-shot
def test_a_class_is_the_mean_of_its_name_in_all_templates():
    features = class_features(bag_of_words, ["red-cat", "dog"], ["{}", "a photo of a {}"])
    mean = bag_of_words(["red cat", "a photo of a red cat"]).mean(0)
    torch.testing.assert_close(features[0], F.normalize(mean, dim=0))


def test_zero_shot_finds_what_is_described():
    images = bag_of_words(["a big red cat", "small dog", "a photo of the dog"])
    values = zero_shot(images, torch.tensor([0, 1, 1]), bag_of_words, ["cat", "dog"], ["{}", "a photo of a {}"])
    assert values == {"zero_shot": 100.0, "zero_shot_first_template": 100.0}


def test_zero_shot_refuses_what_makes_no_sense():
    images, labels = bag_of_words(["cat", "dog"]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"templates: expected \{\} where"):
        zero_shot(images, labels, bag_of_words, ["cat", "dog"], ["a photo"])
    with pytest.raises(ValueError, match="classes: expected a name for each of 2 labels, got 1"):
        zero_shot(images, labels, bag_of_words, ["cat"], ["{}"])


# ------------------------------------------------------------------------------------------------ compositional probe
def test_a_bag_of_words_is_at_chance_and_who_knows_the_order_is_not():
    captions = ["big red cat", "small dog", "cat", "blue dog left of the small cat"]
    bag = compositional_probe(bag_of_words(captions), bag_of_words, captions)
    assert bag["beats_order"] == 50
    assert bag["beats_shuffle"] == 50
    assert bag["beats_attribute"] > 50  # another word is another bag
    assert (bag["order_versions"], bag["attribute_versions"]) == (3, 3)
    exact = compositional_probe(in_order(captions), in_order, captions)
    assert all(exact[f"beats_{kind}"] == 100 for kind in VERSIONS)


def test_the_probe_asks_the_same_every_time():
    captions = ["big red cat", "small dog"]
    x = F.normalize(torch.randn(2, 8 * len(WORDS)), dim=1)
    assert compositional_probe(x, in_order, captions) == compositional_probe(x, in_order, captions)
