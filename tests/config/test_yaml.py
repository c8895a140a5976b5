"""The reader: YAML that means what it says, hostile files refused cheaply, and texts that survive writing."""

import json
import math
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from config_texts import AWKWARD
from hypothesis import given
from hypothesis import strategies as st

from txtgen.config.yaml import MAX_BYTES, MAX_DEPTH, dump_yaml, read_yaml, read_yaml_file, scalar
from txtgen.errors import ConfigError

# fmt: off
VALUES = {
    "3e-4": 3e-4, "1e-4": 1e-4, "1E5": 1e5, ".5": 0.5, "-.5e1": -5.0, "1.": 1.0, "01.5": 1.5,
    "0": 0, "-0": 0, "+12": 12, "0x1F": 31, "0o17": 15,
    "true": True, "True": True, "TRUE": True, "false": False,
    "null": None, "~": None, "": None, "NULL": None,
}
TEXTS = [
    "no", "yes", "on", "off", "No", "y", "tRUE", "nUll", "010", "-010", "00", "12:30:45", "2001-01-01", "1_000",
    "0b11", "0o8", "0xg", ".", "-", "+", "e5", "1e", "1e+", "1.2.3", "inf", "nan", "Infinity", ".infinity", "=",
    "<<", "١", "1\n",
]
# fmt: on


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.mark.parametrize("text", TEXTS)
def test_scalars_that_are_text(text: str) -> None:
    assert scalar(text) == text


def test_scalars_that_are_not_finite() -> None:
    assert scalar(".inf") == scalar("+.INF") == scalar("1e999") == math.inf
    assert scalar("-.inf") == -math.inf
    assert math.isnan(float(scalar(".nan")))  # type: ignore[arg-type]
    assert scalar("9" * 100_000) == math.inf, "and fast: no conversion of a hundred thousand digits"


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_as_python_and_json_write_them(number: float | int) -> None:
    assert scalar(repr(number)) == number == scalar(json.dumps(number))


def test_keys_and_quotes() -> None:
    tree = read_yaml("no: 1\non: 2\n'3': {\"x\": '4'}\n? y\n: [null, ]\n", "f").tree
    assert tree == {"no": 1, "on": 2, "3": {"x": "4"}, "y": [None]}


def test_pairs_of_surrogate_escapes_are_one_character() -> None:
    assert read_yaml('a: "\\ud83d\\ude00"', "f").tree == {"a": "😀"}


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        ("", "f:1:1", "keys and values"),
        ("# only a comment\n", "f:1:1", "keys and values"),
        ("- a\n- b\n", "f:1:1", "keys and values"),
        ("just text", "f:1:1", "keys and values"),
        ("a: 1\n---\nb: 2\n", "f:2:1", "second document"),
        ("a: 1\n...\nfoo", "f:3:1", "after the end"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1", "first in line 1"),
        ("a: {b: 1, b: 2}", "f:1:11", "a.b: the key is given twice"),
        ("a:\n\tb: 1\n", "f:2:1", "tab"),
        ("a: b: c", "f:1:5", "colon"),
        ("a: [1, 2", "f:1:9", "brackets"),
        ("a: 'x", "f:1:6", "never closed"),
        ("a: 1\n - b: 2\n", "f:2:5", "colon"),
        ('a: "\\U00110000"', "f:1:", "escape"),
        ("a: @x", "f:1:4", "quotes"),
        ("a: *.txt", "f:1:5", "quotes"),
        ("a: \x07", "f:1:4", "U+0007"),
        ("ä: 1\n\0", "f:2:1", "U+0000"),
        ("ä: 1\nb: ".encode() + b"\xff\xfe", "f:2:4", "byte 0xff at offset 9"),
        ("a: ä".encode("latin-1"), "f:1:4", "UTF-8"),
        ("a: 1".encode("utf-16"), "f", "UTF-16"),
        (b"PK\x03\x04rest", "f", "checkpoint"),
        (b"\x80\x02}q\x00.", "f", "checkpoint"),
        ("1: a", "f:1:1", "key must be text, got 1"),
        ("true: a", "f:1:1", "key must be text"),
        ("null: a", "f:1:1", "key must be text"),
        ("? [1]\n: 2", "f:1:3", "key must be text"),
        ("a: !!python/object/apply:os.system ['x']", "f:1:4", "tags"),
        ("a: !!str 1", "f:1:4", "tags"),
        ("a: &x 1", "f:1:4", "anchors"),
        ("a: b\nc: *d", "f:2:4", "aliases"),
    ],
)
def test_bad_yaml(data: str | bytes, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(data, "f")
    assert caught.value.where.startswith(place)
    assert words in str(caught.value)
    assert "found" not in str(caught.value), "the parser's own words must not come through"


def test_mistakes_of_reading_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml("a: 1\na: 2\nb: !!int 3\n4: 5\n", "f")
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 mistakes in f:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == ["f:2:1", "f:3:4", "f:4:1"]


def test_byte_order_mark_and_line_ends() -> None:
    assert read_yaml("\ufeffa: 1\r\nb: 2\r\n".encode(), "f").tree == {"a": 1, "b": 2}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (BOMB, "anchors and aliases"),
        ("[" * 5000, f"deeper than {MAX_DEPTH}"),
        ("{a: " * 5000, f"deeper than {MAX_DEPTH}"),
        ("- " * 5000, f"deeper than {MAX_DEPTH}"),
        ("a: 1\n" * 2_000_000, f"larger than {MAX_BYTES:,}"),
    ],
    ids=["aliases", "brackets", "braces", "dashes", "large"],
)
def test_bombs_fail_fast_in_little_memory(data: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(data)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ConfigError, match=words):
        read_yaml_file(path)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 30_000_000


def test_depth_is_bounded_where_it_should_be() -> None:
    read_yaml("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "f")
    with pytest.raises(ConfigError, match="deeper"):
        read_yaml("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")


def test_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtgen.config.yaml.MAX_VALUES", 100)
    read_yaml(f"a: [{'1,' * 97}]", "f")
    with pytest.raises(ConfigError, match=r"a\.97: the configuration holds more than 100 values; f:1:199"):
        read_yaml(f"a: [{'1,' * 98}]", "f")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a: 1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04" + bytes(2_000_000))
    for name in ("missing.yaml", ".", "file/below.yaml", "loop", "model.pth", "x" * 300, "a\0b"):
        with pytest.raises(ConfigError) as caught:
            read_yaml_file(tmp_path / name)
        assert caught.value.exit_code == 3
        assert caught.value.where == str(tmp_path / name)
        assert caught.value.fix


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        read_yaml_file(path)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_as_key_and_value(text: str) -> None:
    tree = {"a": {text: text}, "b": [text, {"c": text}]}
    assert read_yaml(dump_yaml(tree), "f").tree == tree


def test_dump_is_pleasant_to_read() -> None:
    text = dump_yaml({"a": 1e-05, "b": "text 字 😀", "c": [], "d": ["x"] * 2, "e": None, "f": "long text " * 30})
    assert "b: text 字 😀\n" in text
    assert "c: []\n" in text
    assert "&" not in text
    assert len(text.splitlines()) == 8, "long text is not folded"
    shared = ["x"]
    assert "*" not in dump_yaml({"a": shared, "b": shared})
