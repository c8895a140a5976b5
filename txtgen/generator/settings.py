"""Settings of generation for one model: what is asked for, its own defaults, texts in them as tokens."""

from collections.abc import Mapping
from typing import Any

from txtgen.checkpoint import LoadedModel
from txtgen.config.decoding import DecodingConfig, SequenceBias, resolve_decoding
from txtgen.errors import UsageError
from txtgen.tokenizer import Tokenizer


def resolve_settings(loaded: LoadedModel, options: Mapping[str, Any]) -> DecodingConfig:
    """The settings to generate with, every text in them but those of `stop` as tokens.

    Raises:
        UsageError: an option that cannot be used, or not with this model.
    """
    decoding = resolve_decoding(loaded.config.generation, options)
    for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"):
        neutral = type(decoding).model_fields[name].default
        if loaded.source_tokenizer is not None and getattr(decoding, name) != neutral:
            told = "source and target have vocabularies of their own, so that they share no tokens"
            raise UsageError(told, name, f"leave out {name}")
    return _with_token_ids(decoding, loaded.tokenizer)


def _with_token_ids(decoding: DecodingConfig, tokenizer: Tokenizer) -> DecodingConfig:
    """The same settings without texts to forbid or to bias: their tokens are there instead."""
    bad = [ids for text in decoding.bad_words for ids in _spellings(text, tokenizer)]
    biased = [
        SequenceBias(token_ids=ids, bias=item.bias)
        for item in decoding.sequence_bias
        for ids in ([item.token_ids] if item.text is None else _spellings(item.text, tokenizer))
    ]
    ids = {"bad_words": (), "bad_words_ids": (*decoding.bad_words_ids, *bad), "sequence_bias": tuple(biased)}
    return decoding.model_copy(update=ids)


def _spellings(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text at the beginning, and after a space."""
    texts = [text] if tokenizer.leading_space or text[0].isspace() else [text, f" {text}"]
    return [tuple(ids) for ids in tokenizer.encode_batch(texts)]
