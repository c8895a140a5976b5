"""What the quickstart makes of a text before it trains anything."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "quickstart.py"


@pytest.fixture
def quickstart(tmp_path, monkeypatch) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quickstart", module)
    spec.loader.exec_module(module)
    return module


def ask(quickstart: ModuleType, text: str) -> dict[str, str]:
    return dict(quickstart.subjects_and_sentences(quickstart.Document("topic", text), set(text)))


def test_subjects_are_words_and_pairs_of_words_within_a_clause(quickstart) -> None:
    found = ask(quickstart, "The old cat\nsat down. It slept, well")
    assert set(found) == {
        "The", "old", "cat", "sat", "down", "It", "slept", "well",
        "The old", "old cat", "cat sat", "sat down", "It slept",
    }  # fmt: skip
    assert found["cat sat"] == "The old cat sat down."
    assert found["well"] == "It slept, well"


def test_without_spaces_between_words_subjects_are_runs_of_characters(quickstart) -> None:
    found = ask(quickstart, "靜夜思\n牀前明月光，疑是霜。舉頭")
    assert {"靜夜", "夜思", "靜夜思", "牀前", "前明月", "月光", "疑是", "舉頭"} <= set(found)
    assert not {"思牀", "光疑", "霜舉"} & set(found)
    assert found["明月"] == "牀前明月光，疑是霜。"


@pytest.mark.parametrize("word", ["हिन्दी", "слово", "tiếng", "עִבְרִית"])
def test_marks_belong_to_the_letters_before_them(quickstart, word) -> None:
    assert set(ask(quickstart, f"{word} 12")) == {word}
    assert quickstart.words_of(f"({word})") == [word]


def test_the_answer_names_the_subject_as_the_question_does(quickstart) -> None:
    asked, answered = quickstart.conversation("明月", "牀前明月光。", 0)["messages"]
    assert (asked["content"], answered["content"]) == ("「明月」何解？", "「明月」：牀前明月光。")
    asked, answered = quickstart.conversation("cat", "The cat sat.", 5)["messages"]
    assert (asked["content"], answered["content"]) == ('Tell me about "cat".', '"cat": The cat sat.')


def test_rare_characters_are_not_asked_about(quickstart) -> None:
    assert quickstart.subjects("ab cd", set("abc")) == ["ab"]


def test_a_script_of_many_characters_gets_a_piece_for_each(quickstart) -> None:
    many = "".join(chr(0x4E00 + number) for number in range(1000))
    assert quickstart.tokenizer_settings([quickstart.Document("t", "plain text")]) == []
    settings = quickstart.tokenizer_settings([quickstart.Document("t", many)])
    assert settings[1::2] == [
        "tokenizer.algorithm=char",
        "tokenizer.vocab_size=1300",
        "tokenizer.character_coverage=1.0",
    ]


def test_what_is_asked_of_held_out_topics_is_never_asked_in_training(quickstart) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    documents = [quickstart.Document(f"t{n}", f"{words[n % 10]} {words[n % 7]} {words[n % 3]}.") for n in range(60)]
    train, held_out = quickstart.prepare(documents)
    assert train
    assert held_out
    assert not {chat["subject"] for chat in train} & {chat["subject"] for chat in held_out}
    corpus = "".join(path.read_text() for path in Path("quickstart/text").iterdir())
    assert all(document.text in corpus for document in documents)


def test_known_words(quickstart) -> None:
    assert quickstart.words_of("naïve x_1 東京 타워") == ["naïve", "x", "東", "京", "타", "워"]
    assert quickstart.first_words("Call me Ishmael. Some") == "Call me Ishmael."
    assert quickstart.first_words("春曉\n春眠不覺曉") == "春眠不覺"
