"""Measure a worked application of docs/applications.md, in JSON."""

import argparse
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from application_data import FORMS, OUT, read_jsonl, verses
from authors import VOICE, Authors, author_texts, pieces

import txtgen
from txtgen.evaluate.texts import describe, memorised, words
from txtgen.generator import Generation, Generator, Message

Turns = Sequence[Message]
Reply = tuple[Turns, str]
"""A conversation so far, and what is said next."""

OPENINGS = (
    "As to the weather,", "I have read your letter, and", "Of all the dishes that I know,", "The city in the morning",
    "It seems to me that money", "When a man is old,", "Of this book I would say", "My neighbour's dog",
    "There is no journey", "What is called love",
)  # fmt: skip
MAX_SAID = 900
"""Characters of a conversation before a reply, at most."""
MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
VALUE = re.compile(
    rf"\d{{3}}-\d{{3}}-\d{{4}}|\d{{1,2}}:\d{{2}}(?: ?[ap]m)?|\d{{1,2}} ?[ap]m|\$\d[\d,.]*\d|\$\d|{MONTH} \d{{1,2}}|"
    r"\d+(?:\.\d+)?|(?<=[a-z,'] )[A-Z][\w'&-]+(?: [A-Z&0-9][\w'&-]*)*"
)
"""A telephone number, a time, a price, a date, a number, or capitalised words that do not begin a sentence."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("application", choices=("dialogue", "service", "poems", "stories", "voice"))
    parser.add_argument("model", help="the finetuned model")
    parser.add_argument("--base", help="the model that it was made from, measured beside it")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=200, help="how many texts are generated [default: 200]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    measure = {"dialogue": dialogue, "service": service, "poems": poems, "stories": stories, "voice": voice}
    json.dump(measure[arguments.application](arguments), sys.stdout, ensure_ascii=False, indent=2)
    print()


def dialogue(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replies to held-out questions and customers: do they end, are they varied, how likely are the true ones?"""
    model, figures = txtgen.load(arguments.model), {}
    for path in (OUT / "chat" / "test.jsonl", arguments.data / "dialogue" / "sgd_test.jsonl.gz"):
        true = list(replies(path, arguments.count, arguments.seed))
        found = model.generate([turns for turns, _ in true], seed=arguments.seed)
        examples = [(turns[-1]["content"], each.text) for (turns, _), each in zip(true, found, strict=True)]
        figures[str(path)] = {
            "replies": figures_of(found),
            "true replies": figures_of([Generation(0, 0, "", reply, (), (), 0.0, 0.0, "eos") for _, reply in true]),
            **perplexities(arguments, model, true),
            "examples": examples[:8],
        }
    return figures


