"""What tells whether the files of a corpus are still the same."""

import hashlib
from collections.abc import Sequence

from txtgen.data.files import TextFile

SAMPLES, SAMPLE_BYTES = 64, 16 * 1024
"""Of a file larger than all of them together, so many pieces are looked at, its beginning and end among them."""

Fingerprint = list[str | int]
"""Path, bytes of text, checksum: plain, for a bookmark."""


def fingerprints(files: Sequence[TextFile]) -> list[Fingerprint]:
    """The fingerprint of each file.

    Files of up to 1 MiB are read as a whole. Of a larger one 1 MiB is read, wherever it is: so a file that has grown or
    was cut, written anew, sorted or filtered has another fingerprint, but a change that keeps its size and touches no
    sample goes unseen.

    Raises:
        DataError: a file cannot be read any more.
    """
    return [[file.path, file.size, checksum(file, file.size)] for file in files]


def checksum(file: TextFile, size: int) -> int:
    """A number from 0 to 2**63 - 1 that depends on the first `size` bytes of the text."""
    digest = hashlib.blake2b(digest_size=8)
    if size <= SAMPLES * SAMPLE_BYTES:
        digest.update(file.read(0, size))
    else:
        for number in range(SAMPLES):
            digest.update(file.read(number * (size - SAMPLE_BYTES) // (SAMPLES - 1), SAMPLE_BYTES))
    return int.from_bytes(digest.digest(), "little") >> 1


def differences(then: Sequence[Fingerprint], now: Sequence[Fingerprint], files: Sequence[TextFile]) -> list[str]:
    """How files differ from what they were, a line a file; none if nothing does. Files may have moved.

    Args:
        then: the fingerprints of the files as they were.
        now: those of the files as they are.
        files: as they are, to be looked into again.
    """
    if len(then) == len(now):
        pairs = zip(then, now, files, strict=True)
        return [f"{new[0]} {_told(old, new, file)}" for old, new, file in pairs if old[1:] != new[1:]]
    before, after = ({str(path) for path, _, _ in marks} for marks in (then, now))
    gone = [f"{path} is gone" for path in sorted(before - after)]
    return gone + [f"{path} is new" for path in sorted(after - before)]


def _told(old: Fingerprint, new: Fingerprint, file: TextFile) -> str:
    _, size, mark = old
    assert isinstance(size, int)
    if size == new[1]:
        return f"has other content, of the same {size:,} bytes"
    if size > file.size:
        return f"has become shorter, from {size:,} to {file.size:,} bytes"
    appended = checksum(file, size) == mark
    how = "text was added at its end" if appended else "and what was there has changed"
    return f"has grown from {size:,} to {file.size:,} bytes: {how}"
