"""What a model of images and texts can do: retrieval, zero-shot classification, telling captions from their twins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import config
from methods.data import Data, Split
from methods.evaluate import accuracy, features_of
from methods.hard_negatives import VERSIONS

CHUNK = 512
RANKS = (1, 5, 10)

# Of the ensembles that CLIP's authors use for small photographs and for drawings (Radford et al. 2021, appendix A)
TEMPLATES = ("{}", "a photo of a {}", "a drawing of a {}", "a picture of a {}", "an icon of a {}")


@dataclass(frozen=True)
class ImageTextConfig(config.Config):
    """What the methods with captions have beside the settings of all."""

    least_views: ClassVar[int] = 1

    views: int = 1
    """Augmented views of each image in a step, each of which has to find the caption."""
    crop: tuple[float, float] = (0.5, 1.0)
    """Random resized crop: share of the area that is kept. The paper has 0.9 1.0, on 400 million pairs."""
    jitter: float = 0.0
    """Strength of the colour jitter. The paper has none: captions name colours."""
    grey: float = 0.0
    """Probability of dropping the colours."""
    projection_dim: int = 512
    """Width of what the loss compares."""
    text_width: int = 512
    """Width of the text transformer."""
    text_layers: int = 12
    """Its layers."""
    text_heads: int = 8
    """Its attention heads."""
    text_pooling: Literal["last", "mean"] = "last"
    """last: what CLIP does, every token sees those before it and the end token is read. mean: every token sees all, and
    their mean is read; learns faster where captions are few."""
    text_dropout: float = 0.0
    """Its dropout; for small data."""
    word_dropout: float = 0.0
    """Share of the tokens of a caption that are blanked, anew in every step; for small data."""
    tokenizer: Literal["auto", "open_clip", "bpe"] = "auto"
    """open_clip's, or byte pairs made from the captions; auto: the first where it is installed."""
    vocab_size: int = 8192
    """Tokens of the byte-pair tokenizer, at most."""
    context: int = 77
    """Tokens of a caption that are read."""
    hard_negatives: tuple[Literal["order", "shuffle", "attribute"], ...] = ()
    """For every caption, one with two words swapped, all words shuffled, or an attribute swapped, as a further wrong
    answer to all images (NegCLIP); several: one of them at random."""
    templates: tuple[str, ...] = TEMPLATES
    """Sentences around the names of classes, for zero-shot classification."""


Texts = Callable[[Sequence[str]], Tensor]


@torch.no_grad()
def measure_image_text(
    method: nn.Module, images: Texts, texts: Texts, data: Data, templates: Sequence[str], everything: bool
) -> dict[str, float]:
    """Retrieval among the test pairs; with ``everything``, zero-shot classification and the compositional probe too.

    Args:
        images, texts: of the method, to features ``[N, D]`` on the unit sphere.
    """
    test, device = data.test, next(method.parameters()).device
    x = features_of(method, test.images, device, images)
    was_training = method.training
    method.eval()
    values = {}
    if test.captions is not None:
        values |= retrieval(x, texts, test)
    if everything and data.labelled:
        values |= zero_shot(x, test.labels.to(device), texts, data.classes, templates)
    if everything and test.captions is not None:
        values |= compositional_probe(x, texts, test.captions)
    method.train(was_training)
    return values


def in_parts(texts: Texts, captions: Sequence[str]) -> Tensor:
    return torch.cat([texts(captions[k : k + CHUNK]).float() for k in range(0, len(captions), CHUNK)])


def retrieval(images: Tensor, texts: Texts, split: Split) -> dict[str, float]:
    """R@1, 5 and 10 in per cent, both ways: how often a pair with the same id is among so many nearest.

    Every image and every caption counts once, however many rows it stands in.

    Args:
        images: features of the split's images, ``[N, D]`` on the unit sphere.
        texts: captions to such features.
    """
    assert split.captions is not None
    assert split.ids is not None
    of_image = _first({image.numpy().tobytes(): k for k, image in reversed(list(enumerate(split.images)))})
    of_caption = _first({caption: k for k, caption in reversed(list(enumerate(split.captions)))})
    x = images[of_image]
    y = in_parts(texts, [split.captions[k] for k in of_caption.tolist()])
    same = (split.ids[of_image, None] == split.ids[of_caption]).to(x.device)
    values = {}
    for name, s, positive in (("image_to_text", x @ y.T, same), ("text_to_image", y @ x.T, same.T)):
        nearest = s.topk(min(max(RANKS), s.shape[1]), dim=1).indices
        hits = positive.gather(1, nearest)
        for k in RANKS:
            values[f"{name}_r{k}"] = 100 * hits[:, :k].any(1).float().mean().item()
    return values


def _first(rows: dict[object, int]) -> Tensor:
    return torch.tensor(sorted(rows.values()))


def class_features(texts: Texts, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """``[classes, D]``: of every class, the mean over the templates of the features of its name in them."""
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"templates: expected {{}} where the class's name goes, got {template!r}")
    names = [name.replace("_", " ").replace("-", " ") for name in classes]
    means = [in_parts(texts, [template.replace("{}", name) for template in templates]).mean(0) for name in names]
    return F.normalize(torch.stack(means), dim=1)


def zero_shot(
    images: Tensor, labels: Tensor, texts: Texts, classes: Sequence[str], templates: Sequence[str]
) -> dict[str, float]:
    """Accuracy in per cent of the class whose name is nearest, with all templates together and with the first alone."""
    if int(labels.max()) >= len(classes):
        raise ValueError(f"classes: expected a name for each of {int(labels.max()) + 1} labels, got {len(classes)}")
    ensemble = accuracy(images @ class_features(texts, classes, templates).T, labels)
    single = accuracy(images @ class_features(texts, classes, templates[:1]).T, labels)
    return {"zero_shot": ensemble, "zero_shot_first_template": single}


def compositional_probe(images: Tensor, texts: Texts, captions: Sequence[str]) -> dict[str, float]:
    """How often, in per cent, an image is nearer to its caption than to a version with words or attributes swapped.

    50 is chance, and what a bag of words gets. The versions are the same in every call. Beside each figure stands the
    number of captions that have such a version.
    """
    values = {}
    own = in_parts(texts, captions)
    for name, version in VERSIONS.items():
        made = [(k, version(caption, Random(caption))) for k, caption in enumerate(captions)]
        rows = torch.tensor([k for k, other in made if other is not None])
        if len(rows):
            other = in_parts(texts, [o for _, o in made if o is not None])
            margin = (images[rows] * (own[rows] - other)).sum(1)
            wins = (margin > 0).float() + 0.5 * (margin == 0).float()
            values |= {f"beats_{name}": 100 * wins.mean().item(), f"{name}_versions": len(rows)}
    return values
