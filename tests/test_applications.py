"""What the scripts of the worked applications prepare and count."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    folder = str(Path(__file__).parents[1] / "scripts")
    sys.path.insert(0, folder)
    yield {name: import_module(name) for name in ("application_data", "authors", "applications")}
    sys.path.remove(folder)


def test_books_are_cut_where_a_chapter_begins_and_look_alike(scripts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scripts["application_data"], "OUT", tmp_path / "out")
    (tmp_path / "in").mkdir()
    chapters = [f"CHAPTER {number}\n\n“It was\nlate—very,” he said.\n" + "\n\nword word\n" * 40 for number in range(50)]
    (tmp_path / "in" / "novel.txt").write_text("\n".join(chapters), encoding="utf-8")
    scripts["application_data"].books(tmp_path / "in")
    parts = [(tmp_path / "out/books" / name / "novel.txt").read_text() for name in ("train", "classifier", "test")]
    assert [part.count("CHAPTER") for part in parts] == [44, 4, 2]
    assert all(part.startswith("CHAPTER") for part in parts)
    assert '\n\n"It was late--very," he said.\n\n' in parts[0]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。", "五言絕句"),
        ("春眠不覺曉，處處聞啼鳥。\n" * 4, "五言律詩"),
        ("春眠不覺曉，處處聞啼鳥。\n" * 3, "五言古詩"),
        ("月落烏啼霜滿天，江楓漁火對愁眠。\n" * 2, "七言絕句"),
        ("月落烏啼霜滿天，江楓漁火。\n" * 2, None),
        ("月落烏啼霜滿天，", None),
    ],
)
def test_forms_are_lengths_and_numbers_of_lines(scripts, text, form) -> None:
    found = list(scripts["application_data"].by_form([{"title": "題", "text": text}]))
    assert [row["form"] for row in found] == ([form] if form else [])
    assert all(row["source"] == f"{form}：題" for row in found)
    if form:
        assert scripts["applications"].keeps_width(text, form)
        assert not scripts["applications"].keeps_width(text + "好。", form)
        assert not scripts["applications"].keeps_width(text, "七言" if form.startswith("五") else "五言")


@pytest.mark.parametrize("form", ["五言絕句", "七言絕句", "五言律詩", "七言律詩", "五言古詩", "七言古詩"])
def test_what_a_metre_allows_keeps_the_form(scripts, form) -> None:
    line = "月落烏啼霜滿天"[: 5 if form.startswith("五") else 7]
    allowed = [
        couplets
        for couplets in range(1, 12)
        if re.fullmatch(scripts["applications"].metre(form), "\n".join([f"{line}，{line}。"] * couplets))
    ]
    assert allowed == {"絕句": [2], "律詩": [4], "古詩": [*range(2, 9)]}[form[2:]]
    assert scripts["applications"].keeps_width(f"{line}，{line}。\n{line}，{line}。", form)


def test_values_are_what_a_reply_must_copy(scripts) -> None:
    found = scripts["applications"].VALUE.findall(
        "Please confirm: a table for 2 at Puerto 27 in San Francisco on March 8th, 1:15 pm. It costs $1,020. "
        "Call 415-441-5678."
    )
    assert found == ["2", "Puerto 27", "San Francisco", "March 8", "1:15 pm", "$1,020", "415-441-5678"]
    stands = scripts["applications"].stands
    assert stands("March 8", "on the march 8th, please")
    assert stands("2", "for 2.")
    assert not stands("2", "at 12 or 2:30")
    assert not stands("20", "$20")


def test_an_author_is_told_by_how_he_writes_not_by_names(scripts) -> None:
    one, other = "the whale and the sea rolled on " * 300, "she was of an opinion that he ought " * 300
    authors = scripts["authors"].Authors({"One": one, "Other": other})
    assert authors.likeliest("and the rolling sea") == "One"
    assert authors.likeliest("he was of the opinion") == "Other"
    assert scripts["authors"].ngrams("Holmes saw Watson") == scripts["authors"].ngrams("Ahab saw Pip")


def test_a_reply_is_drawn_with_all_turns_before_it(scripts, tmp_path) -> None:
    data, applications = scripts["application_data"], scripts["applications"]
    turns = [{"role": role, "content": f"{number}"} for number, role in enumerate(["user", "assistant"] * 3)]
    data.write_jsonl(tmp_path / "chats.jsonl", [{"messages": turns}] * 20)
    found = list(applications.replies(tmp_path / "chats.jsonl", 10, seed=0))
    assert len(found) == 10
    assert {reply for _, reply in found} == {"1", "3", "5"}
    assert all(before == turns[: int(reply)] for before, reply in found)
    assert found == list(applications.replies(tmp_path / "chats.jsonl", 10, seed=0))
