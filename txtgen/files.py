"""Files that appear whole and durable, or not at all."""

import errno
import getpass
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from txtgen.errors import ResourceError

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
TRANSIENT = (errno.EIO, errno.ESTALE)
"""What network file systems say of a write that may well succeed a moment later."""
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)
"""What file systems say that cannot flush a folder, and some do not need to."""
RETRY_SECONDS = (0.5, 1.0, 2.0)
FREE = "free space, or choose another place"

T = TypeVar("T")


class TransientError(ResourceError):
    """A file could not be written, but might be by another attempt from its beginning."""


@contextmanager
def replace_file(path: Path, needs: int = 0, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file handle whose content appears under `path` whole, or not at all.

    Args:
        path: what is there already stays until the new content is whole.
        needs: bytes that must be free.
        durable: flush it to disk before, so that no power cut takes the content away again.

    Raises:
        ResourceError: the disk is full, read-only, or the place not writable; a `TransientError` if the error may pass.
            One while flushing never passes: what the system has not written by then it may have dropped.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        require_space(path, needs)
        with open(temporary, "w+b") as handle:
            yield handle
            handle.flush()
            if durable:
                _flush(path, handle.fileno())
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = os_error(error)
        if cause is not None and not isinstance(error, ResourceError):
            raise write_error(path, cause) from error
        raise


def retried(write: Callable[[], T]) -> T:
    """The result of a write, attempted up to four times as long as its error may pass.

    Raises:
        ResourceError: none of them succeeded, or the error will not pass.
    """
    for pause in RETRY_SECONDS:
        try:
            return write()
        except TransientError as error:
            logger.warning("%s; trying again in %g s", error, pause)
            time.sleep(pause)
    return write()


def require_space(path: Path, needs: int) -> None:
    """Refuse to write what has no room.

    Args:
        path: a file or folder; it need not exist, but its parent must.
        needs: bytes.

    Raises:
        ResourceError: fewer bytes are free on the disk of `path`.
    """
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free if needs else 0
    if free < needs:
        raise ResourceError(f"the disk is full: {megabytes(needs)} needed, {megabytes(free)} free", str(path), FREE)


def megabytes(num_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{num_bytes / 1e6:,.1f} MB"


def flush(path: Path) -> None:
    """Make a file's content durable, or what was renamed in a folder, where the system can and needs to be told.

    Raises:
        ResourceError: the disk failed; of what was written some may be lost.
        OSError: it is full, or the path not readable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":  # folders cannot be opened there
            return
        raise
    try:
        _flush(path, descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def _flush(path: Path, descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in TRANSIENT:
            raise
        raise ResourceError(
            f"flushing to disk failed ({error.strerror})", str(path), "check the disk: what it holds is in doubt"
        ) from error


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
    what = cause.strerror or str(cause)
    if cause.errno in FULL:
        return ResourceError(f"the disk is full ({what})", str(path), FREE)
    if cause.errno == errno.EFBIG:
        return ResourceError(f"the file may not be as large as that ({what})", str(path), "raise the limit: ulimit -f")
    if cause.errno in FORBIDDEN:
        return ResourceError(f"{_user()} cannot write: {what}", str(path), "check the path and its permissions")
    kind = TransientError if cause.errno in TRANSIENT else ResourceError
    return kind(f"cannot write: {what}", str(path), "check the path and its disk")


def _user() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (OSError, KeyError):  # no name belongs to this number
        return "this user"
