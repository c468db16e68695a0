"""Captions to token ids: open_clip's tokenizer where it is installed, else a byte-pair one made from the captions.

Whatever is needed to read a caption again, the merges of the byte pairs, is in the method's ``state_dict``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from methods.encoders import import_torchvision

CHOICES = ("auto", "open_clip", "bpe")
PAD, START, END = "<pad>", "<start>", "<end>"


class Tokenizer(Protocol):
    """Ids ``[N, L]`` of captions, cut to ``context`` and padded at the end, and where in each row its end token is."""

    vocab_size: int
    context: int

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]: ...
    def state(self) -> dict[str, Any]: ...


class BytePairTokenizer:
    """Byte pairs (Sennrich et al. 2016) over bytes, so that no text is without tokens; lower case."""

    def __init__(self, merges: str, context: int) -> None:
        self.merges, self.context = merges, context
        self.bpe = _tokenizers().Tokenizer.from_str(merges)
        self.vocab_size = self.bpe.get_vocab_size()
        self.pad, self.start, self.end = (self.bpe.token_to_id(token) for token in (PAD, START, END))

    @classmethod
    def trained_on(cls, captions: Iterable[str], vocab_size: int, context: int) -> BytePairTokenizer:
        """``vocab_size`` counts the 256 bytes and the three special tokens."""
        if vocab_size < 259:
            raise ValueError(f"vocab_size: expected at least 259 (bytes and special tokens), got {vocab_size}")
        t = _tokenizers()
        bpe = t.Tokenizer(t.models.BPE())
        bpe.normalizer = t.normalizers.Sequence([t.normalizers.NFC(), t.normalizers.Lowercase()])
        bpe.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = t.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, START, END],
            initial_alphabet=sorted(t.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(captions, trainer)
        return cls(bpe.to_str(), context)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [[self.start, *e.ids[: self.context - 2], self.end] for e in self.bpe.encode_batch(list(captions))]
        ends = torch.tensor([len(row) - 1 for row in rows])
        width = int(ends.max()) + 1
        return torch.tensor([row + [self.pad] * (width - len(row)) for row in rows]), ends

    def state(self) -> dict[str, Any]:
        return {"kind": "bpe", "merges": self.merges, "context": self.context}


class OpenClipTokenizer:
    """CLIP's own byte pairs, as open_clip brings them."""

    def __init__(self, context: int) -> None:
        if importlib.util.find_spec("open_clip") is None:
            raise ModuleNotFoundError("tokenizer: open_clip is not installed (pip install open_clip_torch)")
        import_torchvision()  # which open_clip imports
        self.encode = importlib.import_module("open_clip").SimpleTokenizer(context_length=context)
        self.context, self.vocab_size = context, self.encode.vocab_size

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = self.encode(list(captions))
        ends = ids.argmax(1)  # the end token is the last of the vocabulary
        return ids[:, : int(ends.max()) + 1], ends

    def state(self) -> dict[str, Any]:
        return {"kind": "open_clip", "context": self.context}


def build_tokenizer(kind: str, captions: Iterable[str], vocab_size: int, context: int) -> Tokenizer:
    """``open_clip``, ``bpe`` (made from ``captions``), or ``auto``: the first where it is installed."""
    if kind not in CHOICES:
        raise ValueError(f"tokenizer: expected one of {', '.join(CHOICES)}, got {kind!r}")
    if kind == "open_clip" or (kind == "auto" and importlib.util.find_spec("open_clip") is not None):
        return OpenClipTokenizer(context)
    return BytePairTokenizer.trained_on(captions, vocab_size, context)


def restored(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose ``state()`` this is."""
    if state["kind"] == "open_clip":
        return OpenClipTokenizer(state["context"])
    return BytePairTokenizer(state["merges"], state["context"])


def _tokenizers() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("captions need tokenizers: pip install 'ssl_kernels[train]'") from error
