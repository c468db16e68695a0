from __future__ import annotations

import importlib.util

import pytest
import torch

from methods.text import TextEncoder
from methods.tokenizer import BytePairTokenizer, build_tokenizer, restored

CAPTIONS = ["a red house", "a blue house by the sea", "two red boats on the blue sea"] * 5


@pytest.fixture
def tokenizer() -> BytePairTokenizer:
    pytest.importorskip("tokenizers")
    return BytePairTokenizer.trained_on(CAPTIONS, 300, context=12)


def test_words_that_are_frequent_become_one_token(tokenizer: BytePairTokenizer):
    ids, ends = tokenizer(["house", "xyzzy"])
    assert ends.tolist() == [2, 7]  # start, house, end; start, a space, five letters, end
    assert ids[0, 3:].eq(tokenizer.pad).all()
    assert ids[torch.arange(2), ends].eq(tokenizer.end).all()


def test_no_text_is_without_tokens_and_case_does_not_matter(tokenizer: BytePairTokenizer):
    ids, ends = tokenizer(["", "日本 ☂ é", "A Red HOUSE", "a red house"])
    assert ends[0] <= 2
    assert ends[1] == 11
    assert torch.equal(ids[2], ids[3])


def test_long_captions_are_cut(tokenizer: BytePairTokenizer):
    ids, ends = tokenizer(["sea " * 50])
    assert ids.shape == (1, 12)
    assert ends.item() == 11


def test_the_state_is_the_tokenizer(tokenizer: BytePairTokenizer):
    ids, ends = restored(tokenizer.state())(CAPTIONS)
    assert torch.equal(ids, tokenizer(CAPTIONS)[0])
    assert torch.equal(ends, tokenizer(CAPTIONS)[1])


def test_what_a_tokenizer_cannot_be():
    with pytest.raises(ValueError, match="tokenizer: expected one of auto, open_clip, bpe, got 'words'"):
        build_tokenizer("words", CAPTIONS, 300, 12)
    with pytest.raises(ValueError, match="vocab_size: expected at least 259"):
        build_tokenizer("bpe", CAPTIONS, 100, 12)


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is not None, reason="open_clip is installed")
def test_open_clip_where_it_is_not_installed():
    with pytest.raises(ModuleNotFoundError, match="open_clip is not installed"):
        build_tokenizer("open_clip", CAPTIONS, 300, 12)


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
def test_auto_is_open_clips_where_it_is_installed():
    ids, ends = build_tokenizer("auto", CAPTIONS, 300, 12)(["a red house", "sea"])
    assert ids[:, 0].eq(49406).all()
    assert ids[torch.arange(2), ends].eq(49407).all()


def encoder_of(tokenizer: BytePairTokenizer, pooling: str) -> TextEncoder:
    """With branches that do something, as they do after training."""
    encoder = TextEncoder(tokenizer, 16, 2, 2, pooling).eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return encoder


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_depend_neither_on_the_padding_nor_on_the_rest_of_the_batch(
    tokenizer: BytePairTokenizer, pooling: str
):
    encoder = encoder_of(tokenizer, pooling)
    alone, among = encoder(["a red house"]), encoder(["two red boats on the blue sea", "a red house"])
    assert alone.shape == (1, 16)
    torch.testing.assert_close(alone[0], among[1])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_order_of_the_words_matters(tokenizer: BytePairTokenizer, pooling: str):
    a, b = encoder_of(tokenizer, pooling)(["red blue house", "blue red house"])
    assert (a - b).abs().max() > 1e-2


def test_words_behind_the_end_are_not_read_and_those_before_it_are(tokenizer: BytePairTokenizer):
    short, other, long = encoder_of(tokenizer, "last")(["red house", "blue house", "red house by the sea"])
    assert (short - other).abs().max() > 1e-2
    assert (short - long).abs().max() > 1e-2


def test_dropped_words_only_in_training(tokenizer: BytePairTokenizer):
    encoder = TextEncoder(tokenizer, 16, 1, 2, "mean", word_dropout=0.5)
    assert not torch.equal(encoder(["a red house"]), encoder(["a red house"]))
    encoder.eval()
    assert torch.equal(encoder(["a red house"]), encoder(["a red house"]))


def test_the_tokenizer_travels_with_the_weights(tokenizer: BytePairTokenizer):
    encoder = TextEncoder(tokenizer, 16, 1, 2).eval()
    other = TextEncoder(BytePairTokenizer.trained_on(["x"], tokenizer.vocab_size, 12), 16, 1, 2).eval()
    if other.tokens.num_embeddings != tokenizer.vocab_size:  # too little text for as many pairs
        other.tokens = torch.nn.Embedding(tokenizer.vocab_size, 16)
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other(CAPTIONS), encoder(CAPTIONS))


def test_heads_that_do_not_divide_the_width(tokenizer: BytePairTokenizer):
    with pytest.raises(ValueError, match="text_heads: expected a divisor of text_width 16, got 3"):
        TextEncoder(tokenizer, 16, 1, 3)
