"""What a run folder tells of its run: read as far as it can be read, and never refused for what is damaged."""

import json
import os
import re
import shlex
import socket
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from txtgen.commands.running.locking import is_held
from txtgen.config.mistakes import did_you_mean
from txtgen.config.train import UNLIMITED
from txtgen.config.yaml import read_yaml_file
from txtgen.errors import CheckpointError, ConfigError, UsageError

MAX_FILE_BYTES, MAX_LINE_BYTES = 16 << 20, 1 << 20
"""A file or a line that is longer than this was not written by a run."""
STEP_FILE = re.compile(r"^step-(\d{8,})\.pth$")


class RunPaths:
    """The files of `runs/NAME/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.about = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.log = path / "log.txt"
        self.status = path / "status.json"
        self.page = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.last = path / "last.pth"
        self.best = path / "best.pth"

    @property
    def exists(self) -> bool:
        """Whether a run has begun here, however little it left."""
        return any(path.exists() for path in (self.config, self.status, self.metrics, self.last, self.checkpoints))

    def steps(self) -> list[tuple[int, Path]]:
        """The step checkpoints by step, oldest first."""
        found = ((STEP_FILE.match(path.name), path) for path in self.checkpoints.glob("step-*.pth"))
        return sorted((int(match[1]), path) for match, path in found if match)


@dataclass
class RunRecord:
    """A run as its folder tells it.

    state: what status.json says, or "killed" where the process behind it is gone. status, config, about: the content of
    status.json, config.yaml and run.json, {} where there is none. best: the best validation metrics, with their step.
    num_bytes: of all files, each counted once. problems: what could not be read, in words.
    """

    paths: RunPaths
    state: str
    status: dict[str, Any]
    config: dict[str, Any]
    about: dict[str, Any]
    best: dict[str, Any]
    num_bytes: int
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.paths.path.name

    @property
    def command(self) -> str | None:
        """pretrain or finetune."""
        return _command(self.about, self.config)

    @property
    def parameters(self) -> int | None:
        """Weights in all."""
        return whole(section(self.about, "parameters").get("total"))

    @property
    def step(self) -> int | None:
        """Steps done."""
        return whole(self.status.get("step"))

    @property
    def steps(self) -> int | None:
        """Steps in all; None: that is not decided."""
        said = whole(self.status.get("steps")) or whole(section(self.config, "train").get("steps"))
        return said if said is not None and said < UNLIMITED else None

    @property
    def time(self) -> float | None:
        """When the run was last heard of, in seconds since 1970."""
        said = number(self.status.get("time"))
        if said is not None:
            return said
        written = [path.stat().st_mtime for path in (self.paths.metrics, self.paths.config) if path.exists()]
        return max(written, default=None)


def command_of(path: Path) -> str | None:
    """The command that began the run in a folder: pretrain or finetune; None: the folder does not tell."""
    return _command(read_object((paths := RunPaths(path)).about, []), _read_config(paths, []))


def _command(about: dict[str, Any], config: dict[str, Any]) -> str | None:
    said = about.get("command")
    if isinstance(said, str):
        return said
    return None if not config else "pretrain" if "model" in config else "finetune"


def _read_config(paths: RunPaths, problems: list[str]) -> dict[str, Any]:
    if paths.config.exists():
        try:
            return read_yaml_file(paths.config).tree
        except ConfigError as error:
            problems.append(f"config.yaml: {error.what}")
    return {}


def read_run(path: Path) -> RunRecord:
    """What a run folder tells, but for the lines of its metrics and samples."""
    paths, problems = RunPaths(path), list[str]()
    status = read_object(paths.status, problems)
    config = _read_config(paths, problems)
    metric = section(config, "train").get("validation_metric")
    validations = read_lines(paths.metrics, problems, containing='"val_')
    return RunRecord(
        paths=paths,
        state=_state(paths, status),
        status=status,
        config=config,
        about=read_object(paths.about, problems),
        best=best_of(validations, metric if isinstance(metric, str) else "loss"),
        num_bytes=_num_bytes(path),
        problems=problems,
    )


def find_run(name: str, runs_path: str) -> Path:
    """The run folder that is meant by a path or by the name of a run.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(name)
    if path.is_dir() and RunPaths(path).exists:
        return path
    return require_run(name, runs_path)


