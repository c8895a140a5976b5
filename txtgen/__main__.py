"""Run the command line: `python -m txtgen`."""

import os
import sys
from io import TextIOWrapper

SPINS = "200"
"""How often a waiting thread of GNU OpenMP looks before it sleeps. Its own 300,000 keep a core that others need: beside
one busy process, training on two cores is 1.6 times as fast with this, and on a quiet machine no slower."""


def main() -> None:
    """Run txtgen with the arguments of this process and exit with its code."""
    open_standard_files()
    write_utf8()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is first imported
    try:
        from txtgen.cli import run  # takes a moment, in which Ctrl-C may come

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    from txtgen.commands.running.signals import leave

    leave(code)


def open_standard_files() -> None:
    """Let standard input, output and error that are closed lead nowhere.

    The next files to be opened would get their numbers, and a warning from below Python be written into a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def write_utf8() -> None:
    """Have results in UTF-8, as prompts are read, whatever the locale; a terminal gets escapes for what it lacks."""
    out = sys.stdout
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace") if out.isatty() else out.reconfigure(encoding="utf-8")


if __name__ == "__main__":
    main()
