"""Model 1 beside a slow one written from its equations, and on texts that it must see through."""

import random

import numpy as np

from txtgen.lexicon import Pairs, learn_translations

WORDS = 9


def pairs_of(texts: list[tuple[list[int], list[int]]]) -> Pairs:
    sources, targets = zip(*texts, strict=True)
    return Pairs(
        np.array([token for source in sources for token in source], dtype=np.int64),
        np.array(list(map(len, sources))),
        np.array([token for target in targets for token in target]),
        np.array(list(map(len, targets))),
    )


def random_texts(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    choice = random.Random(seed)

    def text(size: int, least: int) -> list[int]:
        return [choice.randrange(size) for _ in range(choice.randint(least, 5))]

    return [(text(WORDS, 0), text(7, 1)) for _ in range(count)]


def slow_translations(texts: list[tuple[list[int], list[int]]], rounds: int) -> dict[tuple[int, int], float]:
    """p(target | source) by the plain loops of the paper; WORDS is the source token that stands for none."""
    likely = {(s, t): 1.0 for source, target in texts for s in [*source, WORDS] for t in target}
    for _ in range(rounds):
        expected = dict.fromkeys(likely, 0.0)
        for source, target in texts:
            for t in target:
                total = sum(likely[s, t] for s in [*source, WORDS])
                for s in [*source, WORDS]:
                    expected[s, t] += likely[s, t] / total
        totals = {s: sum(value for (other, _), value in expected.items() if other == s) for s, _ in expected}
        likely = {(s, t): value / totals[s] for (s, t), value in expected.items()}
    return likely


def test_probabilities_are_those_of_the_plain_loops() -> None:
    texts = random_texts(1, 40)
    blocks = [pairs_of(texts[:13]), pairs_of(texts[13:14]), pairs_of(texts[14:])]
    for rounds in (1, 2, 5):
        found = learn_translations(blocks, WORDS, 7, rounds)
        expected = slow_translations(texts, rounds)
        couples = list(zip(found.sources.tolist(), found.targets.tolist(), strict=True))
        assert couples == sorted(expected)
        np.testing.assert_allclose(found.probabilities, [expected[couple] for couple in couples], rtol=1e-9)


def test_the_likeliest_come_first_and_none_are_invented() -> None:
    texts = random_texts(2, 30)
    expected = slow_translations(texts, 5)
    translations = learn_translations([pairs_of(texts)], WORDS, 7)
    without = translations.likeliest(7, WORDS, np.array([2, 4]))
    for all_of, row in zip(translations.likeliest(7, WORDS).tolist(), without.tolist(), strict=True):
        left = [token for token in all_of if token not in (2, 4, -1)]
        assert row == left + [-1] * (7 - len(left))
    table = translations.likeliest(3, WORDS)
    assert table.shape == (WORDS, 3)
    assert table.dtype == np.int32
    for source, row in enumerate(table.tolist()):
        best = sorted((t for s, t in expected if s == source), key=lambda t: -expected[source, t])[:3]
        chances = [expected[source, t] for t in row if t >= 0]
        np.testing.assert_allclose(chances, [expected[source, t] for t in best], rtol=1e-9)
        assert row[len(best) :] == [-1] * (3 - len(best))


def test_words_find_their_translations_in_any_order() -> None:
    choice = random.Random(3)
    texts = []
    for _ in range(300):
        source = choice.sample(range(WORDS), choice.randint(2, 5))
        target = [(5 * word + 2) % WORDS for word in source]
        choice.shuffle(target)
        texts.append((source, target))
    table = learn_translations([pairs_of(texts)], WORDS, WORDS).likeliest(1, WORDS)
    assert table[:, 0].tolist() == [(5 * word + 2) % WORDS for word in range(WORDS)]
