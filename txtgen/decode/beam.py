"""Beam search, with the exact meaning of Hugging Face `generate`; and diverse beam search, in groups.

Each prompt keeps `beam_size` running sequences, scored by the plain sum of filtered log-probabilities, and
its best `beam_size` finished ones, scored by sum / generated_length ** length_penalty. A prompt is done when
nothing runs any more, when enough is finished (`early_stopping: true`), or when its best running sequence
could not enter the finished ones.

Groups divide the beams of a prompt into searches of their own, which step one after another: each loses
`diversity_penalty` on a token for every time that an earlier group has just chosen it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from txtgen.config.decoding import BeamSettings
from txtgen.decode.chain import FilterMaker, Place
from txtgen.decode.filters import FORBIDDEN, align_right, log_probabilities, refuse_dead_end
from txtgen.decode.sampling import Decided, Steps, greatest_length
from txtgen.decode.stopping import Stopping
from txtgen.decode.types import Hypothesis, PromptBatch, State, StepModel
from txtgen.errors import UsageError


class _Candidate(NamedTuple):
    """A running sequence and one more token.

    parent: the beam that it extends. logprob: of the token alone. score: the sum of filtered
    log-probabilities. final_score: what it scores if it ends here. hope: what it may score at best later on.
    """

    parent: int
    token_id: int
    logprob: float
    score: float
    final_score: float
    hope: float


class Beam(NamedTuple):
    """A running sequence: its new tokens, their plain log-probability, and its score."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    score: float = 0.0

    def extended(self, candidate: _Candidate) -> "Beam":
        """This sequence with the candidate's token."""
        logprob = self.logprob + candidate.logprob
        return Beam((*self.token_ids, candidate.token_id), logprob, candidate.score)


@dataclass(slots=True)
class Search:
    """The search of one group of a prompt's beams. `parents`: the beam that each running sequence came from."""

    prompt: int
    group: int
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    parents: list[int] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)

    def advance(self, candidates: Sequence[_Candidate], config: BeamSettings, stopping: Stopping) -> None:
        """Take one step, given candidates, the first to be taken first.

        Afterwards nothing runs if the search is over.
        """
        size = config.group_size
        running: list[Beam] = []
        parents: list[int] = []
        hope = FORBIDDEN
        for rank, candidate in enumerate(candidates):
            if candidate.score == FORBIDDEN or (rank >= size and len(running) == size):
                break
            beam = self.running[candidate.parent]
            reason = stopping.reason(self.prompt, beam.token_ids, candidate.token_id)
            if reason is None and len(running) < size:
                hope = max(hope, candidate.hope)
                running.append(beam.extended(candidate))
                parents.append(candidate.parent)
            elif reason is not None and rank < size:
                end = beam.extended(candidate)
                self.finished.append(Hypothesis(end.token_ids, end.logprob, candidate.final_score, reason))
        self.finished = _best(self.finished, size)
        full = len(self.finished) == size
        if full and (config.early_stopping == "true" or hope <= self.finished[-1].score):
            running, parents = [], []
        if running:
            # A vocabulary may offer fewer ways to go on than there are beams; the spare rows never win.
            spare = size - len(running)
            running += [Beam(running[0].token_ids, running[0].logprob, FORBIDDEN)] * spare
            parents += [parents[0]] * spare
        self.running, self.parents = running, parents


class Selection(Protocol):
    """Chooses among the continuations of beams."""

    def shaped(self, scores: Tensor, prompts: Sequence[int]) -> Tensor:
        """What tokens score: [R,V], from filtered log-probabilities [R,V] and the number of each row's prompt."""

    def chosen(self, sums: Tensor, searches: Sequence[Search], count: int) -> Tensor:
        """Numbers [N,K] int64 of continuations of N searches, the first to be taken first; -1 stands for none.

        sums: [N,W*V], what each scores. count: how many are needed, unless there are fewer.
        """