def require_run(name: str, runs_path: str, command: str | None = None) -> Path:
    """The folder of the run of this name, begun by a command if one is given.

    Raises:
        CheckpointError: there is none; with the name that may have been meant.
        UsageError: another command began it; with what to type.
    """
    path = Path(runs_path) / name
    if path.is_dir() and RunPaths(path).exists:
        own = command_of(path) if command else None
        if own is not None and own != command:
            raise UsageError(f"this is a {own} run", str(path), f"go on with it by: {resume_command(own, path)}")
        return path
    near = did_you_mean(Path(name).name, [other.name for other in find_runs(runs_path)])
    raise CheckpointError(
        "no such run", str(path), near or f"list the runs with: txtgen runs list --runs-path {runs_path}"
    )


def resume_command(command: str, folder: Path, *options: str) -> str:
    """What to type so that the run in a folder goes on from its last checkpoint. command: that began it."""
    return shlex.join(["txtgen", command, "--resume", *_named(folder), *options])


def begin_command(command: str, folder: Path, *options: str) -> str:
    """What to type so that the run in a folder is begun there anew. command: that began it."""
    return shlex.join(["txtgen", command, str(RunPaths(folder).config), *_named(folder), *options])


def _named(folder: Path) -> list[str]:
    """The options that name a run."""
    where = [] if folder.parent == Path("runs") else ["--runs-path", str(folder.parent)]
    return ["--name", folder.name, *where]


def find_runs(runs_path: str) -> list[Path]:
    """Every run folder under runs_path."""
    folder = Path(runs_path)
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and RunPaths(path).exists]


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no file, or where it is damaged, which is then a problem."""
    what = "damaged"
    try:
        if path.stat().st_size <= MAX_FILE_BYTES and isinstance(content := json.loads(path.read_bytes()), dict):
            return content
    except FileNotFoundError:
        return {}
    except OSError as error:
        what = error.strerror or str(error)
    except (ValueError, RecursionError):
        pass
    problems.append(f"{path.name}: {what}")
    return {}


def read_lines(path: Path, problems: list[str], containing: str = "") -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, in ascending order of their `step`.

    Lines that are no such object, as a killed process may leave one, are left out; how many is a problem. Of lines
    that a resumed run wrote again the later ones count.

    Args:
        path: the file; none is as good as an empty one.
        problems: where complaints are added.
        containing: only lines with this text are looked at.
    """
    return sorted(read_objects(path, problems, containing), key=lambda line: int(line["step"]))


def read_objects(path: Path, problems: list[str], containing: str = "") -> Iterator[dict[str, Any]]:
    """As `read_lines`, one after the other, in the order of the file."""
    damaged = 0
    try:
        for line in _lines(path):
            if containing.encode() not in line:
                continue
            try:
                content = json.loads(line)
                content["step"] = int(content["step"])
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                damaged += 1
            else:
                yield content
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror or error}")
    if damaged:
        problems.append(f"{path.name}: {damaged} damaged line{'s' * (damaged > 1)}")


Columns = dict[str, tuple["array[float]", "array[float]"]]
"""Steps and values of each metric, in the order of the file."""


def read_columns(path: Path, keys: Collection[str]) -> Columns:
    """The finite numbers of metrics.jsonl under some keys, without its lines, of which a long run has many."""
    columns: Columns = {key: (array("d"), array("d")) for key in keys}
    for line in read_objects(path, []):
        for key in columns.keys() & line.keys():
            value = number(line[key])
            if value is not None:
                columns[key][0].append(line["step"])
                columns[key][1].append(value)
    return columns


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            if line.strip():
                yield line


def best_of(validations: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The line that is best in val_loss, val_bleu or val_chrf, or {}."""
    key = f"val_{metric}"
    measured = [line for line in validations if number(line.get(key)) is not None]
    return (min if metric == "loss" else max)(measured, key=lambda line: float(line[key]), default={})


def _state(paths: RunPaths, status: dict[str, Any]) -> str:
    """The state in words; a run that never said how it ended is only alive while its process is."""
    state = status.get("state")
    if not isinstance(state, str):
        return "unknown"
    if "exit_code" in status:
        return state
    pid, host = whole(status.get("pid")), status.get("host")
    if pid is None or host != socket.gethostname():
        return f"{state} on {host}" if isinstance(host, str) else "unknown"
    # Numbers of processes are used again; the lock ends with its process.
    return state if _alive(pid) and is_held(paths.path) else "killed"


def _alive(pid: int) -> bool:
    """Whether a process of this number exists; where that cannot be asked (Windows), the lock alone must tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _num_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what has two names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(root, name))
            except OSError:
                continue
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def section(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of a tree, {} where it is none."""
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None


def whole(value: Any) -> int | None:
    """A whole number, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
