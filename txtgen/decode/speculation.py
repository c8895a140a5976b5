"""Speculative decoding: tokens are proposed, and the model reads several in one call and decides on each.

Source: Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from txtgen.config.decoding import StrategyConfig
from txtgen.decode.chain import FilterMaker
from txtgen.decode.filters import align_right
from txtgen.decode.sampling import Decided, Draw, Path, Paths, Steps, greatest_length, most_likely
from txtgen.decode.stopping import Stopping
from txtgen.decode.types import PromptBatch, State, StepModel


class Offer(NamedTuple):
    """A proposed token, and the distribution that it was drawn from, [V] float64 on the CPU; None: it was sure."""

    token_id: int
    probabilities: Tensor | None = None


class Texts:
    """The tokens of every row, prompt and new ones, as far as they are decided: token_ids [R,C], lengths of R rows."""

    def __init__(self, prompts: PromptBatch, copies: int, capacity: int) -> None:
        width = prompts.input_ids.shape[1]
        self.token_ids = prompts.input_ids.new_zeros(len(prompts) * copies, max(width, capacity))
        self.token_ids[:, :width] = prompts.input_ids.repeat_interleave(copies, 0)
        self.lengths: list[int] = prompts.lengths.repeat_interleave(copies).tolist()

    def write(self, tokens: Tensor) -> None:
        """Note what stands from the last decided token on, [R,N] int64, itself included."""
        starts = [length - 1 for length in self.lengths]
        self.token_ids.scatter_(1, self._places(starts, tokens.shape[1]), tokens)

    def read(self, starts: Sequence[int], count: int) -> Tensor:
        """So many tokens of every row from its start on, [R,N] int64."""
        return self.token_ids.gather(1, self._places(starts, count))

    def before(self, rows: Sequence[int], ahead: int) -> Tensor:
        """All tokens of some rows, and so many after the decided ones, as filters read sequences."""
        lengths = torch.tensor([self.lengths[row] + ahead for row in rows], device=self.token_ids.device)
        return align_right(self.token_ids[list(rows), : int(lengths.max())], lengths)

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        self.token_ids, self.lengths = self.token_ids[rows], [self.lengths[row] for row in rows]

    def _places(self, starts: Sequence[int], count: int) -> Tensor:
        device = self.token_ids.device
        return torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)


class Proposer(Protocol):
    """Guesses what comes next. What it offers for a row depends on nothing but the row."""

    def begin(self, prompts: PromptBatch, copies: int, capacity: int, vocabulary: int) -> None:
        """Read prompts, each for so many results; of no text more tokens will be read than the capacity."""

    def propose(self, texts: Texts, results: Sequence[int], most: Sequence[int]) -> list[list[Offer]]:
        """What may come next in each row, at most so many tokens. results: the number of each row's result."""

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""


Verify = Callable[[Sequence[Offer | None], Tensor, Sequence[int]], Tensor]
"""From what is offered to each row, scores [R,V] and result numbers to token ids [R] int64, which are distributed as if
nothing were offered."""


def likeliest(_offers: Sequence[Offer | None], scores: Tensor, results: Sequence[int]) -> Tensor:
    """The best token of each row, whatever is offered."""
    return most_likely(scores, results)


def drawn(draw: Draw, offers: Sequence[Offer | None], scores: Tensor, results: Sequence[int]) -> Tensor:
    """Draws as `draw` does: a token that was sure to be offered does not change what is drawn.

    A token x drawn from q is taken with probability min(1, p(x) / q(x)), and in its place one is drawn from what p has
    more than q, so that the token is distributed as p says. Source: Leviathan et al. 2022; Chen et al. 2023.
    """
    weights = draw.probabilities(scores, results)
    tokens = torch.full((len(weights),), -1)
    for row, offer in enumerate(offers):
        if offer is None or offer.probabilities is None:
            continue
        chance = draw.numbers([results[row]])[0]
        if chance * offer.probabilities[offer.token_id] < weights[row, offer.token_id]:
            tokens[row] = offer.token_id
        elif bool((more := (weights[row] - offer.probabilities).clamp(min=0.0)).any()):
            weights[row] = more
    left = (tokens < 0).nonzero()[:, 0]
    tokens[left] = draw.pick(weights[left], [results[row] for row in left.tolist()])
    return tokens.to(scores.device)


