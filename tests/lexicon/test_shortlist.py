"""Short-lists: what they hold, and files that are not what they should be."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from txtgen.errors import CheckpointError
from txtgen.lexicon import Shortlist


def shortlist(tokenizer, other="") -> Shortlist:
    candidates = np.full((len(tokenizer), 2), -1, dtype=np.int32)
    candidates[5], candidates[6] = [40, 41], [40, -1]
    print_of = tokenizer.fingerprint()
    return Shortlist(np.array([3, 9], dtype=np.int32), candidates, other or print_of, print_of)


def test_a_list_has_what_is_frequent_what_source_tokens_bring_and_they_themselves(tokenizer):
    assert shortlist(tokenizer).tokens([6, 5, 7]) == [3, 5, 6, 7, 9, 40, 41]
    assert shortlist(tokenizer).tokens([6]) == [3, 6, 9, 40]
    assert shortlist(tokenizer).tokens([]) == [3, 9]
    assert shortlist(tokenizer, other="another").tokens([6, 5, 7]) == [3, 9, 40, 41]
    nothing = np.zeros((len(tokenizer), 0), dtype=np.int32)
    assert Shortlist(nothing[0], nothing, "one", "another").tokens([6]) == []


def test_coverage_counts_tokens_of_targets(tokenizer):
    found = shortlist(tokenizer).coverage([([6], [3, 40, 40, 8]), ([5], [41, 5])])
    assert found.share == 5 / 6
    assert found.tokens == (4 + 5) / 2


def test_a_file_gives_back_what_was_saved(tokenizer, tmp_path):
    made = shortlist(tokenizer)
    made.save(tmp_path / "a")
    read = Shortlist.load(tmp_path / "a")
    assert read.tokens([6, 5]) == made.tokens([6, 5])
    assert read.fingerprint() == made.fingerprint()
    read.check(tokenizer, tokenizer)
    changed = Shortlist(made.frequent[:1], made.candidates, made.source_tokenizer, made.tokenizer)
    assert changed.fingerprint() != made.fingerprint()


def test_another_tokenizer_is_refused_on_either_side(tokenizer):
    made, other = shortlist(tokenizer), shortlist(tokenizer, other="0123456789abcdef0")
    with pytest.raises(CheckpointError, match="another tokenizer of the source \\(0123456789abcdef\\)"):
        other.check(tokenizer, tokenizer)
    with pytest.raises(CheckpointError, match="another tokenizer of the target"):
        Shortlist(made.frequent, made.candidates, made.source_tokenizer, "x").check(tokenizer, tokenizer)


def test_tokens_that_are_not_there_are_refused(tokenizer):
    made = shortlist(tokenizer)
    for frequent, candidates in (
        (np.array([len(tokenizer)], dtype=np.int32), made.candidates),
        (made.frequent, made.candidates[:-1]),
        (made.frequent, np.where(made.candidates == 40, len(tokenizer), made.candidates)),
        (np.array([3, -1], dtype=np.int32), made.candidates),
        (made.frequent, np.where(made.candidates == 40, -2, made.candidates)),
    ):
        with pytest.raises(CheckpointError, match="it has other tokens"):
            Shortlist(frequent, candidates, made.source_tokenizer, made.tokenizer).check(tokenizer, tokenizer)


def test_files_that_are_no_short_lists(tokenizer, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(CheckpointError, match="no such short-list"):
        Shortlist.load(path)
    shortlist(tokenizer).save(path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04 and so on", whole[:-1], whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cut short or no safetensors"):
            Shortlist.load(path)
    numbers = {"frequent": np.zeros(3, dtype=np.int32), "candidates": np.zeros((3, 2), dtype=np.int32)}
    told = {"format": "txtgen short-list 1"}
    for tensors, metadata, what in (
        (numbers, {}, "no short-list of this version"),
        (numbers, {"format": "txtgen short-list 2"}, "no short-list of this version"),
        ({"frequent": numbers["frequent"]}, told, "no short-list of this version"),
        (numbers | {"frequent": np.zeros(3)}, told, "frequent is not one"),
        (numbers | {"candidates": np.zeros(3, dtype=np.int32)}, told, "candidates is not one"),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(CheckpointError, match=what):
            Shortlist.load(path)
