"""Pretrain, finetune and generate on the documentation inside Python, or on the user's own text files."""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("quickstart")
TXTGEN = [sys.executable, "-m", "txtgen"]
QUESTIONS = ('What is "{}"?', 'Tell me about "{}".', 'Explain "{}".', 'What do you know about "{}"?')
CHINESE_QUESTIONS = ("什麼是「{}」？", "說說「{}」。", "給我講講「{}」。")
CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
MAX_REPLY = 50
MAX_SUBJECT = 18
MAX_SUBJECTS = 12


@dataclass(frozen=True)
class Document:
    """A text and the topic that it belongs to; whole topics are held out."""

    topic: str
    text: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="plain text, UTF-8")
    parser.add_argument("--small", action="store_true", help="a few steps only: does everything run?")
    arguments = parser.parse_args()
    started = time.monotonic()
    documents = own_documents(arguments.files) if arguments.files else python_documents()
    chats, held_out = prepare(documents)
    steps = (40, 20) if arguments.small else (None, None)
    txtgen("pretrain", "configs/quickstart.yaml", "--name", "quickstart", "--overwrite", *short(steps[0]))
    txtgen(
        "finetune", "configs/quickstart-chat.yaml", "--base", "runs/quickstart", "--name", "quickstart-chat",
        "--overwrite", *short(steps[1]),
    )  # fmt: skip
    opening = first_words(documents[0].text)
    print(f"\nThe pretrained model goes on from {opening!r}:", flush=True)
    txtgen("generate", "runs/quickstart", "--prompt", opening, "--max-new-tokens", "100", "--seed", "1")
    print("\nThe finetuned model answers a question:", flush=True)
    txtgen("generate", "runs/quickstart-chat", "--prompt", chats[0]["messages"][0]["content"])
    known, ended = measure(documents, held_out)
    print(f"\nwords of the pretrained model's text that occur in the corpus: {known:.1%}")
    print(f"answers to questions on held-out topics that end by themselves and name the topic: {ended} of 10")
    print(f"time: {time.monotonic() - started:.0f} s")
    if not arguments.small and (known < 0.95 or ended < 8):
        print("error: expected at least 95 % and 8 of 10", file=sys.stderr)
        return 1
    return 0


def short(steps: int | None) -> list[str]:
    """Flags that make a run as short as this."""
    return [] if steps is None else ["--steps", str(steps)]


def txtgen(*arguments: str) -> None:
    """Show a command as the user would type it, and run it."""
    print("\n$ txtgen " + " ".join(shlex.quote(argument) for argument in arguments), flush=True)
    subprocess.run([*TXTGEN, *arguments], check=True)


def python_documents() -> list[Document]:
    """The pages of `pydoc_data.topics`, which every CPython carries."""
    from pydoc_data.topics import topics

    return [Document(name, text) for name, text in sorted(topics.items())]


def own_documents(files: list[Path]) -> list[Document]:
    """The blank-line blocks of the user's files; without blank lines, their lines. Each block is a topic."""
    documents = []
    for path in files:
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        blocks = [block.strip() for block in re.split(r"\n[ \t]*\n", text)]
        if len(blocks) < 20:
            blocks = [line.strip() for line in text.split("\n")]
        documents += [Document(f"{path.stem}-{number}", block) for number, block in enumerate(blocks) if block]
    if len(documents) < 20:
        sys.exit("error: the quickstart needs at least 20 paragraphs or lines of text")
    return documents