class Best:
    """The best ones."""

    def shaped(self, scores: Tensor, _prompts: Sequence[int]) -> Tensor:
        """The scores as they are."""
        return scores

    def chosen(self, sums: Tensor, _searches: Sequence[Search], count: int) -> Tensor:
        """Those with the largest sums."""
        return sums.topk(min(count, sums.shape[1])).indices


@torch.inference_mode()
def beam_search(
    model: StepModel[State],
    prompts: PromptBatch,
    config: BeamSettings,
    stopping: Stopping,
    make: FilterMaker,
    selection: Selection,
) -> Steps:
    """The best `num_return` hypotheses per prompt, best first: fewer if no more were finished.

    A token of the best hypothesis is decided as soon as all sequences that may become the best one share it, and all
    other tokens when their prompt is done. Prompts that are done leave the batch. The prompts are read once; beams are
    made after the first step.

    Raises:
        DivergedError: the model's scores are not finite.
        UsageError: more beams than tokens, a filter names an unknown token, or the filters leave a prompt none.
    """
    device, copies = prompts.input_ids.device, config.num_return
    logits, state = model.prefill(prompts, greatest_length(prompts, stopping))
    _refuse_too_many_beams(config.beam_size, vocabulary=logits.shape[-1])
    filters = make(logits.shape[-1])
    sequences = align_right(prompts.input_ids, prompts.lengths)
    # Group by group, so that the rows of a group are a slice.
    live = [Search(prompt, group) for group in range(config.num_groups) for prompt in range(len(prompts))]
    if config.num_groups > 1:
        order = torch.tensor([search.prompt for search in live], device=device)
        state.select(order)
        logits, sequences = logits[order], sequences[order]
    outcomes = [_Outcome(live[prompt :: len(prompts)]) for prompt in range(len(prompts))]
    for num_new in count():
        log_probs = log_probabilities(logits)
        rows = [search.prompt for search in live for _ in search.running]
        place = Place(sequences, [num_new] * len(rows), rows)
        scores = selection.shaped(filters(log_probs, place), rows)
        width = len(live[0].running)
        _step(live, scores, log_probs, config, stopping, selection)
        yield [
            (prompt * copies + result, token)
            for prompt in dict.fromkeys(search.prompt for search in live)
            for result, token in outcomes[prompt].decide(copies)
        ]
        parents = [number * width + parent for number, search in enumerate(live) for parent in search.parents]
        live = [search for search in live if search.running]
        if not live:
            break
        if parents != list(range(len(sequences))):
            order = torch.tensor(parents, device=device)
            state.select(order)
            sequences = sequences[order]
        tokens = torch.tensor([[beam.token_ids[-1]] for search in live for beam in search.running], device=device)
        sequences = torch.cat([sequences, tokens], dim=1)
        logits = model.extend(tokens, state)[:, -1]
    found = [outcome.results(copies) for outcome in outcomes]
    best = torch.tensor([results[0].score if results else FORBIDDEN for results in found])
    refuse_dead_end(best, [num_new] * len(found))
    return found


@dataclass(slots=True)
class _Outcome:
    """What the groups of one prompt come to. told: how many tokens of the best result are known to be decided."""

    groups: list[Search]
    told: int = 0

    def results(self, count: int) -> list[Hypothesis]:
        """The best finished sequences of all groups."""
        return _best([hypothesis for search in self.groups for hypothesis in search.finished], count)

    def decide(self, count: int) -> Decided:
        """Pairs of result and token that the last step has decided."""
        running = [beam.token_ids for search in self.groups for beam in search.running]
        if not running:
            results = self.results(count)
            rest = [(0, token) for best in results[:1] for token in best.token_ids[self.told :]]
            return rest + [(number, token) for number, other in enumerate(results[1:], 1) for token in other.token_ids]
        contenders = running + [best.token_ids for best in self.results(1)]
        shared = list(_shared(contenders, self.told))
        self.told += len(shared)
        return [(0, token) for token in shared]


