"""Pretrain, finetune and generate on the documentation inside Python, or on the user's own text files."""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("quickstart")
TXTGEN = [sys.executable, "-m", "txtgen"]
QUESTIONS = ('What is "{}"?', 'Tell me about "{}".', 'Explain "{}".', 'What do you know about "{}"?')
CHINESE_QUESTIONS = ("「{}」何解？", "「{}」是何意？", "「{}」如何？")
"""The same in traditional and simplified characters."""
HAN = r"\u3400-\u9fff\U00020000-\U0003ffff"
UNSPACED = rf"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff{HAN}"
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
CJK = rf"\u3040-\u30ff\uac00-\ud7af{HAN}"
MAX_QUOTE = 32
MAX_UNSPACED_QUOTE = 20
MAX_SUBJECT = 18
MAX_TIMES = 2
MAX_CONVERSATIONS = 30_000
MIN_COUNT = 12
"""A subject is made of characters that occur this often: the model has to know a character to repeat it."""
MAX_CHARACTERS = 500
"""A text of more different characters is cut into characters, each with a piece of its own."""


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
    if not chats or not held_out:
        sys.exit("error: too few different words to ask about; give a longer or more varied text")
    steps = (40, 20) if arguments.small else (None, None)
    txtgen(
        "pretrain", "configs/quickstart.yaml", "--name", "quickstart", "--overwrite",
        *tokenizer_settings(documents), *short(steps[0]),
    )  # fmt: skip
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
    if arguments.small or (known >= 0.95 and ended >= 8):
        return 0
    if arguments.files:
        print("A larger or plainer text, or more steps, give better results.")
        return 0
    print("error: expected at least 95 % and 8 of 10", file=sys.stderr)
    return 1


def short(steps: int | None) -> list[str]:
    """Flags that make a run as short as this."""
    return [] if steps is None else ["--steps", str(steps)]


def tokenizer_settings(documents: list[Document]) -> list[str]:
    """Flags for a script of many characters, none of which shall be spelt in bytes; none for an alphabet."""
    characters = len(set("".join(document.text for document in documents)))
    if characters <= MAX_CHARACTERS:
        return []
    settings = ("algorithm=char", f"vocab_size={min(8000, characters + 300)}", "character_coverage=1.0")
    return [word for setting in settings for word in ("--set", f"tokenizer.{setting}")]


