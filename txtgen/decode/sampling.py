"""One token after another: greedy search and sampling."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from txtgen.config.decoding import SampleConfig, StrategyConfig
from txtgen.decode.chain import FilterMaker, Filters, Place
from txtgen.decode.distribution import shape_distribution
from txtgen.decode.filters import align_right, log_probabilities, refuse_dead_end
from txtgen.decode.stopping import Stopping
from txtgen.decode.types import FinishReason, Hypothesis, PromptBatch, State, StepModel

Decided = list[tuple[int, int]]
"""What a step of search has decided: pairs of result number (prompt * num_return + sample) and token id."""

Steps = Generator[Decided, None, list[list[Hypothesis]]]
"""Search, a step at a time; returns the hypotheses of each prompt."""

Choice = Callable[[Tensor, Sequence[int]], Tensor]
"""From scores [R,V] and the result number of each row to token ids [R] int64."""


def most_likely(scores: Tensor, _results: Sequence[int]) -> Tensor:
    """The best token of each row, the first of equals."""
    return scores.argmax(-1)


class Draw:
    """Draws tokens from the distribution that sampling's filters leave.

    Every result has random numbers of its own, which depend on the seed, the number of its prompt and the
    number of the sample: never on what else is in the batch, nor on the device.
    """

    def __init__(self, config: SampleConfig, streams: Sequence[tuple[int, int]], purpose: str = "") -> None:
        self.config = config
        self.random = [Random(f"{config.seed}/{prompt}/{sample}{purpose}") for prompt, sample in streams]

    def __call__(self, scores: Tensor, results: Sequence[int]) -> Tensor:
        """Token ids [R] int64, drawn from `probabilities`."""
        return self.pick(self.probabilities(scores, results), results).to(scores.device)

    def probabilities(self, scores: Tensor, results: Sequence[int]) -> Tensor:
        """What is left of the distribution: [R,V] float64, on the CPU."""
        chances = None if self.config.xtc is None else self.numbers(results).to(scores.device)
        return shape_distribution(scores, self.config, chances).cpu().double().softmax(-1)

    def pick(self, weights: Tensor, results: Sequence[int]) -> Tensor:
        """Token ids [R] int64, by inverting the cumulative distribution. weights: [R,V], not all of a row 0."""
        cumulative = weights.cumsum(-1)
        # A number is below 1, so the point lies strictly below the total, and never on a forbidden token.
        points = self.numbers(results)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, points, right=True)[:, 0]

    def numbers(self, results: Sequence[int]) -> Tensor:
        """The next random number of each result: [R] float64, in [0, 1)."""
        return torch.tensor([self.random[result].random() for result in results], dtype=torch.float64)


@dataclass(slots=True)
class Path:
    """A sequence: its result number, its prompt, its new tokens, their log-probability, why it ended if it has.

    proposed, accepted: the tokens that were proposed for it, and those of them that became its own.
    """

    result: int
    prompt: int
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    proposed: int = 0
    accepted: int = 0

    @property
    def hypothesis(self) -> Hypothesis:
        """What has ended, as a result."""
        assert self.finish_reason is not None
        return Hypothesis(
            tuple(self.token_ids), self.logprob, self.logprob, self.finish_reason, self.proposed, self.accepted
        )


@dataclass(frozen=True, slots=True)
class Paths:
    """The sequences of a search, `copies` of each prompt, and how they grow."""

    all: list[Path]
    copies: int
    filters: Filters
    stopping: Stopping

    @classmethod
    def of(cls, count: int, copies: int, filters: Filters, stopping: Stopping) -> "Paths":
        """Without a token, for so many prompts."""
        return cls([Path(result, result // copies) for result in range(count * copies)], copies, filters, stopping)

    def grow(self, paths: Sequence[Path], logits: Tensor, sequences: Tensor, choose: Choice) -> Tensor:
        """Give each of these paths one token more. Returns the tokens, [R] int64.

        logits: [R,V]. sequences: [R,T], prompt and new tokens, as in `filters`.

        Raises:
            DivergedError: the logits are not finite.
            UsageError: the filters leave a row no token at all.
        """
        logits = logits.float()
        log_probs = log_probabilities(logits)
        counts = [len(path.token_ids) for path in paths]
        scores = self.filters(logits, Place(sequences, counts, [path.prompt for path in paths]))
        if scores is not logits:
            refuse_dead_end(scores.amax(-1), counts)
        tokens = choose(scores, [path.result for path in paths])
        logprobs = log_probs.gather(1, tokens[:, None])[:, 0]
        for path, token, logprob in zip(paths, tokens.tolist(), logprobs.tolist(), strict=True):
            path.finish_reason = self.stopping.reason(path.prompt, path.token_ids, token)
            path.token_ids.append(token)
            path.logprob += logprob
        return tokens

    def results(self) -> list[list[Hypothesis]]:
        """The hypotheses of each prompt, when all have ended."""
        found = [path.hypothesis for path in self.all]
        return [found[first : first + self.copies] for first in range(0, len(found), self.copies)]


@torch.inference_mode()
def follow(
    model: StepModel[State],
    prompts: PromptBatch,
    config: StrategyConfig,
    stopping: Stopping,
    make: FilterMaker,
    choose: Choice,
) -> Steps:
    """Extend each prompt `num_return` times by the tokens that `choose` picks; finished rows leave the batch.

    The logprob of a hypothesis, and its score, is the sum under the model's plain softmax, whatever filters
    shaped the choice.

    Raises:
        DivergedError: the model's scores are not finite.
        UsageError: a filter names an unknown token, or the filters leave a row no token at all.
    """
    device, copies = prompts.input_ids.device, config.num_return
    logits, state = model.prefill(prompts, greatest_length(prompts, stopping))
    paths = Paths.of(len(prompts), copies, make(logits.shape[-1]), stopping)
    sequences = align_right(prompts.input_ids, prompts.lengths)
    if copies > 1:
        rows = torch.tensor([path.prompt for path in paths.all], device=device)
        state.select(rows)
        logits, sequences = logits[rows], sequences[rows]
    growing = paths.all
    while True:
        tokens = paths.grow(growing, logits, sequences, choose)
        yield [(path.result, path.token_ids[-1]) for path in growing]
        live = [row for row, path in enumerate(growing) if path.finish_reason is None]
        if not live:
            break
        sequences = torch.cat([sequences, tokens[:, None]], dim=1)
        if len(live) < len(growing):
            rows = torch.tensor(live, device=device)
            state.select(rows)
            sequences, tokens = sequences[rows], tokens[rows]
            growing = [growing[row] for row in live]
        logits = model.extend(tokens[:, None], state)[:, -1]
    return paths.results()


def greatest_length(prompts: PromptBatch, stopping: Stopping) -> int:
    """How many tokens are read of the longest sequence: the last of a sequence never is."""
    limits = torch.tensor(stopping.limits, device=prompts.lengths.device)
    return int((prompts.lengths + limits).max()) - 1
