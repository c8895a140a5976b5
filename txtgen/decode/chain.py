"""The filters of every strategy, put together once per search, in the order of Hugging Face `generate`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from txtgen.config.decoding import StrategyConfig
from txtgen.decode.filters import (
    FORBIDDEN,
    add_bias,
    align_right,
    biases,
    favour_end,
    forbid,
    forbid_ngrams,
    force,
    penalise_repetition,
    renormalise,
)
from txtgen.decode.stopping import Stopping
from txtgen.decode.types import PromptBatch
from txtgen.errors import UsageError


class Place(NamedTuple):
    """How far search has come: sequences [R,T], as in `filters`; generated tokens so far; each row's prompt."""

    sequences: Tensor
    num_new: int
    prompts: Sequence[int]


Filter = Callable[[Tensor, Place], Tensor]


@dataclass(frozen=True, slots=True)
class Filters:
    """What was asked for, and nothing else."""

    steps: tuple[Filter, ...]

    def __call__(self, scores: Tensor, sequences: Tensor, num_new: int, prompts: Sequence[int]) -> Tensor:
        """The filtered scores [R,V]. prompts: the number of each row's prompt."""
        place = Place(sequences, num_new, prompts)
        for step in self.steps:
            scores = step(scores, place)
        return scores


def make_filters(
    config: StrategyConfig, prompts: PromptBatch, stopping: Stopping, suppress: Sequence[int], vocabulary: int
) -> Filters:
    """The filters of a search. `suppress`: tokens that are possible only where they are forced.

    Raises:
        UsageError: a setting names a token that the vocabulary does not have.
    """
    _refuse_foreign_tokens(config, vocabulary)
    return Filters(
        (*_about_words(config, prompts, stopping, suppress), *_about_ends(config, prompts, stopping)),
    )


def _about_words(
    config: StrategyConfig, prompts: PromptBatch, stopping: Stopping, suppress: Sequence[int]
) -> Iterator[Filter]:
    """Filters that look at what was said before."""
    device = prompts.input_ids.device
    if suppress:
        textless = torch.tensor(suppress, device=device)
        yield lambda scores, _: forbid(scores, textless)
    if config.sequence_bias:
        wanted = biases({item.token_ids: item.bias for item in config.sequence_bias}, device)
        yield lambda scores, place: add_bias(scores, place.sequences, wanted)
    if config.encoder_repetition_penalty != 1.0:
        read = _sources(prompts)
        inverse = 1.0 / config.encoder_repetition_penalty
        yield lambda scores, place: penalise_repetition(scores, read[list(place.prompts)], inverse)
    if config.repetition_penalty != 1.0:
        yield lambda scores, place: penalise_repetition(scores, place.sequences, config.repetition_penalty)
    if size := config.no_repeat_ngram_size:
        yield lambda scores, place: forbid_ngrams(scores, place.sequences, size, place.sequences)
    if source_size := config.encoder_no_repeat_ngram_size:
        known = _sources(prompts)
        yield lambda scores, place: forbid_ngrams(scores, place.sequences, source_size, known[list(place.prompts)])
    bad = [tokens for tokens in config.bad_words_ids if len(tokens) > 1 or tokens[0] not in stopping.eos_ids]
    if bad:
        unwanted = biases(dict.fromkeys(bad, FORBIDDEN), device)
        yield lambda scores, place: add_bias(scores, place.sequences, unwanted)


def _about_ends(config: StrategyConfig, prompts: PromptBatch, stopping: Stopping) -> Iterator[Filter]:
    """Filters that look at how much was said."""
    device = prompts.input_ids.device
    eos_ids = torch.tensor(sorted(stopping.eos_ids), dtype=torch.int64, device=device)
    lengths = prompts.lengths.tolist()
    if config.min_length:
        yield _at(lambda place, prompt: lengths[prompt] + place.num_new < config.min_length, forbid, eos_ids)
    if config.min_new_tokens:
        yield _at(lambda place, _: place.num_new < config.min_new_tokens, forbid, eos_ids)
    if config.forced_bos_token_id is not None:
        first = torch.tensor([config.forced_bos_token_id], device=device)
        yield _at(lambda place, prompt: lengths[prompt] + place.num_new == 1, force, first)
    if config.forced_eos_token_id:
        last = torch.tensor(config.forced_eos_token_id, device=device)
        yield _at(lambda place, prompt: place.num_new == stopping.limits[prompt] - 1, force, last)
    if decay := config.exponential_decay_length_penalty:
        yield (
            lambda scores, place: (
                favour_end(scores, eos_ids, decay.factor, place.num_new - decay.start)
                if place.num_new > decay.start
                else scores
            )
        )
    if config.suppress_tokens:
        never = torch.tensor(config.suppress_tokens, device=device)
        yield lambda scores, _: forbid(scores, never)
    if config.begin_suppress_tokens:
        late = torch.tensor(config.begin_suppress_tokens, device=device)
        # A forced token does not count as the first one.
        begins = [int(config.forced_bos_token_id is not None and length == 1) for length in lengths]
        yield _at(lambda place, prompt: place.num_new == begins[prompt], forbid, late)
    if config.renormalize_logits:
        yield lambda scores, _: renormalise(scores)


def _sources(prompts: PromptBatch) -> Tensor:
    """What the encoder reads, or the prompts of a decoder: [B,S], aligned to the right."""
    if prompts.source_ids is None or prompts.source_mask is None:
        return align_right(prompts.input_ids, prompts.lengths)
    return align_right(prompts.source_ids, prompts.source_mask.sum(-1))


def _at(applies: Callable[[Place, int], bool], change: Callable[[Tensor, Tensor], Tensor], token_ids: Tensor) -> Filter:
    """A filter for those rows, by the number of their prompt, that it applies to."""

    def step(scores: Tensor, place: Place) -> Tensor:
        rows = [applies(place, prompt) for prompt in place.prompts]
        if not any(rows):
            return scores
        changed = change(scores, token_ids)
        return changed if all(rows) else torch.where(torch.tensor(rows, device=scores.device)[:, None], changed, scores)

    return step


def _refuse_foreign_tokens(config: StrategyConfig, vocabulary: int) -> None:
    if config.bad_words or any(item.text is not None for item in config.sequence_bias):
        raise UsageError("search knows no texts", "bad_words or sequence_bias", "give token ids")
    named: dict[str, Sequence[int]] = {
        "sequence_bias": [token for item in config.sequence_bias for token in item.token_ids],
        "bad_words_ids": [token for tokens in config.bad_words_ids for token in tokens],
        "forced_bos_token_id": [] if config.forced_bos_token_id is None else [config.forced_bos_token_id],
        "forced_eos_token_id": config.forced_eos_token_id,
        "suppress_tokens": config.suppress_tokens,
        "begin_suppress_tokens": config.begin_suppress_tokens,
    }
    for key, tokens in named.items():
        if tokens and max(tokens) >= vocabulary:
            raise UsageError(
                f"{key} names token {max(tokens)}, and the vocabulary has {vocabulary}",
                key,
                f"choose 0 to {vocabulary - 1}",
            )
