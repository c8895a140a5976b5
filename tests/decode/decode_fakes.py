"""A fake model that search can be tried on, and slow searches written from the rules, one list at a time."""

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from txtgen.config.decoding import BeamConfig
from txtgen.decode import PromptBatch


class TableState:
    """The tokens of every row, in plain lists."""

    def __init__(self, rows: list[list[int]], capacity: int) -> None:
        self.rows, self.capacity = rows, capacity

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(row) for row in self.rows])

    def select(self, rows: Tensor) -> None:
        self.rows = [list(self.rows[row]) for row in rows.tolist()]

    def truncate(self, lengths: Tensor) -> None:
        self.rows = [row[:length] for row, length in zip(self.rows, lengths.tolist(), strict=True)]


@dataclass
class TableModel:
    """Random tables: the next token depends on the last two and on the length. Counts the rows it is fed."""

    vocabulary: int
    seed: int = 0
    spread: float = 2.0
    eos_bonus: dict[int, float] = field(default_factory=dict)
    never: tuple[int, ...] = ()
    rows_fed: list[int] = field(default_factory=list)
    known: dict[tuple[int, ...], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        shape = (self.vocabulary, self.vocabulary)
        self.last = torch.randn(shape, generator=random) * self.spread
        self.second = torch.randn(shape, generator=random) * self.spread / 2
        self.place = torch.randn((7, self.vocabulary), generator=random) * self.spread / 2
        for token, bonus in self.eos_bonus.items():
            self.last[:, token] += bonus
        for token in self.never:
            self.last[:, token] = -math.inf

    def logits(self, tokens: list[int]) -> Tensor:
        scores = self.last[tokens[-1]] + self.place[len(tokens) % 7]
        return scores + self.second[tokens[-2]] if len(tokens) > 1 else scores

    def log_probs(self, tokens: list[int]) -> list[float]:
        key = (*tokens[-2:], len(tokens) % 7)
        if key not in self.known:
            self.known[key] = self.logits(tokens).log_softmax(-1).tolist()
        return self.known[key]

    def prefill(self, prompt: PromptBatch, capacity: int) -> tuple[Tensor, TableState]:
        lengths = prompt.lengths.tolist()
        rows = [ids[:length] for ids, length in zip(prompt.input_ids.tolist(), lengths, strict=True)]
        assert max(lengths) <= capacity
        self.rows_fed.append(len(rows))
        return torch.stack([self.logits(row) for row in rows]), TableState(rows, capacity)

    def extend(self, tokens: Tensor, state: TableState) -> Tensor:
        assert len(tokens) == len(state.rows)
        self.rows_fed.append(len(tokens))
        scores = []
        for row, new in zip(state.rows, tokens.tolist(), strict=True):
            scores.append([])
            for token in new:
                row.append(token)
                scores[-1].append(self.logits(row))
            assert len(row) <= state.capacity
        return torch.stack([torch.stack(row) for row in scores])


def batch(prompts: list[list[int]], pad: int = 0) -> PromptBatch:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([prompt + [pad] * (width - len(prompt)) for prompt in prompts])
    return PromptBatch(ids, torch.tensor([len(prompt) for prompt in prompts]))


@dataclass(frozen=True)
class Rules:
    """The filters that every strategy has, one token at a time."""

    eos_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    suppress: tuple[int, ...] = ()

    def filtered(self, scores: list[float], prompt: list[int], new: list[int]) -> list[float]:
        scores, seen = list(scores), prompt + new
        penalty = self.repetition_penalty
        for token in set(seen) if penalty != 1.0 else ():
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        size = self.no_repeat_ngram_size
        if size:
            ngrams = {tuple(seen[start : start + size]) for start in range(len(seen) - size + 1)}
            for token in range(len(scores)):
                if (*seen[len(seen) - size + 1 :], token) in ngrams:
                    scores[token] = -math.inf
        for token in self.suppress + (self.eos_ids if len(new) < self.min_new_tokens else ()):
            scores[token] = -math.inf
        return scores


def slow_greedy(model, prompt, rules: Rules, limit: int) -> list[int]:
    new: list[int] = []
    while len(new) < limit:
        scores = rules.filtered(model.logits(prompt + new).tolist(), prompt, new)
        new.append(max(range(len(scores)), key=lambda token: (scores[token], -token)))
        if new[-1] in rules.eos_ids:
            break
    return new


def slow_beam(
    model,
    prompt,
    rules: Rules,
    limit: int,
    beams: int,
    length_penalty: float,
    early_stopping: str,
    groups: int = 1,
    diversity_penalty: float = 0.0,
    shape=lambda scores: scores,
    noise=lambda count: [0.0] * count,
) -> list[tuple[float, list[int]]]:
    """Finished (score, new tokens) of all groups, best first.

    shape: from the scores of a beam to those that are drawn from. noise: as many numbers, added to the scores of
    candidates where it is decided which of them are looked at.
    """
    size = beams // groups
    running: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(groups)]
    while any(running):
        said: list[int] = []
        for group in range(groups):
            if not running[group]:
                continue
            candidates = []
            for total, new in running[group]:
                scores = shape(rules.filtered(model.log_probs(prompt + new), prompt, new))
                candidates += [
                    (total + score - diversity_penalty * said.count(token), [*new, token])
                    for token, score in enumerate(scores)
                ]
            possible = [total > -math.inf for total, _ in candidates]
            extra = iter(noise(sum(possible)))
            keys = [total + next(extra) if may else total for (total, _), may in zip(candidates, possible, strict=True)]
            order = sorted(range(len(candidates)), key=lambda place: -keys[place])
            candidates = [candidates[place] for place in order[: max(2, 1 + len(rules.eos_ids)) * size]]
            candidates = sorted((c for c in candidates if c[0] > -math.inf), key=lambda candidate: -candidate[0])
            hits = [new[-1] in rules.eos_ids or len(new) >= limit for _, new in candidates]
            for (total, new), hit in zip(candidates[:size], hits[:size], strict=True):
                if hit:
                    finished[group].append((total / len(new) ** length_penalty, new))
            finished[group] = sorted(finished[group], key=lambda result: -result[0])[:size]
            running[group] = [candidate for candidate, hit in zip(candidates, hits, strict=True) if not hit][:size]
            if running[group] and len(finished[group]) == size:
                best, sequence = running[group][0]
                length = limit if early_stopping == "never" and length_penalty > 0 else len(sequence)
                if early_stopping == "true" or best / length**length_penalty <= finished[group][-1][0]:
                    running[group] = []
            said += [sequence[-1] for _, sequence in running[group]]
    return sorted((result for found in finished for result in found), key=lambda result: -result[0])


