"""Beam search, with the exact meaning of Hugging Face `generate`.

Each prompt keeps `beam_size` running sequences, scored by the plain sum of filtered log-probabilities, and
its best `beam_size` finished ones, scored by sum / generated_length ** length_penalty. A prompt is done when
nothing runs any more, when enough is finished (`early_stopping: true`), or when its best running sequence
could not enter the finished ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from txtgen.config.decoding import BeamConfig
from txtgen.decode.chain import make_filters
from txtgen.decode.filters import FORBIDDEN, align_right, refuse_dead_end, refuse_diverged
from txtgen.decode.sampling import Steps
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


class _Beam(NamedTuple):
    """A running sequence: its new tokens, their plain log-probability, and its score."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    score: float = 0.0

    def extended(self, candidate: _Candidate) -> "_Beam":
        """This sequence with the candidate's token."""
        logprob = self.logprob + candidate.logprob
        return _Beam((*self.token_ids, candidate.token_id), logprob, candidate.score)


@dataclass(slots=True)
class _Search:
    """The search for one prompt. `parents` names the row that each running sequence came from."""

    prompt: int
    running: list[_Beam] = field(default_factory=lambda: [_Beam()])
    parents: list[int] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)

    def advance(self, candidates: Sequence[_Candidate], config: BeamConfig, stopping: Stopping) -> bool:
        """Take one step, given candidates in descending order. Returns whether the search goes on."""
        size = config.beam_size
        running: list[_Beam] = []
        parents: list[int] = []
        hope = FORBIDDEN
        for rank, candidate in enumerate(candidates):
            if candidate.score == FORBIDDEN or (rank >= size and len(running) == size):
                break
            beam = self.running[candidate.parent]
            reason = stopping.reason(self.prompt, beam.token_ids, candidate.token_id)
            if reason is None and len(running) < size:
                if not running:
                    hope = candidate.hope
                running.append(beam.extended(candidate))
                parents.append(candidate.parent)
            elif reason is not None and rank < size:
                end = beam.extended(candidate)
                self.finished.append(Hypothesis(end.token_ids, end.logprob, candidate.final_score, reason))
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[:size]
        if not running:
            return False
        # A vocabulary may offer fewer ways to go on than there are beams; the spare rows never win.
        spare = size - len(running)
        self.running = running + [_Beam(running[0].token_ids, running[0].logprob, FORBIDDEN)] * spare
        self.parents = parents + [parents[0]] * spare
        if len(self.finished) < size:
            return True
        return config.early_stopping != "true" and hope > self.finished[-1].score


@torch.inference_mode()
def beam_search(
    model: StepModel[State],
    prompts: PromptBatch,
    config: BeamConfig,
    stopping: Stopping,
    suppress: Sequence[int],
) -> Steps:
    """The best `num_return` hypotheses per prompt, best first: fewer if no more were finished.

    Nothing is decided before the end, so every step yields an empty list. Prompts that are done leave the
    batch. The prompts are read once; beams are made after the first step.

    Raises:
        DivergedError: the model's scores are not finite.
        UsageError: more beams than tokens, a filter names an unknown token, or the filters leave a prompt none.
    """
    device = prompts.input_ids.device
    limits = torch.tensor(stopping.limits, device=device)
    logits, state = model.prefill(prompts, capacity=int((prompts.lengths + limits).max()) - 1)
    _refuse_too_many_beams(config.beam_size, vocabulary=logits.shape[-1])
    filters = make_filters(config, prompts, stopping, suppress, vocabulary=logits.shape[-1])
    sequences = align_right(prompts.input_ids, prompts.lengths)
    searches = [_Search(prompt) for prompt in range(len(prompts))]
    finished: list[list[Hypothesis]] = [[] for _ in searches]
    for num_new in count():
        log_probs = logits.float().log_softmax(-1)
        # A nan or +inf among the logits makes all of the row's log-probabilities nan.
        refuse_diverged(log_probs[:, 0].exp())
        rows = [search.prompt for search in searches for _ in search.running]
        scores = filters(log_probs, sequences, num_new, rows)
        candidates = _best_candidates(searches, scores, log_probs, num_new + 1, config, stopping)
        yield []
        width = len(searches[0].running)
        live: list[_Search] = []
        parents: list[int] = []
        for number, (search, offered) in enumerate(zip(searches, candidates, strict=True)):
            if search.advance(offered, config, stopping):
                live.append(search)
                parents += [number * width + parent for parent in search.parents]
            else:
                finished[search.prompt] = search.finished[: config.num_return]
        if not live:
            break
        if parents != list(range(len(sequences))):
            order = torch.tensor(parents, device=device)
            state.select(order)
            sequences = sequences[order]
        searches = live
        tokens = torch.tensor([[beam.token_ids[-1]] for search in live for beam in search.running], device=device)
        sequences = torch.cat([sequences, tokens], dim=1)
        logits = model.extend(tokens, state)[:, -1]
    best = torch.tensor([results[0].score if results else FORBIDDEN for results in finished])
    refuse_dead_end(best, num_new)
    return finished


def _best_candidates(
    searches: Sequence[_Search],
    scores: Tensor,
    log_probs: Tensor,
    length: int,
    config: BeamConfig,
    stopping: Stopping,
) -> list[list[_Candidate]]:
    """The best continuations of each search, in descending order.

    There are (number of end tokens + 1) times beam_size, at least twice: if all of the beams' end tokens are
    among them, enough are left to go on with. scores, log_probs: [B*W,V]. length: new tokens, the candidate's
    included.
    """
    num_rows, width, vocabulary = len(searches), len(searches[0].running), scores.shape[-1]
    running = torch.tensor([[beam.score for beam in search.running] for search in searches]).to(scores)
    sums = (scores.view(num_rows, width, vocabulary) + running[..., None]).view(num_rows, -1)
    size = max(2, 1 + len(stopping.eos_ids)) * config.beam_size
    top, index = sums.topk(min(size, width * vocabulary))
    logprobs = log_probs.view(num_rows, -1).gather(1, index)
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