def _best(hypotheses: Sequence[Hypothesis], count: int) -> list[Hypothesis]:
    """The best of them in descending order; of equals, the first."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:count]


def _shared(sequences: Sequence[Sequence[int]], start: int) -> Iterator[int]:
    """The tokens from `start` on in which all sequences agree."""
    for place in range(start, min(map(len, sequences))):
        first, *others = {sequence[place] for sequence in sequences}
        if others:
            break
        yield first


def _step(
    searches: Sequence[Search],
    scores: Tensor,
    log_probs: Tensor,
    config: BeamSettings,
    stopping: Stopping,
    selection: Selection,
) -> None:
    """Advance all searches by a token, group after group. scores, log_probs: [N*W,V] for N searches."""
    shape = (len(searches), len(searches[0].running), -1)
    scores, log_probs = scores.view(shape), log_probs.view(shape)
    said: dict[int, list[int]] = {search.prompt: [] for search in searches}
    first = 0
    for _, members in groupby(searches, key=lambda search: search.group):
        group = list(members)
        rows = slice(first, first + len(group))
        first = rows.stop
        offered = _penalise_said(scores[rows], [said[search.prompt] for search in group], config.diversity_penalty)
        candidates = _candidates(group, offered, log_probs[rows], config, stopping, selection)
        for search, offers in zip(group, candidates, strict=True):
            search.advance(offers, config, stopping)
            said[search.prompt] += [beam.token_ids[-1] for beam in search.running if beam.score != FORBIDDEN]


def _penalise_said(scores: Tensor, said: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Scores [N,W,V] less the penalty for each time that a token was said, by the tokens for each of N searches.

    Source: Vijayakumar et al. 2016, arXiv 1610.02424, with the Hamming diversity.
    """
    if not penalty or not any(said):
        return scores
    scores = scores.clone()
    for number, tokens in enumerate(said):
        ids = torch.tensor(tokens, dtype=torch.int64, device=scores.device)
        scores[number].index_add_(-1, ids, scores.new_full((scores.shape[1], len(tokens)), -penalty))
    return scores


def _candidates(
    searches: Sequence[Search],
    scores: Tensor,
    log_probs: Tensor,
    config: BeamSettings,
    stopping: Stopping,
    selection: Selection,
) -> list[list[_Candidate]]:
    """Continuations of each search, the first to be taken first.

    There are (number of end tokens + 1) times the group's size, at least twice: if all of the beams' end tokens are
    among them, enough are left to go on with. scores, log_probs: [N,W,V].
    """
    num_searches, _, vocabulary = scores.shape
    length = len(searches[0].running[0].token_ids) + 1
    running = torch.tensor([[beam.score for beam in search.running] for search in searches]).to(scores)
    sums = (scores + running[..., None]).view(num_searches, -1)
    size = max(2, 1 + len(stopping.eos_ids)) * config.group_size
    index = selection.chosen(sums, searches, size)
    top = sums.gather(1, index.clamp(min=0)).masked_fill(index < 0, FORBIDDEN)
    index = index.clamp(min=0)
    logprobs = log_probs.reshape(num_searches, -1).gather(1, index)
    final = top / length**config.length_penalty
    if config.early_stopping == "never" and config.length_penalty > 0:
        longest = [[stopping.limits[search.prompt] ** config.length_penalty] for search in searches]
        hope = top / torch.tensor(longest).to(top)
    else:
        hope = final
    columns = (index // vocabulary, index % vocabulary, logprobs, top, final, hope)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [[_Candidate(*values) for values in zip(*row, strict=True)] for row in rows]


def _refuse_too_many_beams(beam_size: int, vocabulary: int) -> None:
    if beam_size > vocabulary:
        raise UsageError(
            f"beam_size {beam_size} is more than the {vocabulary} tokens of the vocabulary",
            "beam_size",
            f"choose 1 to {vocabulary}",
        )
