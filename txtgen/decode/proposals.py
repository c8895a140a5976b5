"""Who guesses what comes next: the text itself, or a smaller model."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Generic

import torch
from torch import Tensor

from txtgen.config.decoding_values import PromptLookup
from txtgen.decode.sampling import Draw, most_likely
from txtgen.decode.speculation import Offer, Texts
from txtgen.decode.types import PromptBatch, State, StepModel


class _Known:
    """Tokens, and what followed each run of up to so many of them when it last occurred."""

    def __init__(self, token_ids: Sequence[int], longest: int) -> None:
        self.longest = longest
        self.token_ids: list[int] = []
        self.following: dict[tuple[int, ...], int] = {}
        self.add(token_ids)

    def add(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            place = len(self.token_ids)
            for run in self._last_runs():
                self.following[run] = place
            self.token_ids.append(token)

    def continuation(self, most: int) -> list[int]:
        """What followed the longest of the last runs that occurred before; over its end, from its beginning again."""
        for run in self._last_runs():
            if run in self.following:
                found = self.token_ids[self.following[run] :]
                return (found * -(-most // len(found)))[:most]
        return []

    def _last_runs(self) -> list[tuple[int, ...]]:
        """The last tokens, the longest run first."""
        sizes = range(min(self.longest, len(self.token_ids)), 0, -1)
        return [tuple(self.token_ids[-size:]) for size in sizes]


class Lookup:
    """Proposes what followed the last tokens where they stood before: in the text, its prompt, or its source."""

    def __init__(self, config: PromptLookup) -> None:
        self.config = config

    def begin(self, prompts: PromptBatch, copies: int, _capacity: int, vocabulary: int) -> None:
        """Read the sources; texts are read when something is to be proposed."""
        self._vocabulary = vocabulary
        sources: list[list[int]] = [[]] * len(prompts)
        if prompts.source_ids is not None:
            mask = torch.ones_like(prompts.source_ids) if prompts.source_mask is None else prompts.source_mask
            counts = mask.sum(-1).tolist()
            sources = [ids[:count] for ids, count in zip(prompts.source_ids.tolist(), counts, strict=True)]
        known = [_Known(sources[result // copies], self.config.max_ngram) for result in range(len(prompts) * copies)]
        self._known = [(each, len(each.token_ids)) for each in known]

    def propose(self, texts: Texts, results: Sequence[int], most: Sequence[int]) -> list[list[Offer]]:
        """What followed, each token sure to be proposed."""
        offers = []
        for row, (result, count) in enumerate(zip(results, most, strict=True)):
            known, source = self._known[result]
            known.add(texts.token_ids[row, len(known.token_ids) - source : texts.lengths[row]].tolist())
            found = known.continuation(min(count, self.config.num_tokens))
            # A source may be written in tokens that the target does not have.
            offers.append([Offer(token) for token in takewhile(lambda token: token < self._vocabulary, found)])
        return offers

    def select(self, rows: list[int]) -> None:
        """Nothing is kept by row."""


class Draft(Generic[State]):
    """Proposes what another model would say.

    Args:
        model: with the tokens of the one that decides.
        num_tokens: proposed at a time.
        draw: draws from that model's distribution; None: its best token is proposed.
    """

    state: State

    def __init__(self, model: StepModel[State], num_tokens: int, draw: Draw | None) -> None:
        self.model, self.num_tokens, self.draw = model, num_tokens, draw

    def begin(self, prompts: PromptBatch, copies: int, capacity: int, _vocabulary: int) -> None:
        """Read the prompts."""
        self._prompt_lengths: list[int] = prompts.lengths.repeat_interleave(copies).tolist()
        _, self.state = self.model.prefill(prompts, capacity)
        if copies > 1:
            self.state.select(torch.arange(len(prompts)).repeat_interleave(copies))

    def propose(self, texts: Texts, results: Sequence[int], most: Sequence[int]) -> list[list[Offer]]:
        """What the model would say, with the distributions that it was drawn from.

        Rows that have enough read their last token again, so that none outgrows its capacity.
        """
        offers: list[list[Offer]] = [[] for _ in results]
        counts = [min(count, self.num_tokens) for count in most]
        if not any(counts):
            return offers
        lengths, tokens = self._catch_up(texts, results)
        while True:
            logits = self._read(tokens, lengths)[:, -1].float()
            lengths = self.state.lengths.tolist()
            wanting = [row for row, count in enumerate(counts) if len(offers[row]) < count]
            more = self._offers(logits[wanting], [results[row] for row in wanting])
            for row, offer in zip(wanting, more, strict=True):
                offers[row].append(offer)
            if all(len(found) == count for found, count in zip(offers, counts, strict=True)):
                return offers
            tokens = tokens[:, -1:].clone()
            for row, count in enumerate(counts):
                if len(offers[row]) < count:
                    tokens[row] = offers[row][-1].token_id
                else:
                    lengths[row] -= 1

    def _catch_up(self, texts: Texts, results: Sequence[int]) -> tuple[list[int], Tensor]:
        """Read what is new in the texts but for the end of it. Returns where that begins, and the tokens, [R,N] int64.

        What was proposed in vain is forgotten. All rows read as much as the one that lacks most, but at a time no more
        than each has beyond its prompt.
        """
        begins = [self._prompt_lengths[result] for result in results]
        behind = max(
            1, *(length - held for length, held in zip(texts.lengths, self.state.lengths.tolist(), strict=True))
        )
        at_once = min(length - begin for length, begin in zip(texts.lengths, begins, strict=True))
        while True:
            starts = [max(begin, length - behind) for length, begin in zip(texts.lengths, begins, strict=True)]
            tokens = texts.read(starts, min(behind, at_once))
            if behind <= at_once:
                return starts, tokens
            self._read(tokens, starts)
            behind -= at_once

    def _read(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Logits [R,N,V] after tokens [R,N] that follow so many of each row."""
        self.state.truncate(torch.tensor(lengths))
        return self.model.extend(tokens, self.state)

    def _offers(self, logits: Tensor, results: Sequence[int]) -> list[Offer]:
        """A token for each row of logits [R,V]."""
        if self.draw is None:
            return [Offer(token) for token in most_likely(logits, results).tolist()]
        probabilities = self.draw.probabilities(logits, results)
        tokens = self.draw.pick(probabilities, results).tolist()
        return [Offer(token, row) for token, row in zip(tokens, probabilities, strict=True)]

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        self.state.select(torch.tensor(rows))