def random_case(number: int):
    """A model, prompts of unequal length, rules, a limit per prompt, and the configuration of the rules."""
    choice = random.Random(number)
    vocabulary = choice.choice([16, 24, 40])
    eos_ids = choice.choice([(), (1,), (1,), (1, 5), (1, 5, 7)])
    model = TableModel(
        vocabulary,
        number,
        choice.choice([0.5, 1.5, 3.0]),
        dict.fromkeys(eos_ids, choice.choice([0.0, 1.0, 3.0])),
    )
    prompts = [[choice.randrange(vocabulary) for _ in range(choice.randint(1, 6))] for _ in range(choice.randint(1, 4))]
    limits = [choice.randint(1, 9) for _ in prompts]
    rules = Rules(
        eos_ids,
        choice.choice([1.0, 1.0, 1.3, 0.8]),
        choice.choice([0, 0, 1, 2, 3]),
        choice.choice([0, 0, 2, 4]),
        choice.choice([(), (), (0, 2)]),
    )
    beams = choice.randint(2, 6)
    config = BeamConfig(
        beam_size=beams,
        num_return=choice.randint(1, beams),
        length_penalty=choice.choice([-0.5, 0.0, 0.6, 1.0, 2.0]),
        early_stopping=choice.choice(["true", "false", "never"]),
        repetition_penalty=rules.repetition_penalty,
        no_repeat_ngram_size=rules.no_repeat_ngram_size,
        min_new_tokens=rules.min_new_tokens,
    )
    return model, prompts, rules, limits, config