def service(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replies to customers: are the values in them those of the conversation?"""
    model = txtgen.load(arguments.model)
    true = list(replies(arguments.data / "dialogue" / "sgd_test.jsonl.gz", arguments.count, arguments.seed))
    found = model.generate([turns for turns, _ in true], seed=arguments.seed)
    counts: Counter[str] = Counter()
    for (turns, reply), each in zip(true, found, strict=True):
        said = "\n".join(turn["content"] for turn in turns)
        given, wanted = set(VALUE.findall(each.text)), {value for value in VALUE.findall(reply) if stands(value, said)}
        counts["values in replies"] += len(given)
        counts["that stand in the conversation"] += sum(stands(value, said) for value in given)
        counts["in it or in the true reply"] += sum(stands(value, said + "\n" + reply) for value in given)
        counts["values of the conversation in true replies"] += len(wanted)
        counts["copied into the reply"] += sum(stands(value, each.text) for value in wanted)
        counts["true replies with such values"] += bool(wanted)
        counts["all copied"] += bool(wanted) and all(stands(value, each.text) for value in wanted)
    examples = [([turn["content"] for turn in turns[-3:]], reply, each.text)
                for (turns, reply), each in zip(true, found, strict=True)]  # fmt: skip
    figures = {"replies": figures_of(found), "values": dict(counts)}
    return figures | perplexities(arguments, model, true) | {"examples": examples[:8]}


def replies(path: Path, count: int, seed: int) -> Iterator[Reply]:
    """One turn of the assistant of each of so many conversations, drawn by the seed, with all turns before it.

    Turns so late that a model of 512 positions might have no room for a reply are left out.
    """
    chance = random.Random(seed)
    conversations = [row["messages"] for row in read_jsonl(path)]
    for messages in chance.sample(conversations, min(count, len(conversations))):
        lengths = list(accumulate(len(turn["content"]) for turn in messages))
        turns = [
            number
            for number, turn in enumerate(messages)
            if turn["role"] == "assistant" and number and lengths[number - 1] <= MAX_SAID
        ]
        number = chance.choice(turns)
        yield messages[:number], messages[number]["content"]


def stands(value: str, text: str) -> bool:
    """Whether a value stands in a text, not within a longer word or number; whatever the case, 8 also as 8th."""
    return bool(
        re.search(rf"(?<![\w$])(?<!\d[:.,-]){re.escape(value.lower())}(?:st|nd|rd|th)?(?!\w|[:.,-]\d)", text.lower())
    )


def perplexities(arguments: argparse.Namespace, model: Generator, true: Sequence[Reply]) -> dict[str, float]:
    """Of the true replies; for the base, which knows no roles, the turns before them are paragraphs."""
    figures = {"perplexity": perplexity(model, true)}
    if arguments.base:
        told = [("\n\n".join([*(turn["content"] for turn in turns), ""]), reply) for turns, reply in true]
        figures["perplexity of the base"] = perplexity(txtgen.load(arguments.base), told)
    return figures


def perplexity(model: Generator, pairs: Sequence[tuple[Any, str]]) -> float:
    """Per token of the true replies, ends not counted: a model of novels has no notion of them."""
    scores = model.score([reply for _, reply in pairs], [prompt for prompt, _ in pairs], end=False)
    return math.exp(-sum(each.logprob for each in scores) / sum(len(each.token_ids) for each in scores))


def figures_of(found: Sequence[Generation]) -> dict[str, float]:
    """What generated texts are like, for people."""
    return {name: round(value, 4) for name, value in asdict(describe(found)).items()}


def poems(arguments: argparse.Namespace) -> dict[str, Any]:
    """Poems by form and title, and from a given first line: do all lines have the asked number of characters?"""
    model = txtgen.load(arguments.model)
    rows = random.Random(arguments.seed).sample(list(read_jsonl(OUT / "poems" / "test.jsonl")), arguments.count)
    lengths = {form: size for size, form in FORMS.items()}
    found = model.generate([row["source"] for row in rows], seed=arguments.seed)
    kept = [keeps_width(each.text, row["form"]) for row, each in zip(rows, found, strict=True)]
    fixed = [(row, each) for row, each in zip(rows, found, strict=True) if row["form"] in lengths]
    counted = [len(verses(each.text)) == lengths[row["form"]][1] for row, each in fixed]
    begun = rows[: arguments.count // 4]
    firsts = [re.split("(?<=[，。？！；])", row["target"])[0] for row in begun]
    continued = [model.generate(row["source"], prefix=first, seed=arguments.seed)[0].text
                 for row, first in zip(begun, firsts, strict=True)]  # fmt: skip
    bound = [
        keeps_width(each.text, form)
        for form in sorted({row["form"] for row in rows})
        for each in model.generate(
            [row["source"] for row in rows if row["form"] == form], seed=arguments.seed, regex=metre(form)
        )
    ]
    corpus = [words(row["text"]) for row in read_jsonl(OUT / "poems" / "text.jsonl")]
    return {
        "poems": figures_of(found),
        "line lengths kept": sum(kept) / len(kept),
        "line lengths kept, held to the metre by a regular expression": sum(bound) / len(bound),
        "number of lines kept, of forms that fix it": sum(counted) / len(counted),
        "from a given first line": sum(
            text.startswith(first) and keeps_width(text, row["form"])
            for text, first, row in zip(continued, firsts, begun, strict=True)
        ) / len(begun),
        "runs of 8 characters from the corpus": memorised([words(each.text) for each in found], corpus),
        "the same of true poems": memorised([words(row["target"]) for row in rows], corpus),
        "examples": [(row["source"], each.text) for row, each in zip(rows, found, strict=True)][:6]
        + list(zip(firsts, continued, strict=True))[:4],
    }  # fmt: skip


def metre(form: str) -> str:
    """The regular expression of a form: couplets of five or seven characters, as many as the form has."""
    lines = {name: size[1] for size, name in FORMS.items()}.get(form)
    line = f"[\u4e00-\u9fff]{{{5 if form.startswith('五') else 7}}}"
    couplet = f"{line}，{line}。"
    return f"{couplet}(\n{couplet}){{{lines // 2 - 1 if lines else '1,7'}}}"


def keeps_width(poem: str, form: str) -> bool:
    """Whether a poem has at least four lines, and all have as many characters as the form says."""
    lines = verses(poem)
    return len(lines) >= 4 and {*map(len, lines)} == {5 if form.startswith("五") else 7}


def stories(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stories that go on from held-out chapters: how much of them stands in the training text?"""
    corpus = [words(path.read_text(encoding="utf-8")) for path in sorted((OUT / "books" / "train").glob("*.txt"))]
    paragraphs = [text for path in sorted((OUT / "books" / "test").glob("*.txt"))
                  for text in path.read_text(encoding="utf-8").split("\n\n") if len(text.split()) >= 100]  # fmt: skip
    chosen = random.Random(arguments.seed).sample(paragraphs, min(arguments.count, len(paragraphs)))
    figures: dict[str, Any] = {"the books themselves": memorised([words(text) for text in chosen], corpus)}
    prompts = [" ".join(text.split()[:30]) for text in chosen]
    for name in filter(None, (arguments.base, arguments.model)):
        found = txtgen.load(name).generate(prompts, seed=arguments.seed, max_new_tokens=150)
        figures[name] = figures_of(found) | {"runs of 8 words": memorised([words(each.text) for each in found], corpus)}
        figures[f"{name}, examples"] = [(each.prompt, each.text) for each in found[:3]]
    return figures


def voice(arguments: argparse.Namespace) -> dict[str, Any]:
    """Comments in one author's voice: does a classifier that neither generator nor test has seen tell the author?"""
    authors = Authors(author_texts("classifier"))
    by_author = {author: share(author, pieces(text), authors) for author, text in author_texts("test").items()}
    comments = (OUT / "voice" / "test.txt").read_text(encoding="utf-8").splitlines()
    figures: dict[str, Any] = {
        "classifier, on pieces of held-out chapters": by_author,
        "on held-out comments of the author": share(VOICE, comments, authors),
    }
    for name in filter(None, (arguments.base, arguments.model)):
        prompts = [OPENINGS[number % len(OPENINGS)] for number in range(arguments.count)]
        found = txtgen.load(name).generate(prompts, seed=arguments.seed)
        told = share(VOICE, [each.text for each in found], authors)
        figures[name] = figures_of(found) | {f"told to be by {VOICE}": told}
        figures[f"{name}, examples"] = [each.prompt + each.text for each in found[:4]]
    return figures


def share(author: str, texts: Sequence[str], authors: Authors) -> float:
    """Of the texts, those that the classifier takes for this author's."""
    return sum(authors.likeliest(text) == author for text in texts) / len(texts)


if __name__ == "__main__":
    main()
