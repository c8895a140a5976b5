"""Run the command line: `python -m txtgen`."""

import sys

from txtgen.cli import run


def main() -> None:
    """Run txtgen with the arguments of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
