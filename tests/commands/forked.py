"""Commands as processes that start in no time: copies of a server that has imported torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self


class ForkServer:
    """The server of fork_server.py, and commands in one folder that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        server = Path(__file__).with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__(None, None, None)  # closes its standard input, at which it ends

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, arguments: list[str], **more: Any) -> int:
        """Start a command. Returns its process id."""
        run = {"folder": str(self.folder), "arguments": arguments, "stages": str(self.folder / "stages"), **more}
        return self.ask({"run": run})["pid"]

    def wait(self, pid: int) -> int:
        """The exit code of a command, -9 if it was killed."""
        return os.waitstatus_to_exitcode(self.ask({"wait": pid})["status"])

    def learn_imports(self, arguments: list[str]) -> int:
        """Run a command and import what it needed, so that the next need not. Returns its exit code."""
        modules = self.folder / "modules"
        code = self.wait(self.start(arguments, modules=str(modules)))
        self.ask({"import": json.loads(modules.read_text())})
        return code

    def output(self) -> str:
        return (self.folder / "output.txt").read_text()
