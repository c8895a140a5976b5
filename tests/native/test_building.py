import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import pytest

from txtgen.native import UnavailableError, building
from txtgen.native.bindings import STRUCTURES, Library
from txtgen.native.building import cache_folder, find_compiler, find_whole, fingerprint, refuse_unsafe

load_library = building.load_library.__wrapped__  # what a new process would find

COMPILER = """#!{python}
import shutil, sys
with open({calls!r}, "a") as calls:
    calls.write("called\\n")
output = sys.argv[sys.argv.index("-o") + 1]
{action}
"""


@pytest.fixture
def built() -> Path:
    """The library as a real compiler makes it."""
    try:
        building.load_library()
    except UnavailableError as error:
        pytest.skip(f"no machine code: {error}")
    path = find_whole(cache_folder(), f"native-{fingerprint(find_compiler())}")
    assert path is not None
    return path


@pytest.fixture
def compiler(tmp_path, monkeypatch, built):
    """Replaces the compiler by a script that is quicker; returns how often it was called so far."""
    calls = tmp_path / "calls"

    def replace(action: str):
        script = tmp_path / "compiler"
        script.write_text(COMPILER.format(python=sys.executable, calls=str(calls), action=action))
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return lambda: len(calls.read_text().splitlines()) if calls.exists() else 0

    return replace


def copying(built: Path) -> str:
    return f"shutil.copy({str(built)!r}, output)"


def test_it_is_built_once(compiler, built):
    calls = compiler(copying(built))
    for _ in range(3):
        assert isinstance(load_library(), Library)
    assert calls() == 1
    (library,) = cache_folder().iterdir()
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


@pytest.mark.parametrize("changed", ["FLAGS", "processor", "SOURCES"])
def test_it_is_built_again_for_another_processor_compiler_or_source(compiler, built, monkeypatch, tmp_path, changed):
    calls = compiler(copying(built))
    load_library()
    if changed == "SOURCES":
        shutil.copytree(building.SOURCES, tmp_path / "cpp")
        (tmp_path / "cpp" / "team.h").write_text("// nothing\n")
        monkeypatch.setattr(building, "SOURCES", tmp_path / "cpp")
    else:
        monkeypatch.setattr(building, changed, ("-O2",) if changed == "FLAGS" else lambda: "another one")
    load_library()
    assert calls() == 2


def test_two_processes_may_build_at_once(compiler, built):
    compiler(f"import time; time.sleep(0.3); {copying(built)}")
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_library())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert [path.suffix for path in cache_folder().iterdir()] == [".so"]


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"no C\+\+ compiler is installed \(looked for c\+\+, g\+\+, clang"):
        load_library()
    monkeypatch.setenv("CXX", "missing")
    with pytest.raises(UnavailableError, match="looked for missing"):
        load_library()


def test_a_compiler_that_fails_is_told_of(compiler):
    compiler('sys.exit("x.h:3: note: hm\\nx.h:7: error: what is this?")')
    with pytest.raises(UnavailableError, match=r"compiler failed: x.h:7: error: what is this\?"):
        load_library()
    assert list(cache_folder().iterdir()) == []


def test_a_compiler_that_makes_nothing(compiler):
    compiler("")
    with pytest.raises(UnavailableError, match="failed: it says nothing"):
        load_library()


def test_a_compiler_that_never_ends(compiler, monkeypatch):
    monkeypatch.setattr(building, "MOST_SECONDS", 0.2)
    compiler("import time; time.sleep(60)")
    with pytest.raises(UnavailableError, match="took more than 0 s"):
        load_library()


@pytest.mark.parametrize("content", [b"", b"no library", None])
def test_a_damaged_library_is_built_anew(compiler, built, content):
    calls = compiler(copying(built))
    load_library()
    (path,) = cache_folder().iterdir()
    path.unlink()  # it is in use
    path.write_bytes(built.read_bytes()[:3000] if content is None else content)
    load_library()
    assert calls() == 2
    assert path.read_bytes() == built.read_bytes()


def test_what_the_compiler_makes_must_be_a_library(compiler):
    compiler('open(output, "w").write("none")')
    with pytest.raises(UnavailableError, match=r"too short|not a mach-o"):
        load_library()


def test_another_layout_of_the_structures_is_noticed(built, monkeypatch):
    monkeypatch.setattr("txtgen.native.bindings.STRUCTURES", (*STRUCTURES[:-1], STRUCTURES[0]))
    with pytest.raises(ValueError, match="laid out"):
        Library(built)


def test_a_cache_that_cannot_be_written(compiler, built, tmp_path):
    compiler(copying(built))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UnavailableError, match="cache"):
        load_library()


@pytest.mark.parametrize("place", ["library", "folder", "parent"])
def test_what_others_may_write_is_not_loaded(compiler, built, place):
    compiler(copying(built))
    load_library()
    (path,) = cache_folder().iterdir()
    {"library": path, "folder": path.parent, "parent": path.parent.parent}[place].chmod(0o777)
    with pytest.raises(UnavailableError, match="others may write to"):
        load_library()


def test_nothing_is_built_where_others_may_write(compiler, built):
    calls = compiler(copying(built))
    cache_folder().mkdir(parents=True)
    cache_folder().chmod(0o770)
    with pytest.raises(UnavailableError, match="others may write to"):
        load_library()
    assert calls() == 0


def test_what_belongs_to_somebody_else_is_not_loaded(tmp_path, monkeypatch):
    path = tmp_path / "library.so"
    path.touch()
    refuse_unsafe(path)
    mine = os.geteuid()
    facts = os.stat_result((0o100700, 0, 0, 1, mine + 1, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _self, **_: facts)
    with pytest.raises(UnavailableError, match="others may write to"):
        refuse_unsafe(path)


def test_a_link_to_what_others_may_write_is_followed(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "library.so").touch()
    (tmp_path / "link.so").symlink_to(real / "library.so")
    refuse_unsafe(tmp_path / "link.so")
    real.chmod(0o777)
    with pytest.raises(UnavailableError, match="others may write to"):
        refuse_unsafe(tmp_path / "link.so")


def test_a_folder_like_tmp_is_safe(tmp_path):
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True)
    shared.chmod(0o1777)
    refuse_unsafe(shared / "mine")
    with pytest.raises(UnavailableError):
        refuse_unsafe(shared)


def test_not_on_windows(monkeypatch):
    monkeypatch.setattr("txtgen.native.building.os.name", "nt")
    with pytest.raises(UnavailableError, match="Linux and macOS"):
        load_library()