def prepare(documents: list[Document]) -> tuple[list[Any], list[Any]]:
    """Write the corpus and the conversations made of it. Returns the conversations for training and held out."""
    text = FOLDER / "text"
    text.mkdir(parents=True, exist_ok=True)
    for old in text.glob("*.txt"):
        old.unlink()
    # Many short documents of one topic share a file, with blank lines between.
    by_file: dict[str, list[str]] = {}
    for number, document in enumerate(documents):
        name = document.topic if len(documents) < 200 else f"part-{number // 200:04d}"
        by_file.setdefault(re.sub(r"\W", "_", name), []).append(document.text)
    for name, texts in by_file.items():
        (text / f"{name}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")

    topics = sorted({document.topic for document in documents})
    random.Random(1).shuffle(topics)
    away = set(topics[: max(2, len(topics) // 10)])
    pairs = [(document.topic, *pair) for document in documents for pair in questions_and_answers(document)]
    seen = {subject for topic, subject, _ in pairs if topic not in away}
    train = [conversation(s, a, n) for n, (t, s, a) in enumerate(pairs) if t not in away]
    held_out = [conversation(s, a, n) for n, (t, s, a) in enumerate(pairs) if t in away and s not in seen]
    for name, chats in (("chats-train", train), ("chats-held-out", held_out)):
        lines = (json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    size = sum(len(document.text.encode()) for document in documents)
    print(f"corpus: {size:,} bytes in {FOLDER}/text; {len(train):,} conversations, {len(held_out):,} held out by topic")
    return train, held_out


def conversation(subject: str, answer: str, number: int) -> dict[str, Any]:
    """A question about the subject and its answer; the wording of the question rotates."""
    wordings = CHINESE_QUESTIONS if re.search(f"[{CJK}]", subject) else QUESTIONS
    question = wordings[number % len(wordings)].format(subject)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "subject": subject}


def questions_and_answers(document: Document) -> list[tuple[str, str]]:
    """Subjects in a document, each with a reply that names it and quotes what stands there."""
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n[ \t]*\n", document.text):
        lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
        if any(re.fullmatch(r"([*=~^\-])\1{2,}", line) for line in lines):
            continue  # a heading and its underline
        if paragraph.startswith("    ") or "::=" in paragraph:
            continue  # code and grammar
        chinese = re.search(f"[{CJK}]", paragraph)
        plain = ("\n" if chinese else " ").join(lines)
        for subject in subjects(plain):
            reply = shorten(plain)
            found.setdefault(subject, f"「{subject}」：{reply}" if chinese else f'"{subject}": {reply}')
    return list(found.items())


def subjects(paragraph: str) -> list[str]:
    """Terms that a paragraph quotes, and short runs of its words (or characters): many, for a model that is to learn
    to name whatever it is asked about, not to remember a list."""
    quoted = re.findall(r'"([^"\s][^"]*)"', paragraph)
    runs = []
    for clause in re.split(r"[^\w' -]|\n", paragraph):
        words = clause.split() if " " in clause.strip() else re.findall(f"[{CJK}]{{2,5}}", clause)
        length = 1
        while words:
            runs.append(" ".join(words[:length]))
            words, length = words[length:], length % 2 + 1
    return list(dict.fromkeys(term for term in quoted + runs if is_subject(term)))[:MAX_SUBJECTS]


def is_subject(term: str) -> bool:
    """Whether a term can be asked about: short, and of letters alone."""
    return 2 <= len(term) <= MAX_SUBJECT and all(word.isalpha() for word in term.split())


def shorten(text: str) -> str:
    """Whole sentences up to MAX_REPLY characters; of a longer first sentence, whole words."""
    if len(text) <= MAX_REPLY:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|[。！？]", text[:MAX_REPLY])]
    if ends:
        return text[: ends[-1]]
    return text[:MAX_REPLY].rsplit(" ", 1)[0]


def first_words(text: str) -> str:
    """A prompt: the first words of a text, or its first characters where words are not parted by spaces."""
    words = text.split()[:3]
    return " ".join(words) if len(words) == 3 and len(" ".join(words)) < 40 else text[:4]


def measure(documents: list[Document], held_out: list[Any]) -> tuple[float, int]:
    """The share of known words in sampled text, and how many of ten replies end and name what was asked."""
    import txtgen as package

    corpus = " ".join(document.text for document in documents)
    vocabulary = set(words_of(corpus))
    model = package.load("runs/quickstart")
    prompts = [first_words(document.text) for document in documents[:10]]
    texts = [str(generation) for generation in model.generate(prompts, max_new_tokens=100, seed=1)]
    words = [word for text in texts for word in whole_words(text)]
    known = sum(word in vocabulary for word in words) / max(1, len(words))
    chat = package.load("runs/quickstart-chat")
    asked = random.Random(2).sample(held_out, min(10, len(held_out)))
    replies = chat.generate([item["messages"][0]["content"] for item in asked])
    named = 0
    for item, reply in zip(asked, replies, strict=True):
        good = reply.finish_reason == "eos" and item["subject"].lower() in reply.text.lower()
        named += good
        print(f"  {'ok' if good else '--'}  {item['messages'][0]['content']}  ->  {reply.text[:100]!r}")
    return known, named


def words_of(text: str) -> list[str]:
    """Words of letters; a Chinese, Japanese or Korean character is a word of its own."""
    return re.findall(rf"[{CJK}]|[^\W\d_{CJK}]+", text)


def whole_words(text: str) -> list[str]:
    """The words of a generated text, less the first and the last, which its borders may have cut."""
    return words_of(text)[1:-1]


if __name__ == "__main__":
    sys.exit(main())
