"""The filters of every strategy, put together once per search, in the order of Hugging Face `generate`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from txtgen.config.decoding import StrategyConfig
from txtgen.config.decoding_values import DryPenalty, LengthDecay, SequenceBias
from txtgen.decode.constraint import Constraint, constrain
from txtgen.decode.filters import (
    FORBIDDEN,
    NO_TOKEN,
    add_bias,
    align_right,
    biases,
    favour_end,
    forbid,
    forbid_ngrams,
    force,
    penalise_frequency,
    penalise_presence,
    penalise_repetition,
    renormalise,
)
from txtgen.decode.repetition import make_breakers, penalise_continuations
from txtgen.decode.stopping import Stopping
from txtgen.decode.types import PromptBatch
from txtgen.errors import UsageError


class Place(NamedTuple):
    """How far search has come: sequences [R,T], as in `filters`; how many tokens each row has generated; its prompt."""

    sequences: Tensor
    counts: Sequence[int]
    prompts: Sequence[int]

    def generated(self, window: int = 0) -> Tensor:
        """The generated tokens, only so many of the last unless the window is 0: [R,N], aligned as sequences are."""
        counts = [min(count, window or count) for count in self.counts]
        longest = max(counts)
        recent = self.sequences[:, self.sequences.shape[1] - longest :]
        if min(counts) == longest:
            return recent
        before = longest - torch.tensor(counts, device=recent.device)[:, None]
        return recent.masked_fill(torch.arange(longest, device=recent.device) < before, NO_TOKEN)

    def said(self) -> list[tuple[int, ...]]:
        """The generated tokens of each row."""
        rows = zip(self.generated().tolist(), self.counts, strict=True)
        return [tuple(token_ids[len(token_ids) - count :]) for token_ids, count in rows]


Filter = Callable[[Tensor, Place], Tensor]


@dataclass(frozen=True, slots=True)
class Filters:
    """What was asked for, and nothing else."""

    steps: tuple[Filter, ...]

    def __call__(self, scores: Tensor, place: Place) -> Tensor:
        """The filtered scores [R,V] of what comes next."""
        for step in self.steps:
            scores = step(scores, place)
        return scores


FilterMaker = Callable[[int], Filters]
"""Makes the filters of a search when the size of the vocabulary is known."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a filter may need to know of a search."""

    config: StrategyConfig
    prompts: PromptBatch
    stopping: Stopping
    vocabulary: int

    def tensor(self, token_ids: Sequence[int]) -> Tensor:
        """Token ids [N] int64 where the search computes."""
        return torch.tensor(token_ids, dtype=torch.int64, device=self.prompts.input_ids.device)

    @property
    def eos_ids(self) -> Tensor:
        """The end tokens, [N] int64."""
        return self.tensor(sorted(self.stopping.eos_ids))

    @property
    def lengths(self) -> list[int]:
        """Of the prompts."""
        lengths: list[int] = self.prompts.lengths.tolist()
        return lengths

    @property
    def sources(self) -> Tensor:
        """What the encoder reads, or the prompts of a decoder: [B,S], aligned to the right."""
        prompts = self.prompts
        if prompts.source_ids is None or prompts.source_mask is None:
            return align_right(prompts.input_ids, prompts.lengths)
        return align_right(prompts.source_ids, prompts.source_mask.sum(-1))


def make_filters(
    config: StrategyConfig,
    prompts: PromptBatch,
    stopping: Stopping,
    suppress: Sequence[int],
    constraints: Sequence[Constraint],
    vocabulary: int,
) -> Filters:
    """The filters of a search. `suppress`, and what `constraints` forbid, is possible only where it is forced.

    Raises:
        UsageError: a setting names a token that the vocabulary does not have.
    """
    refuse_foreign_tokens(config, vocabulary)
    if config.is_constrained and not constraints:
        raise UsageError("search knows no texts", "bad_words and the like", "give constraints")
    setup = Setup(config, prompts, stopping, vocabulary)
    chosen = [make(getattr(config, name), setup) for name, make in FILTERS.items() if config.is_set(name)]
    first = [_suppress(suppress, setup)] if suppress else []
    if constraints:
        first.append(lambda scores, place: constrain(scores, place.said(), place.prompts, constraints))
    return Filters((*first, *chosen))


def _at(applies: Callable[[int, int], bool], change: Callable[[Tensor], Tensor]) -> Filter:
    """A filter for those rows, by how many tokens they have generated and by their prompt, that it applies to."""

    def step(scores: Tensor, place: Place) -> Tensor:
        rows = list(map(applies, place.counts, place.prompts))
        if not any(rows):
            return scores
        changed = change(scores)
        return changed if all(rows) else torch.where(torch.tensor(rows, device=scores.device)[:, None], changed, scores)

    return step


