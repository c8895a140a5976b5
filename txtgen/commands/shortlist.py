"""`txtgen shortlist`: which target tokens may occur where which source tokens stand, learnt from pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from txtgen.checkpoint import Checkpoint, load_checkpoint
from txtgen.commands.deriving import require_free
from txtgen.commands.models import resolve_model
from txtgen.commands.sources import guess_source
from txtgen.config.commands import ShortlistConfig
from txtgen.config.data import DataConfig
from txtgen.config.loader import config_from_tree
from txtgen.config.model import EncoderDecoderConfig
from txtgen.config.objectives import TEXTS
from txtgen.data import IGNORE, build_objective, validation_batches
from txtgen.errors import CheckpointError, DataError
from txtgen.lexicon import Coverage, Pairs, Shortlist, learn_translations

BATCH_TOKENS = 1 << 16
"""Read at a time."""
CHECKED_PAIRS = 2_000
"""Pairs whose tokens are looked up in the result, about."""


@dataclass(frozen=True, slots=True)
class ShortlistMade:
    """What was written, from how many pairs, and what of their targets it has."""

    path: str
    model: str
    pairs: int
    frequent: int
    per_token: int
    coverage: Coverage
    fingerprint: str


def run(config: ShortlistConfig) -> ShortlistMade:
    """Learn from pairs which target tokens belong to which source tokens, and write the likeliest.

    Raises:
        BusyError: the output exists, and it is not to be overwritten.
        CheckpointError: the model cannot be read, or reads no source.
        DataError: the pairs cannot be read.
        ResourceError: there is no room, or no permission.
    """
    output = Path(config.output)
    require_free(output, config.overwrite)
    path = resolve_model(config.model, config.runs_path)
    checkpoint = load_checkpoint(path, weights=False)
    if not isinstance(checkpoint.config.model, EncoderDecoderConfig):
        told = "a decoder reads no source, and a short-list is of what may follow from one"
        raise CheckpointError(told, str(path), "name an encoder-decoder")
    blocks = list(_read(config, checkpoint, checkpoint.config.model))
    source_tokenizer = checkpoint.source_tokenizer or checkpoint.tokenizer
    num_sources, num_targets = len(source_tokenizer), len(checkpoint.tokenizer)
    translations = learn_translations(blocks, num_sources, num_targets)
    counts = np.bincount(np.concatenate([pairs.targets for pairs in blocks]), minlength=num_targets)
    frequent = np.argsort(-counts, kind="stable")[: config.frequent]
    frequent = frequent[counts[frequent] > 0]
    shortlist = Shortlist(
        frequent.astype(np.int32),
        translations.likeliest(config.per_token, num_sources, frequent),
        source_tokenizer.fingerprint(),
        checkpoint.tokenizer.fingerprint(),
    )
    shortlist.save(output)
    count = sum(map(len, blocks))
    checked = [pair for pairs in blocks for pair in pairs.each()][:: max(1, count // CHECKED_PAIRS)]
    return ShortlistMade(
        str(output),
        str(path),
        count,
        len(shortlist.frequent),
        config.per_token,
        shortlist.coverage(checked),
        shortlist.fingerprint(),
    )


def _read(config: ShortlistConfig, checkpoint: Checkpoint, model: EncoderDecoderConfig) -> Iterator[Pairs]:
    """The pairs in tokens as the model is given them, some at a time."""
    source = guess_source(list(config.paths), config.target)
    if source["kind"] in TEXTS:
        told = "these are texts, and a short-list is learnt from pairs of them"
        raise DataError(told, config.paths[0], "give --target FILE too, whose line i is the target of line i")
    own = (checkpoint.config.run.get("data") or {}).get("objective") or {}
    objective = own if own.get("kind") == "seq2seq" else {"kind": "seq2seq"}
    tree = {"sources": [source], "validation": {"sources": [source]}, "objective": objective}
    data = config_from_tree(DataConfig, {**tree, "on_bad_record": "skip"})
    seq2seq = build_objective(
        data.objective,
        checkpoint.tokenizer,
        checkpoint.source_tokenizer or checkpoint.tokenizer,
        max_length=model.max_length,
        max_source_length=model.max_source_length,
        framing=checkpoint.config.framing,
    )
    left = config.max_pairs
    for batch in validation_batches(data, seq2seq, batch_tokens=BATCH_TOKENS, length=model.max_length, seed=0):
        batch = batch.rows(0, left)
        assert batch.source_ids is not None
        assert batch.source_mask is not None
        scored = batch.labels != IGNORE
        yield Pairs(
            batch.source_ids[batch.source_mask].numpy(),
            batch.source_mask.sum(1).numpy(),
            batch.labels[scored].numpy(),
            scored.sum(1).numpy(),
        )
        left -= len(batch.labels)
        if left <= 0:
            return
