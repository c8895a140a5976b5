"""File names, folders and patterns of a source -> the files that they mean."""

import difflib
import errno
import glob
import os
import stat
from collections.abc import Iterable, Iterator

from txtgen.errors import DataError

MAX_NAMED = 5
"""So many names are told where none of them is alike."""
MAX_LISTED = 10_000
"""How many names are compared with a name that was not found."""


def resolve(patterns: str | Iterable[str]) -> list[str]:
    """The files that file names, folders and glob patterns mean: each once, sorted.

    A folder stands for all files below it, hidden ones excepted; folders that are symbolic links are followed. A
    pattern stands for the files, not the folders, that it matches; `**` goes down folders.

    Raises:
        DataError: a name or pattern matches nothing, or what it names cannot be listed.
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found.update(_matches(pattern))
    return sorted(found)


def resolve_one(path: str) -> str:
    """The one file that a name or pattern means.

    Raises:
        DataError: it means no file or several.
    """
    files = resolve(path)
    if len(files) > 1:
        listed = ", ".join(files[:3])
        raise DataError(
            f"'{path}' means {len(files)} files: {listed}", "", "name one file; list others as more sources"
        )
    return files[0]


def _matches(pattern: str) -> list[str]:
    if pattern == "-":
        raise DataError("standard input cannot be a corpus: it can be read only once", "", "save the text in a file")
    if "\0" in pattern:
        raise DataError(f"{pattern!r} cannot be a path: it holds a NUL character")
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        files = list(_files_below(path))
        if not files:
            raise DataError(f"the folder '{pattern}' holds no files", "", "hidden files and folders are not counted")
        return files
    if os.path.lexists(path):
        return [path]
    files = [name for name in glob.glob(path, recursive=True) if not os.path.isdir(name)]
    if not files:
        where = "" if os.path.isabs(path) else f"relative to {os.getcwd()}"
        raise DataError(f"no file matches '{pattern}'", where, _suggestion(path))
    return files


def _files_below(folder: str) -> Iterator[str]:
    """Every file under a folder that is not hidden; a folder that links lead back to is entered once."""
    entered: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in entered and status.st_ino:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(entry.path)
                    else:
                        yield entry.path
        except OSError as error:
            raise unreadable(current, error) from error


def _suggestion(path: str) -> str:
    """The names nearest to one that was not found, among those in the deepest folder of it that exists."""
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry, _ in zip(entries, range(MAX_LISTED), strict=False)]
    except OSError:
        return "check the spelling"
    near = _near(name, names)
    if near:
        return "did you mean " + " or ".join(f"'{os.path.join(folder, candidate)}'" for candidate in near) + "?"
    if 0 < len(names) <= MAX_NAMED:
        return "check the spelling; there is only " + ", ".join(
            f"'{os.path.join(folder, name)}'" for name in sorted(names)
        )
    return f"check the spelling; '{folder or '.'}' holds {len(names)} entries, none of a similar name"


def _near(name: str, names: list[str]) -> list[str]:
    """The names most like one, by what stands before their endings: `.txt` makes no two names alike."""
    stems: dict[str, list[str]] = {}
    for other in names:
        stems.setdefault(os.path.splitext(other)[0], []).append(other)
    near = difflib.get_close_matches(os.path.splitext(name)[0], stems, n=3, cutoff=0.6)
    return [other for stem in near for other in stems[stem]][:3]


def stat_file(path: str) -> os.stat_result:
    """The status of a regular file.

    Raises:
        DataError: it does not exist, is a broken link, a folder, or something that cannot be read twice.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.islink(path):
            target = os.readlink(path)
            raise DataError(f"'{path}' is a broken link to '{target}'", "", "mend or remove it") from error
        raise unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"'{path}' is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        kind = kinds.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise DataError(f"'{path}' is {kind}, which cannot be read more than once", "", "save the text in a file")
    return status


def unreadable(path: str, error: OSError) -> DataError:
    """The system's refusal to open or read something, in plain words."""
    reasons = {
        errno.ENOENT: "it does not exist (any more)",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.ELOOP: "its links lead in a circle",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EMFILE: "too many files are open",
    }
    reason = reasons.get(error.errno or 0, error.strerror or "unknown error")
    return DataError(f"cannot read '{path}': {reason}", "", "check the path and its permissions")
