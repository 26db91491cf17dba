"""Words of a prompt that a model's tokenizers have no token for: the model never sees them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from fastvideo_lightning.modules.pipelines import Pipeline

_MOST_SHOWN, _LONGEST_SHOWN = 10, 40
_log = logging.getLogger(__name__)
_told: WeakKeyDictionary[Pipeline, set[str]] = WeakKeyDictionary()


def unknown_words(pipeline: Pipeline, prompts: Iterable[str]) -> list[str]:
    """Return the words of the prompts that no tokenizer of the pipeline knows, each once."""
    tokenizers = list(_tokenizers(pipeline))
    found = dict.fromkeys(
        word
        for prompt in prompts
        if tokenizers and all(_has_unknown(each, prompt) for each in tokenizers)
        for word in prompt.split()
        if all(_has_unknown(each, word) for each in tokenizers)
    )
    return list(found)


def warn_of_unknown_words(pipeline: Pipeline, prompts: Iterable[str]) -> None:
    """Log the words that the model will not see, each once for a pipeline."""
    told = _told.setdefault(pipeline, set())
    words = [word for word in unknown_words(pipeline, prompts) if word not in told]
    if not words:
        return
    told.update(words)
    _log.warning("%s", describe_unknown(words))


def describe_unknown(words: Sequence[str]) -> str:
    """Return what to say of words that a model does not know; the first of many."""
    shown = ", ".join(repr(_shortened(word)) for word in words[:_MOST_SHOWN])
    more = f" and {len(words) - _MOST_SHOWN} more" if len(words) > _MOST_SHOWN else ""
    return f"The model does not know {shown}{more}: what is shown will not follow. Use other words."


def _shortened(word: str) -> str:
    return word if len(word) <= _LONGEST_SHOWN else f"{word[: _LONGEST_SHOWN - 3]}..."


def _tokenizers(pipeline: Pipeline) -> Iterator[Any]:
    from transformers import PreTrainedTokenizerBase

    for component in pipeline.components.values():
        if isinstance(component, PreTrainedTokenizerBase):
            yield component


def _has_unknown(tokenizer: Any, text: str) -> bool:
    if tokenizer.unk_token_id is None:
        return False
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return tokenizer.unk_token_id in ids
