"""Starts txtgen by fork from a process that has imported torch already, so that a start takes no seconds; and marks,
in memory that outlives a SIGKILL, what the process was doing.

Reads one JSON object a line from stdin: {"run": {...}} answers {"pid": N}, {"wait": N} answers {"status": N}, and
{"import": [...]} imports what a first run told to have needed.
"""

import importlib
import json
import mmap
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from txtgen import cli, files
from txtgen.checkpoint import writing
from txtgen.commands.running import run_folder, saving, session

PHASE_BYTES = 64
"""For each of the two threads, the main one first."""


class Stages:
    """Notes the stage that each thread is in, and ends the process by SIGKILL at a chosen one.

    kill_at: [stage, how many times it is passed before]; None: never.
    """

    def __init__(self, path: str, kill_at: list[Any] | None) -> None:
        with open(path, "r+b") as handle:
            self.memory = mmap.mmap(handle.fileno(), 2 * PHASE_BYTES)
        self.kill_at, self.left = (kill_at[0], kill_at[1]) if kill_at else (None, 0)

    def enter(self, stage: str) -> None:
        start = PHASE_BYTES * (threading.current_thread() is not threading.main_thread())
        self.memory[start : start + PHASE_BYTES] = stage.encode().ljust(PHASE_BYTES)
        if stage == self.kill_at:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1


def install(stages: Stages) -> None:
    """Wrap what a save does to the disk, and the phases of a run."""

    def of_checkpoint(path: Any) -> bool:
        return "step-" in str(path)

    def around(owner: Any, name: str, wanted: Any, before: str, after: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            if not wanted(*arguments):
                return original(*arguments, **more)
            stages.enter(before)
            result = original(*arguments, **more)
            stages.enter(after)
            return result

        setattr(owner, name, wrapped)

    def opened(path: Any, *arguments: Any, **more: Any) -> Any:
        handle = open(path, *arguments, **more)  # noqa: SIM115
        if of_checkpoint(path):
            stages.enter("temporary open")
        return handle

    files.open = opened  # type: ignore[attr-defined]
    around(writing._Cancellable, "__getattr__", lambda _, name: name == "write", "in write", "in write")
    around(writing, "verify", lambda *_: True, "verifying", "verified")
    around(
        os, "fsync", lambda number: of_checkpoint(os.readlink(f"/proc/self/fd/{number}")), "before fsync", "after fsync"
    )
    around(os, "replace", lambda _, to: of_checkpoint(to), "before rename", "after rename")
    around(run_folder.RunFolder, "_put", lambda *_: True, "before last", "after last")
    around(run_folder.RunFolder, "_remove", lambda *_: True, "before retention", "after retention")
    around(session.Session, "validate", lambda *_: True, "validating", "training")
    around(session.Session, "run", lambda *_: True, "training", "ending")
    around(session.Session, "save_at_last", lambda *_: True, "saving the last", "ending")
    around(saving.Staging, "take", lambda *_: True, "copying", "training")
    around(saving.Saving, "restore", lambda *_: True, "restoring", "restored")


def child(run: dict[str, Any]) -> None:
    os.chdir(run["folder"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    stages = Stages(run["stages"], run.get("kill_at"))
    install(stages)
    stages.enter("resuming" if "--resume" in run["arguments"] else "starting")
    code = cli.run(run["arguments"])
    sys.stderr.flush()
    if "modules" in run:
        Path(run["modules"]).write_text(json.dumps([*sys.modules]))
    os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            Path(request["run"]["stages"]).write_bytes(b" " * 2 * PHASE_BYTES)
            pid = os.fork()
            if pid == 0:
                try:
                    child(request["run"])
                finally:
                    os._exit(99)
            answer = {"pid": pid}
        elif "import" in request:
            for name in request["import"]:
                with suppress(Exception):
                    importlib.import_module(name)
            answer = {}
        else:
            answer = {"status": os.waitpid(request["wait"], 0)[1]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
