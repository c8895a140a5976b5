"""Prepare the data of the worked applications (docs/applications.md): whole chapters, questions and poems are held out.

Usage: python scripts/application_data.py ../shared/data        writes applications/
"""

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

OUT = Path("applications")
CHAPTER = re.compile(r"^ *(?:CHAPTER|Chapter|EPILOGUE|Epilogue|[IVX]+\. THE ADVENTURE)\b.*", re.MULTILINE)
HELD_OUT_SHARE = 0.04
CLASSIFIER_SHARE = 0.08
"""Of each book, from its end: chapters to test on, and before them chapters that only the author classifier learns."""

MIN_COMMENT, MAX_COMMENT = 80, 600
"""Characters."""

MAX_TURN = 300
"""Characters of a turn of open dialogue."""

FORMS = {(5, 4): "五言絕句", (7, 4): "七言絕句", (5, 8): "五言律詩", (7, 8): "七言律詩"}
"""Form by (characters of a line, lines); five- or seven-character poems of other lengths are 古詩."""
MAX_POEM = 110


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that holds books_en, dialogue and poetry_zh")
    data = parser.parse_args().data
    books(data / "books_en")
    voice("don_quixote")
    conversations(data / "dialogue" / "chatterbot_english.jsonl.gz")
    poems(data / "poetry_zh")


def books(folder: Path) -> None:
    """Each book in three parts, cut where a chapter begins: for the generator, the classifier and the test."""
    for path in sorted(folder.glob("*.txt")):
        if path.name == "SOURCE.txt":
            continue
        text = plain(path.read_text(encoding="utf-8"))
        starts = [match.start() for match in CHAPTER.finditer(text)]
        test = min(starts, key=lambda start: abs(start - len(text) * (1 - HELD_OUT_SHARE)))
        before = [start for start in starts if start < test]
        classifier = min(before, key=lambda start: abs(start - len(text) * (1 - HELD_OUT_SHARE - CLASSIFIER_SHARE)))
        bounds = [0, classifier, test, len(text)]
        for name, start, end in zip(("train", "classifier", "test"), bounds, bounds[1:], strict=False):
            write(OUT / "books" / name / path.name, text[start:end].strip() + "\n")


def voice(book: str) -> None:
    """The paragraphs of a book that have the length of a comment, one a line."""
    for name in ("train", "test"):
        paragraphs = (OUT / "books" / name / f"{book}.txt").read_text(encoding="utf-8").split("\n\n")
        comments = [text.strip() for text in paragraphs if MIN_COMMENT <= len(text) <= MAX_COMMENT]
        write(OUT / "voice" / f"{name}.txt", "".join(comment + "\n" for comment in comments))


def plain(text: str) -> str:
    """A paragraph a line; quotation marks and dashes alike in all books, so that no edition can be told by them."""
    for curly, straight in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("—", "--"), ("_", "")):
        text = text.replace(curly, straight)
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def conversations(path: Path) -> None:
    """A fifth of the questions that open a conversation are held out, and each is tested once, although some have a
    hundred replies. Programs and essays are left out."""
    rows = [row for row in read_jsonl(path) if all(is_talk(turn["content"]) for turn in row["messages"])]
    train = [{"messages": row["messages"]} for row in rows if not held_out(row["messages"][0]["content"], 5)]
    test = {row["messages"][0]["content"]: {"messages": row["messages"]} for row in rows}
    write_jsonl(OUT / "chat" / "train.jsonl", train)
    write_jsonl(OUT / "chat" / "test.jsonl", [row for question, row in test.items() if held_out(question, 5)])


def is_talk(text: str) -> bool:
    """Whether a turn is short, and on one line."""
    return len(text) <= MAX_TURN and "\n" not in text.strip()


def poems(folder: Path) -> None:
    """Poems as text to pretrain on, and as form and title with the poem to finetune on; no poem is on both sides."""
    rows = [row for name in ("tang", "song_part") for row in read_jsonl(folder / f"{name}.jsonl.gz")]
    known = {opening(row["text"]) for row in read_jsonl(folder / "tang300.jsonl.gz")}
    train, test, seen = [], [], set()
    for row in rows:
        key = opening(row["text"])
        if key in seen or not row["text"].strip():
            continue
        seen.add(key)
        (test if key in known or held_out(key, 50) else train).append(row)
    write_jsonl(OUT / "poems" / "text.jsonl", [{"text": row["text"]} for row in train])
    write_jsonl(OUT / "poems" / "train.jsonl", list(by_form(train)))
    write_jsonl(OUT / "poems" / "test.jsonl", list(by_form(test)))


def by_form(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Poems whose lines all have five or all have seven characters, with what asks for them."""
    for row in rows:
        lines = verses(row["text"])
        width = len(lines[0]) if lines else 0
        if width in (5, 7) and len(lines) >= 4 and len(row["text"]) <= MAX_POEM and {*map(len, lines)} == {width}:
            form = FORMS.get((width, len(lines)), "五言古詩" if width == 5 else "七言古詩")
            yield {"source": f"{form}：{row['title'][:20]}", "target": row["text"], "form": form}


def verses(text: str) -> list[str]:
    """The lines of verse between punctuation marks."""
    return [line for line in re.split(r"[，。？！；、：\s]+", text) if line]


def opening(text: str) -> str:
    """What tells whether two poems are the same one: their first ten characters."""
    return "".join(verses(text))[:10]


def held_out(key: str, one_in: int) -> bool:
    """Whether a key is held out: always the same, and for one in so many."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % one_in == 0


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl or .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """A row a line."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write(path: Path, text: str) -> None:
    """The file, with its folder, and a line about it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
