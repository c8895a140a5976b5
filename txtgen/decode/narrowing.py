"""Search among some tokens of a vocabulary: what it handles are their places in a list, until it is done.

The model computes the scores of these tokens alone, and filters, sorting and drawing go over so many, which may be far
fewer. Every prompt has a list of its own; all are scored that any prompt of a batch may need.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic, Unpack, cast

import torch
from torch import Tensor

from txtgen.config.decoding import DecodingConfig
from txtgen.decode.chain import named_tokens, refuse_foreign_tokens
from txtgen.decode.constraint import Constraint
from txtgen.decode.filters import FORBIDDEN
from txtgen.decode.inclusion import Inclusion
from txtgen.decode.sampling import Steps
from txtgen.decode.search import SearchOptions, search_steps
from txtgen.decode.stopping import StopCheck
from txtgen.decode.types import HiddenModel, Hypothesis, PromptBatch, State


def narrow_search_steps(
    model: HiddenModel[State],
    prompts: PromptBatch,
    config: DecodingConfig,
    lists: Sequence[Iterable[int]],
    vocabulary: int,
    **options: Unpack[SearchOptions],
) -> Steps:
    """As `search_steps`, but each prompt goes on with tokens of its list alone, by the softmax over these.

    What prompts, end tokens and settings name is in every list. vocabulary: how many tokens the model has.

    Raises:
        DivergedError, UsageError: as for `search`.
    """
    refuse_foreign_tokens(config, vocabulary)
    named = {*prompts.input_ids.flatten().tolist(), *options.get("eos_ids", ())}
    named.update(*named_tokens(config).values())
    narrow = Vocabulary([named.union(each) for each in lists], prompts)
    steps = search_steps(Narrow(model, narrow), narrow.prompts(), narrow.settings(config), **narrow.options(options))
    while True:
        try:
            decided = next(steps)
        except StopIteration as end:
            return [[narrow.widened(hypothesis) for hypothesis in results] for results in end.value]
        yield [(result, narrow.token_ids[place]) for result, place in decided]


class Vocabulary:
    """The tokens of some lists in ascending order, and their places among these.

    Args:
        lists: the tokens of each prompt; they are in the vocabulary of the model.
        wide: the prompts, in tokens.
    """

    def __init__(self, lists: Sequence[Collection[int]], wide: PromptBatch) -> None:
        self.wide, device = wide, wide.input_ids.device
        named = torch.tensor([token for each in lists for token in each])
        tokens, places = torch.unique(named, return_inverse=True)
        self.tensor, self.token_ids = tokens.to(device), tokens.tolist()
        self.places = {token: place for place, token in enumerate(self.token_ids)}
        rows = torch.arange(len(lists)).repeat_interleave(torch.tensor(list(map(len, lists))))
        forbidden = torch.ones((len(lists), len(tokens)), dtype=torch.bool)
        forbidden[rows, places] = False
        self.forbidden = forbidden.to(device)
        """[B,N] bool: what is not in the list of each prompt."""

    def known(self, tokens: Iterable[int]) -> list[int]:
        """The places of those tokens that have one."""
        return [self.places[token] for token in tokens if token in self.places]

    def widened(self, hypothesis: Hypothesis) -> Hypothesis:
        """The same in tokens."""
        return replace(hypothesis, token_ids=self.tokens(hypothesis.token_ids))

    def tokens(self, places: Sequence[int]) -> tuple[int, ...]:
        """The tokens at these places."""
        return tuple(self.token_ids[place] for place in places)

    # -- what search is told, in places

    def prompts(self) -> PromptBatch:
        """The prompts. Tokens of sources that have no place are a number too large for one."""
        sources = self.wide.source_ids
        if sources is not None:
            at = torch.searchsorted(self.tensor, sources).clamp(max=len(self.token_ids) - 1)
            sources = torch.where(self.tensor[at] == sources, at, len(self.token_ids))
        input_ids = torch.searchsorted(self.tensor, self.wide.input_ids.contiguous())
        return replace(self.wide, input_ids=input_ids, source_ids=sources)

    def settings(self, config: DecodingConfig) -> DecodingConfig:
        """The settings."""

        def runs(tokens: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(self.known(run)) for run in tokens)

        bos, dry = config.forced_bos_token_id, config.dry
        changed: dict[str, Any] = {
            name: tuple(self.known(getattr(config, name)))
            for name in ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
        }
        changed["forced_bos_token_id"] = None if bos is None else self.places[bos]
        changed["bad_words_ids"] = runs(config.bad_words_ids)
        changed["dry"] = dry and dry.model_copy(update={"breaker_ids": runs(dry.breaker_ids)})
        changed["sequence_bias"] = tuple(
            item.model_copy(update={"token_ids": tuple(self.known(item.token_ids))}) for item in config.sequence_bias
        )
        return config.model_copy(update=changed)

    def options(self, options: SearchOptions) -> SearchOptions:
        """What else search may be told."""
        narrow = options.copy()
        narrow["eos_ids"] = self.known(options.get("eos_ids", ()))
        narrow["suppress"] = self.known(options.get("suppress", ()))
        narrow["constraints"] = [NarrowConstraint(each, self) for each in options.get("constraints", ())]
        if (inclusion := options.get("inclusion")) is not None:
            narrow["inclusion"] = NarrowInclusion(inclusion, self)
        if (stop := options.get("stop")) is not None:
            narrow["stop"] = self._stop(stop)
        if (draft := options.get("draft")) is not None:
            narrow["draft"] = Narrow(cast(HiddenModel[Any], draft), self)
        return narrow

    def _stop(self, stop: StopCheck) -> StopCheck:
        return lambda row, places: stop(row, self.tokens(places))


class NarrowState(Generic[State]):
    """What a model remembers, and the number of each row's prompt: [B] int64."""

    def __init__(self, state: State, prompts: Tensor) -> None:
        self.state, self.prompts = state, prompts

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens remembered in each row."""
        return self.state.lengths

    def select(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was."""
        self.state.select(rows)
        self.prompts = self.prompts[rows]

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond lengths: [B] int64."""
        self.state.truncate(lengths)


class Narrow(Generic[State]):
    """A model that reads and scores places. What is not in a prompt's own list is impossible after it."""

    def __init__(self, model: HiddenModel[State], vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.head = model.narrow_head(vocabulary.tensor)
        self.differ = bool(vocabulary.forbidden.any())

    def prefill(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, NarrowState[State]]:
        """As `StepModel.prefill`; the prompts are those of the vocabulary."""
        hidden, state = self.model.prefill_hidden(self.vocabulary.wide, capacity)
        rows = torch.arange(len(hidden), device=hidden.device)
        last = hidden[rows, prompt.lengths - 1][:, None]
        narrow = NarrowState(state, rows)
        return self._scores(last, narrow)[:, 0], narrow

    def extend(self, tokens: Tensor, state: NarrowState[State]) -> Tensor:
        """As `StepModel.extend`."""
        return self._scores(self.model.extend_hidden(self.vocabulary.tensor[tokens], state.state), state)

    def _scores(self, hidden: Tensor, state: NarrowState[State]) -> Tensor:
        """Logits [B,N,V] of hidden [B,N,D]."""
        logits = self.head(hidden).float()
        return (
            logits.masked_fill_(self.vocabulary.forbidden[state.prompts][:, None], FORBIDDEN) if self.differ else logits
        )


class NarrowConstraint:
    """A constraint that is asked about places."""

    def __init__(self, wide: Constraint, vocabulary: Vocabulary) -> None:
        self.wide, self.vocabulary = wide, vocabulary

    def allowed(self, row: int, token_ids: tuple[int, ...]) -> Tensor:
        """As `Constraint.allowed`."""
        allowed = self.wide.allowed(row, self.vocabulary.tokens(token_ids))
        return allowed[self.vocabulary.tensor.to(allowed.device)]


class NarrowInclusion(NarrowConstraint):
    """What must be included, asked about places."""

    wide: Inclusion

    def remaining(self, row: int, token_ids: tuple[int, ...]) -> int:
        """As `Inclusion.remaining`."""
        return self.wide.remaining(row, self.vocabulary.tokens(token_ids))

    def helpful(self, row: int, token_ids: tuple[int, ...]) -> Iterable[int]:
        """As `Inclusion.helpful`."""
        return self.vocabulary.known(self.wide.helpful(row, self.vocabulary.tokens(token_ids)))
