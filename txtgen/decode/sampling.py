"""One token after another: greedy search and sampling."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import torch
from torch import Tensor

from txtgen.config.decoding import SampleConfig, StrategyConfig
from txtgen.decode.chain import FilterMaker
from txtgen.decode.distribution import shape_distribution
from txtgen.decode.filters import align_right, log_normaliser, refuse_dead_end
from txtgen.decode.stopping import Stopping
from txtgen.decode.types import Hypothesis, PromptBatch, State, StepModel

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

    def __init__(self, config: SampleConfig, streams: Sequence[tuple[int, int]]) -> None:
        self.config = config
        self.random = [Random(f"{config.seed}/{prompt}/{sample}") for prompt, sample in streams]

    def __call__(self, scores: Tensor, results: Sequence[int]) -> Tensor:
        """Token ids [R] int64, by inverting the cumulative distribution in float64."""
        chances = None if self.config.xtc is None else self._draws(results).to(scores.device)
        shaped = shape_distribution(scores, self.config, chances)
        cumulative = shaped.cpu().double().softmax(-1).cumsum(-1)
        draws = self._draws(results)[:, None]
        # A draw is below 1, so the point lies strictly below the total, and never on a forbidden token.
        tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
        return tokens[:, 0].to(scores.device)

    def _draws(self, results: Sequence[int]) -> Tensor:
        """The next random number of each result: [R] float64, in [0, 1)."""
        return torch.tensor([self.random[result].random() for result in results], dtype=torch.float64)


@dataclass(slots=True)
class _Path:
    """A sequence that is still growing."""

    result: int
    prompt: int
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


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
    limits = torch.tensor(stopping.limits, device=device)
    # The last token of a sequence is never read.
    logits, state = model.prefill(prompts, capacity=int((prompts.lengths + limits).max()) - 1)
    filters = make(logits.shape[-1])
    sequences = align_right(prompts.input_ids, prompts.lengths)
    paths = [_Path(result, result // copies) for result in range(len(prompts) * copies)]
    if copies > 1:
        rows = torch.tensor([path.prompt for path in paths], device=device)
        state.select(rows)
        logits, sequences = logits[rows], sequences[rows]
    finished: dict[int, Hypothesis] = {}
    for num_new in count():
        logits = logits.float()
        total = log_normaliser(logits)
        scores = filters(logits, sequences, num_new, [path.prompt for path in paths])
        refuse_dead_end(scores.amax(-1), num_new)
        tokens = choose(scores, [path.result for path in paths])
        logprobs = (logits.gather(1, tokens[:, None])[:, 0] - total).tolist()
        decided = [(path.result, token) for path, token in zip(paths, tokens.tolist(), strict=True)]
        yield decided
        live: list[int] = []
        for row, (path, (_, token), logprob) in enumerate(zip(paths, decided, logprobs, strict=True)):
            reason = stopping.reason(path.prompt, path.token_ids, token)
            path.token_ids.append(token)
            path.logprob += logprob
            if reason is None:
                live.append(row)
            else:
                finished[path.result] = Hypothesis(tuple(path.token_ids), path.logprob, path.logprob, reason)
        if not live:
            break
        sequences = torch.cat([sequences, tokens[:, None]], dim=1)
        if len(live) < len(paths):
            rows = torch.tensor(live, device=device)
            state.select(rows)
            sequences, tokens = sequences[rows], tokens[rows]
            paths = [paths[row] for row in live]
        logits = model.extend(tokens[:, None], state)[:, -1]
    return [[finished[prompt * copies + copy] for copy in range(copies)] for prompt in range(len(prompts))]