@torch.inference_mode()
def speculate(
    model: StepModel[State],
    prompts: PromptBatch,
    config: StrategyConfig,
    stopping: Stopping,
    make: FilterMaker,
    verify: Verify,
    proposer: Proposer,
) -> Steps:
    """As `follow`, with fewer calls of the model: every row reads its last token and what is proposed after it.

    Each place is filtered and decided with what stands before it, so that a row goes on as far as proposals are what it
    would have said. Rows take as many as they can, whatever other rows do: their lengths differ.

    Raises:
        DivergedError, UsageError: as for `follow`.
    """
    device, copies = prompts.input_ids.device, config.num_return
    capacity = greatest_length(prompts, stopping)
    logits, state = model.prefill(prompts, capacity)
    paths = Paths.of(len(prompts), copies, make(logits.shape[-1]), stopping)
    texts = Texts(prompts, copies, capacity)
    proposer.begin(prompts, copies, capacity, logits.shape[-1])
    if copies > 1:
        rows = torch.tensor([path.prompt for path in paths.all], device=device)
        state.select(rows)
        logits = logits[rows]
    growing, logits = paths.all, logits[:, None]
    ahead: list[list[Offer]] = [[] for _ in growing]
    while True:
        yield _decide(paths, growing, logits, texts, ahead, verify)
        live = [row for row, path in enumerate(growing) if path.finish_reason is None]
        if not live:
            break
        if len(live) < len(growing):
            state.select(torch.tensor(live, device=device))
            proposer.select(live)
            texts.select(live)
            growing, ahead = [growing[row] for row in live], [ahead[row] for row in live]
        state.truncate(torch.tensor(texts.lengths) - 1)
        texts.write(torch.tensor([path.token_ids[-1:] for path in growing], device=device))
        _propose(proposer, growing, texts, ahead, stopping)
        # Offers that do not fit for the length of another row are read later.
        count = min(1 + max(map(len, ahead)), 1 + capacity - max(texts.lengths))
        tokens = torch.tensor(
            [
                _filled([path.token_ids[-1], *(offer.token_id for offer in offers)], count)
                for path, offers in zip(growing, ahead, strict=True)
            ],
            device=device,
        )
        texts.write(tokens)
        logits = model.extend(tokens, state)
    return paths.results()


def _filled(token_ids: list[int], count: int) -> list[int]:
    """So many tokens; what is missing is the last one again, which nobody looks at."""
    return (token_ids + token_ids[-1:] * count)[:count]


def _propose(
    proposer: Proposer, growing: Sequence[Path], texts: Texts, ahead: list[list[Offer]], stopping: Stopping
) -> None:
    """Let offers be made to all rows that have none left; none for the last token of a text, which is never read."""
    most = [
        0 if offers else stopping.limits[path.prompt] - len(path.token_ids) - 1
        for path, offers in zip(growing, ahead, strict=True)
    ]
    found = proposer.propose(texts, [path.result for path in growing], most)
    for path, offers, more in zip(growing, ahead, found, strict=True):
        path.proposed += len(more)
        offers += more


def _decide(
    paths: Paths,
    growing: Sequence[Path],
    logits: Tensor,
    texts: Texts,
    ahead: Sequence[list[Offer]],
    verify: Verify,
) -> Decided:
    """Give every row the next token, and one more for each offer that it takes and has read. logits: [R,N,V].

    Takes such offers away, and all others of a row once it says something else.
    """
    decided: Decided = []
    rows, before = list(range(len(growing))), list(texts.lengths)
    for place in range(logits.shape[1]):
        offers = [ahead[row].pop(0) if ahead[row] else None for row in rows]
        now = [growing[row] for row in rows]
        paths.grow(now, logits[rows, place], texts.before(rows, place), partial(verify, offers))
        taken = []
        for row, path, offer in zip(rows, now, offers, strict=True):
            token = path.token_ids[-1]
            decided.append((path.result, token))
            before[row] += 1
            if offer is not None and offer.token_id == token:
                path.accepted += 1
                if path.finish_reason is None:
                    taken.append(row)
            else:
                ahead[row].clear()
        rows = taken
        if not rows:
            break
    texts.lengths = before
    return decided
