"""From the C++ sources to a loaded library: built once by the compiler that is found, for the processor that is found.

The result is kept in the user's cache folder under a name made of everything that it depends on. A library is code, so
none is loaded that anybody but this user (or root) could have written.
"""

import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

from txtgen.native.bindings import Library

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("cpp")
FLAGS = ("-std=gnu++20", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
MOST_SECONDS = 300.0


class UnavailableError(Exception):
    """There is no machine code here; the message says why."""


@cache
def load_library() -> Library:
    """The library for this machine, built if it is not there yet.

    Raises:
        UnavailableError: there is no compiler, it fails, or the place to keep the result is not safe.
    """
    if os.name != "posix":
        raise UnavailableError("it is only built on Linux and macOS")
    compiler, folder = find_compiler(), cache_folder()
    stem = f"native-{fingerprint(compiler)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_unsafe(folder)
        path = find_whole(folder, stem) or build(compiler, folder, stem)
        refuse_unsafe(path)
        return Library(path)
    except (OSError, AttributeError, ValueError) as error:
        raise UnavailableError(str(error)) from error


def find_compiler() -> Path:
    """The C++ compiler: that of the environment variable CXX, or the first of the usual ones.

    Raises:
        UnavailableError: there is none.
    """
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    for name in names:
        if found := shutil.which(name):
            return Path(found)
    raise UnavailableError(f"no C++ compiler is installed (looked for {', '.join(names)})")


def cache_folder() -> Path:
    """Where libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "txtgen"


def fingerprint(compiler: Path) -> str:
    """Of the sources, the compiler, its flags and the processor."""
    facts = compiler.resolve().stat()
    digest = sha256(repr((str(compiler.resolve()), facts.st_size, facts.st_mtime_ns, FLAGS, processor())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24]


def processor() -> str:
    """What tells processors apart that do not have the same instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.partition("\t")[0].rstrip() in names}))


def find_whole(folder: Path, stem: str) -> Path | None:
    """A library that is as it was built: its name ends by a digest of what is in it. Loading half of one would end the
    process."""
    return next((path for path in sorted(folder.glob(f"{stem}-*.so")) if path.name == named(stem, path)), None)


def named(stem: str, path: Path) -> str:
    """What a library with the content of `path` is called."""
    return f"{stem}-{sha256(path.read_bytes()).hexdigest()[:16]}.so"


def build(compiler: Path, folder: Path, stem: str) -> Path:
    """Compile into a file of our own, then give it its name: two processes may do so at once.

    Raises:
        UnavailableError: the compiler fails.
        OSError: the result cannot be written.
    """
    logger.warning("building machine code for generation once, by %s; the result is kept in %s", compiler, folder)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as own:
        made = Path(own) / f"{stem}.so"
        target = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
        command = [str(compiler), *FLAGS, target, str(SOURCES / "native.cpp"), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{compiler} took more than {MOST_SECONDS:.0f} s") from error
        if done.returncode or not made.is_file():
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it says nothing"]
            raise UnavailableError(f"{compiler} failed: {lines[0].strip()}")
        made.chmod(0o700)
        return made.replace(folder / named(stem, made))


def refuse_unsafe(path: Path) -> None:
    """Refuse a path that another user could have written, or whose folders another user could have exchanged.

    Raises:
        UnavailableError: that is so.
    """
    trusted = {0, os.geteuid()}
    path = path.resolve()
    for place in (path, *path.parents):
        facts = place.stat()
        # In a folder such as /tmp others may write, but not rename what is not theirs.
        sticky = place != path and facts.st_mode & stat.S_ISVTX
        if facts.st_uid not in trusted or (facts.st_mode & 0o022 and not sticky):
            raise UnavailableError(f"others may write to {place}")
