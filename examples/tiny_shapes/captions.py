"""The words of tiny-shapes: how a scene is described, and the tokenizer that reads it."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .scenes import SCENES, Scene

VERBS = (
    *("moves", "moving", "is moving", "goes", "going", "is going", "slides", "sliding"),
    *("travels", "traveling", "drifts", "drifting", "that moves", "which is moving"),
)
_SIDES = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
_GROUNDS = (
    *("on a {} background", "on {}", "over a {} background", "against a {} background"),
    *("in front of a {} background", "with a {} background", "on the {} background"),
)
# A word outside the vocabulary: training strews a few, so that a stray word changes nothing.
STRAY_WORD = "zzz"


def canonical_caption(scene: Scene) -> str:
    """`a red circle moves right on a black background`, with the right article."""
    motion = f"moves {scene.direction}"
    return f"{_article(scene.color)} {scene.color} {scene.shape} {motion} on a " + (
        f"{scene.background} background"
    )


def paraphrase(scene: Scene, rng: random.Random, *, stray_words: bool = False) -> str:
    """Another way to say the same; a black background may stay unnamed.

    Args:
        scene: what to describe.
        rng: chooses among the ways.
        stray_words: whether to put words outside the vocabulary between, now and then.
    """
    side, direction = _SIDES[scene.direction], scene.direction
    article = rng.choice((_article(scene.color), "the", "one", ""))
    motion = rng.choice(
        (direction, f"{direction}ward", f"{direction}wards")
        + tuple(f"{preposition} the {side}" for preposition in ("to", "toward", "towards"))
    )
    words = f"{article} {scene.color} {scene.shape} {rng.choice(VERBS)} {motion}"
    ground = "grey" if scene.background == "gray" and rng.random() < 0.5 else scene.background
    if scene.background != "black" or rng.random() < 0.5:
        place = rng.choice(_GROUNDS).format(ground)
        words = f"{place}, {words}" if rng.random() < 0.2 else f"{words} {place}"
    if stray_words and rng.random() < 0.15:
        pieces = words.split()
        for _ in range(rng.randint(1, 3)):
            pieces.insert(rng.randint(0, len(pieces)), STRAY_WORD)
        words = " ".join(pieces)
    return " ".join(words.split()) + rng.choice(("", "."))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level, lower-casing tokenizer over every word that a caption can hold."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for word in sorted(set(_every_word())):
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def _every_word() -> Iterable[str]:
    yield from ("a", "an", "the", "one", "to", "toward", "towards", "top", "bottom", "grey")
    yield from (",", ".", *" ".join(VERBS).split())
    yield from " ".join(_GROUNDS).replace("{}", " ").split()
    for scene in SCENES:
        yield from (*scene, f"{scene.direction}ward", f"{scene.direction}wards")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
