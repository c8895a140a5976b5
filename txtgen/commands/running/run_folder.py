"""The folder of a run: its lock, its files, and which checkpoints stay."""

import errno
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from txtgen.checkpoint import Checkpoint, NewerFormatError, load_checkpoint, save_checkpoint
from txtgen.commands.running.locking import LOCK_FILES, hold
from txtgen.commands.running.run_record import RunPaths, begin_command, command_of, read_object
from txtgen.errors import CheckpointError, ResourceError
from txtgen.files import flush, replace_file, retried, write_error

logger = logging.getLogger(__name__)

PROBE_BYTES = 1 << 16


class RunFolder(RunPaths):
    """`runs/NAME/` in the hands of the run that writes it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._missed: set[Path] = set()

    @property
    def launch(self) -> Path:
        """Tells by which launch the run here was begun or gone on with last."""
        return self.path / ".launch"

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write the package's log into log.txt while the block runs."""
        try:
            handler = _LogFile(self.log, encoding="utf-8")
        except OSError as error:
            raise write_error(self.log, error) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package = logging.getLogger("txtgen")
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        finally:
            package.removeHandler(handler)
            with suppress(OSError):  # told already
                handler.close()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against every other process, and remove what a killed one left half written.

        Raises:
            BusyError: another process holds it.
            ResourceError: the folder cannot be made or written.
        """
        with ExitStack() as stack:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(self.path))
                self._remove_leftovers()
            except OSError as error:
                raise write_error(self.path, error) from error
            self._require_writable()
            yield

    def _remove_leftovers(self) -> None:
        leftovers = [*self.path.glob("*.tmp.*"), *self.checkpoints.glob("*.tmp.*")]
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        if leftovers:
            logger.info("removed what was half written: %s", ", ".join(path.name for path in leftovers))

    def _require_writable(self) -> None:
        """Find out before any work that nothing can be written here."""
        probe = self.path / ".probe"
        with replace_file(probe) as handle:
            handle.write(bytes(PROBE_BYTES))
        probe.unlink()

    @property
    def occupied(self) -> bool:
        """Whether a run has been here and left a checkpoint; a start that failed left nothing to lose."""
        return self.best.exists() or self.has_state or bool(self.saved)

    @property
    def must_begin_anew(self) -> bool:
        """Whether a run has its config here but never had anything to go on from; perhaps a best model, which came
        before."""
        return self.config.exists() and not self.has_state and not self.saved

    @property
    def saved(self) -> str | None:
        """The checkpoint that was saved here last, gone or not, by status.json."""
        said = read_object(self.status, []).get("last_checkpoint")
        return str(self.checkpoints / Path(said).name) if isinstance(said, str) else None

    @property
    def has_state(self) -> bool:
        """Whether there is something to go on from."""
        return self.last.exists() or any(self.checkpoints.glob("step-*.pth"))

    def move_aside(self) -> Path:
        """Move what is here to NAME.old-N, so that a new run overwrites nothing. Returns the new place.

        The lock stays where it is: nobody can begin here meanwhile. What makes the folder occupied moves last, so that
        a kill leaves nothing behind that a new run would take for its own.

        Raises:
            ResourceError: it cannot be moved.
        """
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        runs = (self.checkpoints, self.best, self.last)
        found = [path for path in self.path.iterdir() if path not in runs and path.name not in LOCK_FILES]
        try:
            aside.mkdir()
            for path in (*found, *(path for path in runs if path.exists())):
                path.rename(aside / path.name)
            self.checkpoints.mkdir()
        except OSError as error:
            raise write_error(aside, error) from error
        return aside

    def write_text(self, path: Path, text: str) -> None:
        """Write a file whole or not at all."""
        with replace_file(path) as handle:
            handle.write(text.encode())

    def write_note(self, path: Path, text: str) -> None:
        """Write a file that the run can do without."""
        try:
            self.write_text(path, text)
        except ResourceError as error:
            self._miss(path, error.what)

    def append(self, path: Path, line: dict[str, Any]) -> None:
        """Append one JSON object to metrics.jsonl or samples.jsonl, the whole line or nothing of it."""
        content = (json.dumps(line) + "\n").encode()
        try:
            with open(path, "ab", buffering=0) as handle:
                end = handle.tell()
                if handle.write(content) < len(content):
                    handle.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._miss(path, error.strerror or str(error))

    def _miss(self, path: Path, why: str) -> None:
        """Training goes on without what it could not write down; one warning a file says so."""
        if path not in self._missed:
            self._missed.add(path)
            logger.warning("%s is incomplete from here on: %s", path, why)

    def forget_after(self, step: int) -> None:
        """Drop the metrics and samples of steps that a resumed run does again."""
        for path in (self.metrics, self.samples):
            if not path.exists():
                continue
            try:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                self._miss(path, error.strerror or str(error))
                continue
            kept = []
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):  # a line cut short by a kill, or damaged
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            self.write_text(path, "".join(kept))

    def step_path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.checkpoints / f"step-{step:08d}.pth"

    def newest(self) -> tuple[Path, Checkpoint, list[str]]:
        """The newest checkpoint that can be read, and a warning for each newer one that cannot.

        Where last.pth alone is left or can be read, as in a folder that was copied, it is put among them.

        Raises:
            CheckpointError: none can be read, or the newest is of a later version, which was to go on.
        """
        warnings: list[str] = []
        steps = [path for _, path in reversed(self.steps())]
        for path in [*steps[:1], *[self.last] * self._last_is_apart, *steps[1:]]:
            try:
                checkpoint = load_checkpoint(path, training=True)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                warnings.append(f"skipped: {error}")
                continue
            if checkpoint.training is None:
                warnings.append(f"{path} has no training state")
                continue
            if path == self.last:
                if any(step > checkpoint.training["step"] for step, _ in self.steps()[:-1]):
                    continue  # an old copy
                path = self.step_path(checkpoint.training["step"])
                self._put(self.last, path)
            return path, checkpoint, warnings
        advice = "start without --resume"
        if self.saved:
            anew = begin_command(command_of(self.path) or "pretrain", self.path, "--overwrite")
            advice = f"{self.saved} is gone: put it back, or begin anew: {anew}"
        raise CheckpointError("no checkpoint to resume from", str(self.path), "; ".join(warnings) or advice)

    @property
    def _last_is_apart(self) -> bool:
        """Whether last.pth is there, and no other name of one of the checkpoints."""
        try:
            files = [(stat.st_dev, stat.st_ino) for stat in (path.stat() for _, path in self.steps())]
            last = self.last.stat()
        except OSError:  # one of them has gone meanwhile
            return self.last.exists()
        return (last.st_dev, last.st_ino) not in files

    def go_on_from(self, step: int, keep_last: int, keep_every: int = 0) -> None:
        """Make the checkpoint of this step the last one, and end what a kill may have left undone after its save.

        Newer ones, which could not be read, are set aside: they shall not count as ones that are kept, nor be tried
        again.

        Raises:
            ResourceError: the folder cannot be written.
        """
        retried(lambda: self._put(self.step_path(step), self.last))
        for newer, path in self.steps():
            if newer > step:
                aside = path.with_name(f"{path.name}.damaged")
                try:
                    path.replace(aside)
                except OSError as error:
                    raise write_error(path, error) from error
                logger.warning("%s cannot be read; it is now %s", path, aside.name)
        self._retain(keep_last, keep_every)

    def save(
        self,
        step: int,
        checkpoint: Checkpoint,
        *,
        keep_last: int,
        keep_every: int = 0,
        cancelled: Callable[[], bool] | None = None,
    ) -> Path:
        """Write the checkpoint of a step, point last.pth at it, then remove the ones that are not to be kept.

        Args:
            step: checkpoints are ordered by it, whatever the clock says.
            checkpoint: of that step.
            keep_last: so many of the newest stay.
            keep_every: besides, those of multiples of so many steps; 0: none.
            cancelled: as for `save_checkpoint`.

        Raises:
            ResourceError: it cannot be written; what was there is still there.
        """
        path = self.step_path(step)
        if self.metrics.exists():
            flush(self.metrics)  # a checkpoint never outlives the figures of the steps before it
        save_checkpoint(path, checkpoint, cancelled)
        retried(lambda: self._put(path, self.last))
        self._retain(keep_last, keep_every)
        return path

    def _retain(self, keep_last: int, keep_every: int) -> None:
        kept = retained([step for step, _ in self.steps()], keep_last, keep_every)
        for step, path in self.steps():
            if step not in kept:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove the old checkpoint %s: %s", path, error.strerror or error)

    def _put(self, path: Path, other: Path) -> None:
        """Give a file another name, in whose place there may be one; or copy it where files have but one."""
        temporary = other.with_name(f"{other.name}.tmp.{os.getpid()}")
        try:
            if other.exists() and other.samefile(path):
                return
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                with open(path, "rb") as source, replace_file(other) as handle:
                    shutil.copyfileobj(source, handle)
                return
            os.replace(temporary, other)
            flush(other.parent)
        except OSError as error:
            raise write_error(other, error) from error


class _LogFile(logging.FileHandler):
    """A log that may run out of space: one warning says so."""

    full = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Only what the disk did is expected here."""
        if not isinstance(error := sys.exc_info()[1], OSError):
            super().handleError(record)
        elif not self.full:
            self.full = True
            logger.warning("%s is incomplete from here on: %s", self.baseFilename, error.strerror or error)


