"""What files on the command line are taken for."""

import gzip
import json
from pathlib import Path

import pytest

from txtgen.commands.sources import guess_source
from txtgen.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, value: object) -> str:
    content = value if isinstance(value, str) else json.dumps(value)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes((gzip.compress if path.endswith(".gz") else bytes)((content + "\n").encode()))
    return path


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("a.txt", "text", {"kind": "text", "documents": "line"}),
        ("a.md.gz", "text", {"kind": "text", "documents": "line"}),
        ("a.tsv", "a\tb", {"kind": "tsv"}),
        ("a.jsonl", {"text": ""}, {"kind": "jsonl"}),
        ("a.jsonl.gz", {"messages": []}, {"kind": "chat"}),
        (
            "a.jsonl",
            {"question": "", "answer": ""},
            {"kind": "jsonl_pairs", "source_field": "question", "target_field": "answer"},
        ),
        (
            "a.jsonl",
            {"instruction": "", "input": "", "output": ""},
            {"kind": "jsonl_pairs", "source_field": ["instruction", "input"], "target_field": "output"},
        ),
    ],
)
def test_a_file_is_known_by_its_ending_and_first_line(folder, name, value, kind) -> None:
    path = write(name, value)
    assert guess_source([path], documents="line") == {**kind, "path": path}


def test_a_folder_is_what_its_files_are(folder) -> None:
    write("chats/a.jsonl", {"messages": []})
    write("chats/b.jsonl", {"messages": [], "source": "x"})
    assert guess_source(["chats"]) == {"kind": "chat", "path": "chats"}
    assert guess_source(["chats/*.jsonl", "chats"]) == {"kind": "chat", "path": ["chats/*.jsonl", "chats"]}


def test_a_mixture_is_refused(folder) -> None:
    text, tsv = write("d/a.txt", "text"), write("d/b.tsv", "a\tb")
    chats, pairs = write("e/c.jsonl", {"messages": []}), write("e/d.jsonl", {"question": "", "answer": ""})
    for paths in ([text, tsv], [tsv, text], ["d"], ["d/*"]):
        with pytest.raises(DataError, match=r"different kinds: d/a.txt \(text\) and d/b.tsv \(tsv\).*one kind"):
            guess_source(paths)
    with pytest.raises(DataError, match=r"c.jsonl \(chat\) and e/d.jsonl \(jsonl_pairs of question and answer\)"):
        guess_source([chats, pairs])


def test_one_target_belongs_to_one_source(folder) -> None:
    assert guess_source(["a.en"], "a.de") == {"kind": "parallel", "source_path": "a.en", "target_path": "a.de"}
    with pytest.raises(DataError, match="one target for 2 sources"):
        guess_source(["a.en", "b.en"], "a.de")


def test_files_that_tell_nothing_are_refused(folder) -> None:
    for value in ({"body": ""}, [1], "no JSON"):
        with pytest.raises(DataError, match=r"a\.jsonl"):
            guess_source([write("a.jsonl", value)])
    with pytest.raises(DataError, match="no file matches"):
        guess_source(["missing.txt"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(b"{}\n", mtime=0)[:10] + b"\xff" * 40, "is damaged"),
        (gzip.compress(b"{}\n", mtime=0)[:-10], "is cut off"),
        (b'{"text": ""}\n', "is not gzip"),
        (gzip.compress('{"text": ""}\n'.encode("utf-16"), mtime=0), "looks like UTF-16"),
    ],
)
def test_a_file_that_is_damaged_is_told_by_name(folder, content, told) -> None:
    Path("a.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=f"'a.jsonl.gz' {told}"):
        guess_source(["a.jsonl.gz"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_first_line_may_be_long_and_follow_a_byte_order_mark(folder, name) -> None:
    lines = "\ufeff" + json.dumps({"messages": ["猫" * 200_000]}) + '\n{"text": ""}'
    assert guess_source([write(name, lines)])["kind"] == "chat"
    with pytest.raises(DataError, match="first line is not a JSON object"):
        guess_source([write(name, json.dumps({"text": "a" * (1 << 23)}))])
