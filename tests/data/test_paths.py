import os
import socket

import pytest

from txtgen.data.paths import resolve, resolve_one, stat_file
from txtgen.errors import DataError


@pytest.fixture
def tree(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden", "deep/er/c.txt", "deep/.git/d.txt", "deep/e.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(tree, found):
    return [os.path.relpath(path, tree) for path in found]


def test_folder_means_all_files_below_it_sorted_without_hidden_ones(tree):
    assert names(tree, resolve(str(tree))) == ["a.txt", "b.txt", "deep/e.md", "deep/er/c.txt"]


def test_patterns_mean_files_only_and_each_file_once(tree):
    assert names(tree, resolve(f"{tree}/*")) == ["a.txt", "b.txt"]
    assert names(tree, resolve(f"{tree}/**/*.txt")) == ["a.txt", "b.txt", "deep/er/c.txt"]
    assert names(tree, resolve([f"{tree}/b.txt", f"{tree}/*.txt", f"{tree}/b.txt"])) == ["a.txt", "b.txt"]


def test_a_name_with_brackets_is_a_file_if_there_is_one(tmp_path):
    path = tmp_path / "book [1].txt"
    path.write_text("x")
    assert resolve(str(path)) == [str(path)]


def test_home_is_expanded(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert names(tree, resolve("~/a.txt")) == ["a.txt"]


def test_a_circle_of_links_between_folders_ends(tree):
    (tree / "deep" / "up").symlink_to(tree)
    assert len(resolve(str(tree))) == 4


@pytest.mark.parametrize("name", ["b.tx", "*.texts", "deep/er/d.txt", "dep/x.txt"])
def test_no_match_names_pattern_folder_and_similar_names(tree, monkeypatch, name):
    monkeypatch.chdir(tree)
    with pytest.raises(DataError) as caught:
        resolve(name)
    assert f"'{name}'" in caught.value.what
    assert str(tree) in caught.value.where
    near = {"b.tx": "'b.txt'", "deep/er/d.txt": "'deep/er/c.txt'", "dep/x.txt": "'deep'", "*.texts": "'b.txt'"}[name]
    assert near in caught.value.fix


@pytest.mark.parametrize("name", ["-", "a\0b"])
def test_names_that_can_be_no_corpus(name):
    with pytest.raises(DataError):
        resolve(name)


def test_empty_folder_and_several_files_where_one_is_asked_for(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        resolve(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="means 2 files"):
        resolve_one(f"{tree}/*.txt")


def test_what_is_not_a_regular_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        (tmp_path / "folder.txt").mkdir()
        faults = {
            "pipe": "a pipe",
            "socket": "a socket",
            "broken": "broken link",
            "circle": "circle",
            "folder.txt": "is a folder",
            "gone": "does not exist",
        }
        for name, what in faults.items():
            with pytest.raises(DataError, match=what):
                stat_file(str(tmp_path / name))
    with pytest.raises(DataError, match="a device"):
        stat_file("/dev/null")