def txtgen(*arguments: str) -> None:
    """Show a command as the user would type it, and run it."""
    print("\n$ txtgen " + " ".join(shlex.quote(argument) for argument in arguments), flush=True)
    code = subprocess.run([*TXTGEN, *arguments], check=False).returncode
    if code:
        sys.exit(code)


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
    counts = Counter(character for document in documents for character in document.text)
    common = {character for character, count in counts.items() if count >= MIN_COUNT}
    pairs = [(document.topic, *pair) for document in documents for pair in subjects_and_sentences(document, common)]
    random.Random(3).shuffle(pairs)
    pairs = list(varied(pairs))[:MAX_CONVERSATIONS]
    seen = {subject for topic, subject, _ in pairs if topic not in away}
    train = [conversation(s, a, n) for n, (t, s, a) in enumerate(pairs) if t not in away]
    held_out = [conversation(s, a, n) for n, (t, s, a) in enumerate(pairs) if t in away and s not in seen]
    for name, chats in (("chats-train", train), ("chats-held-out", held_out)):
        lines = (json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    size = sum(len(document.text.encode()) for document in documents)
    print(f"corpus: {size:,} bytes in {FOLDER}/text; {len(train):,} conversations, {len(held_out):,} held out by topic")
    return train, held_out


def varied(pairs: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """The pairs (topic, subject, sentence) with no subject more than MAX_TIMES. A model that sees few subjects often
    learns them by heart; one that sees many learns to repeat what it is asked about."""
    times = Counter[str]()
    for pair in pairs:
        times[pair[1]] += 1
        if times[pair[1]] <= MAX_TIMES:
            yield pair


def conversation(subject: str, sentence: str, number: int) -> dict[str, Any]:
    """A question about the subject and an answer that names it; the wording of the question rotates."""
    chinese = re.search(f"[{HAN}]", subject)
    wordings = CHINESE_QUESTIONS if chinese else QUESTIONS
    question = wordings[number % len(wordings)].format(subject)
    answer = f"「{subject}」：{sentence}" if chinese else f'"{subject}": {sentence}'
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "subject": subject}


def subjects_and_sentences(document: Document, common: set[str]) -> list[tuple[str, str]]:
    """Subjects in a document, each with a sentence in which it stands."""
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n[ \t]*\n", document.text):
        lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
        if any(re.fullmatch(r"([*=~^\-])\1{2,}", line) for line in lines):
            continue  # a heading and its underline
        if paragraph.startswith("    ") or "::=" in paragraph:
            continue  # code and grammar
        unspaced = re.search(f"[{UNSPACED}]", paragraph) is not None
        plain = ("\n" if unspaced else " ").join(lines)
        for subject in subjects(plain, common):
            found.setdefault(subject, quote(plain, subject, MAX_UNSPACED_QUOTE if unspaced else MAX_QUOTE))
    return list(found.items())


def subjects(paragraph: str, common: set[str]) -> list[str]:
    """Terms that a paragraph quotes, its words, and two words in a row; where no spaces part words, two or three
    characters in a row."""
    quoted = re.findall(r'"([^"\s][^"]*)"', paragraph)
    runs = []
    for clause in clauses(paragraph):
        if re.search(f"[{UNSPACED}]", clause):
            runs += [run for word in clause.split() for run in runs_of(word, 2, "")]
        else:
            runs += runs_of(clause.split(), 1, " ")
    return [term for term in dict.fromkeys(quoted + runs) if is_subject(term, common)]


def runs_of(parts: Sequence[str], shortest: int, joint: str) -> list[str]:
    """All runs of `shortest` parts and of one more, joined."""
    lengths = (shortest, shortest + 1)
    return [joint.join(parts[start : start + length]) for length in lengths for start in range(len(parts) - length + 1)]


def clauses(paragraph: str) -> list[str]:
    """A paragraph cut at everything but letters, digits and what stands between them."""
    inside = (c if unicodedata.category(c)[0] in "LMN" or c in "_' -" else "\n" for c in paragraph)
    return [clause.strip() for clause in "".join(inside).split("\n") if clause.strip()]


def is_subject(term: str, common: set[str]) -> bool:
    """Whether a term can be asked about: short, and of common letters alone."""
    letters = "".join(term.split())
    return 2 <= len(term) <= MAX_SUBJECT and common.issuperset(letters) and all(is_letter(c) for c in letters)


def is_letter(character: str) -> bool:
    """Whether it belongs to a word; in many scripts vowels are marks on the letter before."""
    return unicodedata.category(character)[0] in "LM"


def quote(text: str, subject: str, longest: int) -> str:
    """The sentence that holds the subject; of a longer one, its first words."""
    sentences = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n", text)
    sentence = next((sentence for sentence in sentences if subject in sentence), text)
    return sentence if len(sentence) <= longest else sentence[:longest].rsplit(" ", 1)[0]


def first_words(text: str) -> str:
    """A prompt: the first words of a text, or its first characters where words are not parted by spaces."""
    lines = text.strip().split("\n")
    if re.search(f"[{UNSPACED}]", text):
        return max(lines, key=len)[:4]  # not of a title
    return " ".join(lines[0].split()[:3])[:40]


def measure(documents: list[Document], held_out: list[Any]) -> tuple[float, int]:
    """The share of known words in sampled text, and how many of ten replies end and name what was asked."""
    import txtgen as package

    corpus = " ".join(document.text for document in documents)
    vocabulary = set(words_of(corpus))
    model = package.load("runs/quickstart")
    tenth = len(documents) // 10
    prompts = [first_words(document.text) for document in documents[tenth // 2 :: tenth][:10]]
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
    letters = "".join(character if is_letter(character) else " " for character in text)
    return re.findall(rf"[{CJK}]|[^\s{CJK}]+", letters)


def whole_words(text: str) -> list[str]:
    """The words of a generated text, less the first and the last, which its borders may have cut."""
    return words_of(text)[1:-1]


if __name__ == "__main__":
    sys.exit(main())