def retained(steps: list[int], keep_last: int, keep_every: int) -> set[int]:
    """Of these steps the last ones, and all multiples of `keep_every` if it is not 0."""
    return {*sorted(steps)[-keep_last:], *(step for step in steps if keep_every and step % keep_every == 0)}


def begun_by(launch: str, runs_path: Path) -> RunFolder | None:
    """The folder of the run that a launch began or went on with, or None."""
    for mark in runs_path.glob("*/.launch"):
        with suppress(OSError, ValueError):  # a damaged one is nobody's
            if mark.read_text(encoding="utf-8") == launch:
                return RunFolder(mark.parent)
    return None


def next_name(runs_path: Path, stem: str) -> str:
    """STEM-N with the smallest N above all that exist."""
    return f"{stem}-{max(_numbers(runs_path, stem), default=0) + 1}"


def existing_names(runs_path: Path, stem: str) -> list[str]:
    """Every existing STEM-N, the greatest N first."""
    return [f"{stem}-{number}" for number in sorted(_numbers(runs_path, stem), reverse=True)]


def _numbers(runs_path: Path, stem: str) -> list[int]:
    pattern = re.compile(re.escape(stem) + r"-(\d{1,9})$")
    if not runs_path.is_dir():
        return []
    folders = [path for path in runs_path.iterdir() if RunFolder(path).occupied]
    return [int(match[1]) for path in folders if (match := pattern.match(path.name))]
