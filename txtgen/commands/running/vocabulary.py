"""A base model with other tokens than its own: the rows of its embeddings and of its output, fitted to them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from txtgen.checkpoint import Checkpoint
from txtgen.commands.models import resolve_tokenizer
from txtgen.config.tokenizer import VocabularyConfig
from txtgen.errors import CheckpointError, ConfigError
from txtgen.tokenizer import Tokenizer, extended, row_origins

VOCABULARIES = {
    "tokenizer": ("vocab_size", ("token_embedding.weight", "lm_head.weight", "output_bias")),
    "source_tokenizer": ("source_vocab_size", ("source_embedding.weight",)),
}
"""By the key of a tokenizer: that of its size in the model's config, and the weights that have a row for each token."""


_OF_IDS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "breaker_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "token_ids",
)
"""Settings of generation, and of its sections, that know tokens by their ids."""


def with_vocabulary(
    base: Checkpoint, wanted: VocabularyConfig | None, wanted_source: VocabularyConfig | None, where: str
) -> Checkpoint:
    """The model with other tokens, as the config says; what was done is told in its lineage under the tokenizer's key.

    Raises:
        CheckpointError, ConfigError: as for `with_tokenizers`.
    """
    changed = with_tokenizers(base, wanted, wanted_source, where)
    if changed is base:
        return base
    old, new = _tokenizers(base), _tokenizers(changed)
    model, told = dict(base.model), dict[str, str]()
    for key, (size, names) in VOCABULARIES.items():
        names = tuple(name for name in names if name in model)
        if old[key] is new[key] or not names:
            continue
        origins, count = row_origins(old[key], new[key]), getattr(changed.config.model, size)
        for name in names:
            rows = fitted_rows(model[name], origins, len(old[key]))
            model[name] = torch.cat([rows, model[name][len(rows) : count]])
        told[key] = _told(old[key], new[key], origins)
    return replace(changed, model=model, lineage={**base.lineage, **told})


def with_tokenizers(
    base: Checkpoint, wanted: VocabularyConfig | None, wanted_source: VocabularyConfig | None, where: str
) -> Checkpoint:
    """The model's other tokenizers, and its config with the sizes of their vocabularies; the weights, which need not be
    there, are as they were. A source that has no tokenizer of its own follows that of the target.

    Raises:
        CheckpointError: the tokenizer or the model cannot be changed.
        ConfigError: the tokens cannot be added, or there is no tokenizer of the source.
    """
    if wanted_source is not None and base.source_tokenizer is None:
        raise ConfigError("the base model has no tokenizer for sources alone", "source_tokenizer", "leave it out")
    target = _changed(base.tokenizer, wanted)
    source = _changed(base.source_tokenizer, wanted_source) if base.source_tokenizer else None
    if target is base.tokenizer and source is base.source_tokenizer:
        return base
    base.require_unquantized("another vocabulary", where)
    kept = all(_is_kept(old, new) for old, new in ((base.tokenizer, target), (base.source_tokenizer, source)))
    if not kept:
        _require_no_ids(base, where)
    changed = replace(base, tokenizer=target, source_tokenizer=source)
    old, new = _tokenizers(base), _tokenizers(changed)
    config, sizes = base.config.model, dict[str, int]()
    for key, (size, _) in VOCABULARIES.items():
        rows = getattr(config, size, None)  # more than there are tokens, or none of the source's own
        if old[key] is not new[key] and rows is not None:
            sizes[size] = max(rows, len(new[key])) if kept else len(new[key])
    model = config.model_copy(update=sizes)
    return replace(changed, config=base.config.model_copy(update={"model": model}))


def _tokenizers(checkpoint: Checkpoint) -> dict[str, Tokenizer]:
    """By the keys of `VOCABULARIES`."""
    source = checkpoint.source_tokenizer or checkpoint.tokenizer
    return {"tokenizer": checkpoint.tokenizer, "source_tokenizer": source}


def _changed(tokenizer: Tokenizer, wanted: VocabularyConfig | None) -> Tokenizer:
    """The tokenizer that is wanted; the same object where that is no other."""
    if wanted is None:
        return tokenizer
    other = tokenizer if wanted.path is None else resolve_tokenizer(wanted.path)
    if other.fingerprint() == tokenizer.fingerprint():
        other = tokenizer
    return extended(other, wanted.control_symbols, wanted.pieces)


def _is_kept(old: Tokenizer | None, new: Tokenizer | None) -> bool:
    """Whether the tokens of one tokenizer have the same ids in another."""
    if old is None or new is None or old is new:
        return True
    count = range(len(old))
    return len(new) >= len(old) and old.special == new.special and old.pieces(count) == new.pieces(count)


def _require_no_ids(base: Checkpoint, where: str) -> None:
    """Refuse other ids for a model that knows tokens by theirs.

    Raises:
        CheckpointError: it does.
    """
    reasons = {
        "the tokens around its texts, as it comes from elsewhere": base.config.framing is not None,
        "its n-grams": base.config.model.ngrams is not None,
        "its generation defaults": _knows_ids(base.config.generation.plain()),
    }
    for what, holds in reasons.items():
        if holds:
            fix = "keep its tokenizer, to which control_symbols and pieces may be added"
            raise CheckpointError(f"the base model's tokens cannot get other ids: {what} are known by them", where, fix)


def _knows_ids(settings: Any) -> bool:
    match settings:
        case dict():
            return any(
                _knows_ids(value) or (key in _OF_IDS and value not in (None, [])) for key, value in settings.items()
            )
        case list():
            return any(map(_knows_ids, settings))
        case _:
            return False


def fitted_rows(weight: Tensor, origins: Sequence[Sequence[int]], count: int) -> Tensor:
    """A row [V,...] for each token: the mean of the rows of its origins, or of all where it has none.

    Args:
        weight: [V',...], of the tokens before; those from `count` on are nobody's.
        origins: for each new token, as `row_origins` has them.
        count: of the tokens before.
    """
    usual = weight[:count].double().mean(0)
    rows = [weight[list(found)].double().mean(0) if found else usual for found in origins]
    return torch.stack(rows).to(weight.dtype)


def _told(old: Tokenizer, new: Tokenizer, origins: Sequence[Sequence[int]]) -> str:
    kinds = [*_kinds(old, new, origins)]
    parts = {name: kinds.count(name) for name in ("kept", "spelled before", "new")}
    shares = ", ".join(f"{count:,} {name}" for name, count in parts.items())
    return f"{len(old):,} -> {len(new):,} tokens: {shares}; {old.fingerprint()[:16]} -> {new.fingerprint()[:16]}"


def _kinds(old: Tokenizer, new: Tokenizer, origins: Sequence[Sequence[int]]) -> Iterator[str]:
    for token, found in enumerate(origins):
        if not found:
            yield "new"
        elif len(found) == 1 and old.token_bytes(found[0]) == new.token_bytes(token):
            yield "kept"
        else:
            yield "spelled before"