def _forbid(token_ids: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores: forbid(scores, token_ids)


def _force(token_ids: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores: force(scores, token_ids)


def _suppress(token_ids: Sequence[int], setup: Setup) -> Filter:
    never = setup.tensor(token_ids)
    return lambda scores, _: forbid(scores, never)


def _sequence_bias(items: Sequence[SequenceBias], setup: Setup) -> Filter:
    wanted = biases({item.token_ids: item.bias for item in items}, setup.prompts.input_ids.device)
    return lambda scores, place: add_bias(scores, place.sequences, wanted)


def _bad_words(runs: Sequence[tuple[int, ...]], setup: Setup) -> Filter:
    """A single end token is no bad word."""
    bad = [tokens for tokens in runs if len(tokens) > 1 or tokens[0] not in setup.stopping.eos_ids]
    unwanted = biases(dict.fromkeys(bad, FORBIDDEN), setup.prompts.input_ids.device)
    return lambda scores, place: add_bias(scores, place.sequences, unwanted)


def _encoder_repetition(penalty: float, setup: Setup) -> Filter:
    read = setup.sources
    return lambda scores, place: penalise_repetition(scores, read[list(place.prompts)], 1.0 / penalty)


def _repetition(penalty: float, _: Setup) -> Filter:
    return lambda scores, place: penalise_repetition(scores, place.sequences, penalty)


def _presence(penalty: float, setup: Setup) -> Filter:
    window = setup.config.penalty_window
    return lambda scores, place: penalise_presence(scores, place.generated(window), penalty)


def _frequency(penalty: float, setup: Setup) -> Filter:
    window = setup.config.penalty_window
    return lambda scores, place: penalise_frequency(scores, place.generated(window), penalty)


def _dry(dry: DryPenalty, setup: Setup) -> Filter:
    ends = [(token,) for token in setup.stopping.eos_ids]
    breakers = make_breakers([*dry.breaker_ids, *ends], setup.vocabulary, setup.prompts.input_ids.device)
    return lambda scores, place: penalise_continuations(scores, place.sequences, dry, breakers)


def _no_ngrams(size: int, _: Setup) -> Filter:
    return lambda scores, place: forbid_ngrams(scores, place.sequences, size, place.sequences)


def _no_source_ngrams(size: int, setup: Setup) -> Filter:
    known = setup.sources
    return lambda scores, place: forbid_ngrams(scores, place.sequences, size, known[list(place.prompts)])


def _min_length(length: int, setup: Setup) -> Filter:
    before = setup.lengths
    return _at(lambda count, prompt: before[prompt] + count < length, _forbid(setup.eos_ids))


def _min_new_tokens(count: int, setup: Setup) -> Filter:
    return _at(lambda done, _: done < count, _forbid(setup.eos_ids))


def _forced_bos(token_id: int, setup: Setup) -> Filter:
    before = setup.lengths
    return _at(lambda count, prompt: before[prompt] + count == 1, _force(setup.tensor([token_id])))


def _forced_eos(token_ids: Sequence[int], setup: Setup) -> Filter:
    limits = setup.stopping.limits
    return _at(lambda count, prompt: count == limits[prompt] - 1, _force(setup.tensor(token_ids)))


def _length_decay(decay: LengthDecay, setup: Setup) -> Filter:
    eos_ids = setup.eos_ids

    def step(scores: Tensor, place: Place) -> Tensor:
        since = [max(0, count - decay.start) for count in place.counts]
        return favour_end(scores, eos_ids, decay.factor, since) if any(since) else scores

    return step


def _begin_suppress(token_ids: Sequence[int], setup: Setup) -> Filter:
    # A forced token does not count as the first one.
    forced = setup.config.forced_bos_token_id is not None
    begins = [int(forced and length == 1) for length in setup.lengths]
    return _at(lambda count, prompt: count == begins[prompt], _forbid(setup.tensor(token_ids)))


FILTERS: Mapping[str, Callable[[Any, Setup], Filter]] = {
    "sequence_bias": _sequence_bias,
    "encoder_repetition_penalty": _encoder_repetition,
    "repetition_penalty": _repetition,
    "frequency_penalty": _frequency,
    "presence_penalty": _presence,
    "dry": _dry,
    "no_repeat_ngram_size": _no_ngrams,
    "encoder_no_repeat_ngram_size": _no_source_ngrams,
    "bad_words_ids": _bad_words,
    "min_length": _min_length,
    "min_new_tokens": _min_new_tokens,
    "forced_bos_token_id": _forced_bos,
    "forced_eos_token_id": _forced_eos,
    "exponential_decay_length_penalty": _length_decay,
    "suppress_tokens": _suppress,
    "begin_suppress_tokens": _begin_suppress,
    "renormalize_logits": lambda _, __: lambda scores, ___: renormalise(scores),
}
"""What makes the filter of each setting from its value, in the order in which they are applied."""


def named_tokens(config: StrategyConfig) -> dict[str, list[int]]:
    """The tokens that settings name by their ids, by the settings' keys."""
    runs = [] if config.dry is None else config.dry.breaker_ids
    return {
        "sequence_bias": [token for item in config.sequence_bias for token in item.token_ids],
        "bad_words_ids": [token for tokens in config.bad_words_ids for token in tokens],
        "dry.breaker_ids": [token for tokens in runs for token in tokens],
        "forced_bos_token_id": [] if config.forced_bos_token_id is None else [config.forced_bos_token_id],
        "forced_eos_token_id": list(config.forced_eos_token_id),
        "suppress_tokens": list(config.suppress_tokens),
        "begin_suppress_tokens": list(config.begin_suppress_tokens),
    }


def refuse_foreign_tokens(config: StrategyConfig, vocabulary: int) -> None:
    """Refuse settings that search cannot understand, or that name tokens beyond so many.

    Raises:
        UsageError: it is given a text, or a token that there is not.
    """
    breakers = () if config.dry is None else config.dry.breakers
    if breakers or any(item.text is not None for item in config.sequence_bias):
        raise UsageError("search knows no texts", "dry.breakers or sequence_bias", "give token ids")
    for key, tokens in named_tokens(config).items():
        if tokens and max(tokens) >= vocabulary:
            raise UsageError(
                f"{key} names token {max(tokens)}, and the vocabulary has {vocabulary}",
                key,
                f"choose 0 to {vocabulary - 1}",
            )
