"""Files that appear whole and durable, or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from txtgen.errors import ResourceError


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file handle whose content appears under `path` whole, flushed to disk, or not at all.

    Raises:
        ResourceError: the disk is full, read-only, or the place not writable.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(temporary, "w+b") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = os_error(error)
        if cause is not None:
            raise write_error(path, cause) from error
        raise


def flush(path: Path) -> None:
    """Make a file's content durable, or what was renamed in a folder; where folders cannot be opened (Windows), the
    system does so by itself."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def os_error(error: BaseException) -> OSError | None:
    """The operating system's complaint behind an error; torch hides it in the context of a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def write_error(path: Path, cause: OSError) -> ResourceError:
    """What the user is told of a file that could not be written."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"the disk is full ({cause.strerror})", str(path), "free space, or choose another runs_path"
        )
    return ResourceError(f"cannot write: {cause.strerror or cause}", str(path), "check the path and its permissions")
