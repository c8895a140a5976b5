"""Settings of generation for one model: what is asked for, its own defaults, texts in them as tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from txtgen.checkpoint import LoadedModel
from txtgen.config.decoding import DecodingConfig
from txtgen.config.decoding_options import resolve_decoding
from txtgen.config.decoding_values import SequenceBias
from txtgen.errors import UsageError
from txtgen.tokenizer import Tokenizer


def resolve_settings(loaded: LoadedModel, options: Mapping[str, Any]) -> DecodingConfig:
    """The settings to generate with; tokens for texts to be biased or to break a repetition.

    Raises:
        UsageError: an option that cannot be used, or not with this model.
    """
    decoding = resolve_decoding(loaded.config.generation, options)
    for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"):
        if loaded.source_tokenizer is not None and decoding.is_set(name):
            told = "source and target have vocabularies of their own, so that they share no tokens"
            raise UsageError(told, name, f"leave out {name}")
    return _with_token_ids(decoding, loaded.tokenizer)


def _with_token_ids(decoding: DecodingConfig, tokenizer: Tokenizer) -> DecodingConfig:
    """The same settings without texts to bias or to break at: their tokens are there instead."""
    biased = [
        SequenceBias(token_ids=ids, bias=item.bias)
        for item in decoding.sequence_bias
        for ids in ([item.token_ids] if item.text is None else _spellings(item.text, tokenizer))
    ]
    ids: dict[str, Any] = {"sequence_bias": tuple(biased)}
    if (dry := decoding.dry) is not None:
        breaking = (*dry.breaker_ids, *_breaking(dry.breakers, tokenizer))
        ids["dry"] = dry.model_copy(update={"breakers": (), "breaker_ids": breaking})
    return decoding.model_copy(update=ids)


def _breaking(texts: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens that hold one of the texts, and the spellings of the texts in several tokens."""
    parts = [text.encode() for text in texts]
    holding = [token for token in range(len(tokenizer)) if any(part in tokenizer.token_bytes(token) for part in parts)]
    spelled = [ids for text in texts for ids in _spellings(text, tokenizer) if len(ids) > 1]
    return [*((token,) for token in holding), *spelled]


def _spellings(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a text at the beginning, and after a space."""
    texts = [text] if tokenizer.leading_space or text[0].isspace() else [text, f" {text}"]
    return [tuple(tokenizer.encode(each)) for each in texts]
