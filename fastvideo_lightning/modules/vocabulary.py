"""Words of a prompt that a model's tokenizers have no token for: the model never sees them."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from fastvideo_lightning.modules.pipelines import Pipeline

_MOST_SHOWN = 10
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
    shown = ", ".join(repr(word) for word in words[:_MOST_SHOWN])
    more = f" and {len(words) - _MOST_SHOWN} more" if len(words) > _MOST_SHOWN else ""
    _log.warning(
        "The model does not know %s%s: what is shown will not follow. Use other words.", shown, more
    )


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
