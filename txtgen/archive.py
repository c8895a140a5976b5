"""The zip archive that a checkpoint is: what `torch.save` writes, plus a last entry `txtgen.json` (in the archive's one
folder, where `torch.load` tolerates it) with a SHA-256 of every other entry.

Checking trusts nothing, and comes before anything is unpickled: torch.load itself checks neither sizes nor checksums.
"""

import errno
import hashlib
import json
import os
import zipfile
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import IO

from txtgen.errors import CheckpointError

MANIFEST = "txtgen.json"
MANIFEST_FORMAT = 1
MAX_ENTRIES = 200_000
MAX_DIRECTORY_BYTES = 32 << 20
"""Of the archive's list of entries: enough for as many, and read before they can be counted."""
MAX_MANIFEST_BYTES = 64 << 20
BLOCK_BYTES = 8 << 20
"""Read and hashed at a time: much, because between two blocks a thread may have to wait for others."""
FOLDER = 0x10
"""Among an entry's attributes. torch.load then reads nothing, and takes whatever memory holds for the tensor."""

_ahead: dict[tuple[int, ...], Future[str]] = {}
"""What is verified, or was, before anybody asked: by the state that the file was in."""


def seal(handle: IO[bytes]) -> None:
    """Add the manifest to an archive that `torch.save` just wrote."""
    handle.seek(0)
    with zipfile.ZipFile(handle, "a", zipfile.ZIP_STORED) as archive:
        hashes = {name: _hash_entry(archive, name) for name in archive.namelist()}
        manifest = json.dumps({"format": MANIFEST_FORMAT, "sha256": hashes}, indent=0).encode()
        archive.writestr(_manifest_name(archive), manifest)


def verify_ahead(path: Path) -> None:
    """Begin to verify a file in a thread, beside which others compute: it reads and hashes in C.

    The next `verify` of the file waits for what was found, if the file is still in the state that it was in. Of one
    that cannot be opened nothing is said yet.
    """
    try:
        handle = open(path, "rb")  # noqa: SIM115  the thread closes it
        state = _state(handle)
    except OSError:
        return
    found = Future[str]()

    def work() -> None:
        try:
            with handle:
                found.set_result(_verify(handle, path, True))
        except BaseException as error:  # raised where it is asked for
            found.set_exception(error)

    try:
        Thread(target=work, daemon=True).start()
    except RuntimeError:  # the system gives no thread: it is verified when it is read
        handle.close()
    else:
        _ahead[state] = found


def _state(handle: IO[bytes]) -> tuple[int, ...]:
    """What changes when a file is written to, or another one takes its name."""
    facts = os.fstat(handle.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def verify(handle: IO[bytes], path: Path, *, tensors: bool = True) -> str:
    """Check sizes and hashes of every entry without unpickling anything. Returns the hex SHA-256 of the manifest.

    Args:
        handle: of the file; it may be verified ahead already.
        path: for messages.
        tensors: False: what is in them is not to be used, and not read.

    Raises:
        CheckpointError: it is damaged, or no checkpoint at all.
        OSError: the disk does not give it; nothing is known of what it holds.
    """
    ahead = _ahead.pop(_state(handle), None)
    return _verify(handle, path, tensors) if ahead is None else ahead.result()


def _verify(handle: IO[bytes], path: Path, tensors: bool) -> str:
    try:
        return _verify_archive(handle, path, tensors)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError, KeyError) as error:
        # A damaged list of entries leads to places that no file has, which is EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise damaged(path, _first_look(handle) or f"the archive is damaged ({error})") from error


def _verify_archive(handle: IO[bytes], path: Path, tensors: bool) -> str:
    size = handle.seek(0, os.SEEK_END)
    if _directory_bytes(handle, size) > MAX_DIRECTORY_BYTES:
        raise damaged(path, "its list of entries is too long")
    handle.seek(0)
    with zipfile.ZipFile(handle) as archive:
        manifest_name = _manifest_name(archive)
        names = archive.namelist()
        check_records(archive, size, path)
        if manifest_name not in names:
            raise CheckpointError(
                "not a txtgen checkpoint: it has no txtgen.json",
                str(path),
                "a state dict alone is no model: txtgen convert from-hf FOLDER model.pth --weights FILE makes it one",
            )
        if archive.getinfo(manifest_name).file_size > MAX_MANIFEST_BYTES:
            raise damaged(path, "its manifest is too large")
        manifest = archive.read(manifest_name)
        hashes = json.loads(manifest)["sha256"]
        if sorted(hashes) != sorted(name for name in names if name != manifest_name):
            raise damaged(path, "its entries are not those of its manifest")
        for name, expected in hashes.items():
            if (tensors or "/data/" not in name) and _hash_entry(archive, name) != expected:
                raise damaged(path, f"checksum mismatch in entry {name!r}")
    return hashlib.sha256(manifest).hexdigest()


def _directory_bytes(handle: IO[bytes], size: int) -> int:
    """How long the list of entries at the end of a zip archive claims to be, at most; 0 if it is none."""
    handle.seek(max(0, size - (1 << 16) - 200))
    tail = handle.read()
    claims = [0]
    for signature, start, end in ((b"PK\x05\x06", 12, 16), (b"PK\x06\x06", 40, 48)):  # zip, zip64
        if (place := tail.rfind(signature)) >= 0:
            claims.append(int.from_bytes(tail[place + start : place + end], "little"))
    return max(claim for claim in claims if claim != 0xFFFFFFFF)


def check_records(archive: zipfile.ZipFile, size: int, path: Path) -> None:
    """Refuse an archive of `size` bytes that `torch.save` did not write: compressed, or with entries that claim more.

    Raises:
        CheckpointError: it is one.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise damaged(path, f"it has {len(entries)} entries, more than {MAX_ENTRIES}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise damaged(path, "its entries are compressed, which no checkpoint's are")
    if any(entry.external_attr & FOLDER or entry.is_dir() for entry in entries):
        raise damaged(path, "an entry is marked as a folder, which no checkpoint has")
    if sum(entry.file_size for entry in entries) > size:
        raise damaged(path, "its entries claim more bytes than the file has")


def _first_look(handle: IO[bytes]) -> str:
    """What a file that is no zip archive seems to be, or "" if unknown."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    head = handle.read(64)
    if size == 0:
        return "the file is empty"
    if head.startswith(b"PK"):
        return "the archive is cut short or damaged"
    looks = {
        b"\x80": "it is a raw pickle, which may hold code and is refused",
        b"\x89PNG": "it is a PNG picture",
        b"<": "it looks like HTML or XML",
        b"\x1f\x8b": "it is a gzip file",
        b"\x00" * 16: "it is full of zeros",
    }
    for start, look in looks.items():
        if head.startswith(start):
            return look
    if head[8:9] == b"{":
        return "it looks like a safetensors file"
    return "it is no zip archive"


def _hash_entry(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as entry:
        while block := entry.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _manifest_name(archive: zipfile.ZipFile) -> str:
    """Where the manifest stands: beside torch's own records, which share one folder."""
    names = archive.namelist()
    return f"{names[0].partition('/')[0]}/{MANIFEST}" if names else MANIFEST


def damaged(path: Path, what: str) -> CheckpointError:
    """What the user is told of a checkpoint that cannot be read."""
    return CheckpointError(
        f"not a usable checkpoint: {what}", str(path), "use an undamaged copy or an earlier checkpoint"
    )
