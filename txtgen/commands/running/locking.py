"""Holding a folder against every other process."""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from txtgen.errors import BusyError

logger = logging.getLogger(__name__)

LOCK, SOFT_LOCK, OWNER = LOCK_FILES = (".lock", ".lock.pid", ".owner")
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""What a file system says that knows no locks, as network file systems may."""
SOFT_SECONDS = 5.0
"""How long a lock that may be stale is looked at, at most."""


@contextmanager
def hold(
    folder: Path,
    what: str = "the run folder",
    fix: str = "wait for that run, or choose another --name",
    *,
    temporary: bool = False,
) -> Iterator[None]:
    """Hold a folder while the block runs. The system lets go of it when the process ends in whatever way.

    A file system without locks gets a file that only one process can make. It names process, start and boot, by which
    the next process on this machine knows whether that one is gone.

    Args:
        folder: to hold.
        what: it is called in messages.
        fix: what to do if it is held.
        temporary: the folder goes with the hold if there is nothing else in it.

    Raises:
        BusyError: another process holds it.
        OSError: the folder cannot be written.
    """
    owner = folder / OWNER
    try:
        lock = _acquired(folder, SOFT_SECONDS)
    except Timeout as error:
        raise BusyError(f"{what} is in use" + _told(owner), str(folder), fix) from error
    if isinstance(lock, SoftFileLock):
        logger.warning("this file system knows no locks; the file %s holds %s instead", lock.lock_file, what)
    try:
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        with suppress(OSError):  # Windows removes no file that is open, but this one with its release
            if temporary and all(is_of_hold(path) for path in folder.iterdir()):
                (folder / LOCK).unlink()
        lock.release()
        if temporary:
            with suppress(OSError):  # it is not empty, perhaps because another process holds it by now
                folder.rmdir()


def is_of_hold(path: Path) -> bool:
    """Whether a file in a folder is there because it is held, or was."""
    return path.name == OWNER or path.name.startswith(LOCK)


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder; also True where that cannot be found out."""
    if not (folder / LOCK).exists() and not (folder / SOFT_LOCK).exists():
        return False
    try:
        _acquired(folder, soft_seconds=0.0).release()
    except (Timeout, OSError):
        return True
    return False


def _acquired(folder: Path, soft_seconds: float) -> BaseFileLock:
    lock: BaseFileLock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        lock = SoftFileLock(folder / SOFT_LOCK, timeout=soft_seconds, poll_interval=0.1)
        lock.acquire()
    return lock


def _told(owner: Path) -> str:
    """Who holds the folder, as far as is known."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        who = json.loads(owner.read_text())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
        return f" by process {int(who['pid'])} on {who['host']} since {since}"
    return ""
