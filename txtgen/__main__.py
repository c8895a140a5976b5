"""Run the command line: `python -m txtgen`."""

import os
import sys

from txtgen.cli import run

SPINS = "200"
"""How often a waiting thread of GNU OpenMP looks before it sleeps. Its own 300,000 keep a core that others need: beside
one busy process, training on two cores is 1.6 times as fast with this, and on a quiet machine no slower."""


def main() -> None:
    """Run txtgen with the arguments of this process and exit with its code."""
    open_standard_files()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is first imported
    sys.exit(run(sys.argv[1:]))


def open_standard_files() -> None:
    """Let standard input, output and error that are closed lead nowhere.

    The next files to be opened would get their numbers, and a warning from below Python be written into a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


if __name__ == "__main__":
    main()
