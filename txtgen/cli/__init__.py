"""The command line: arguments become a config and go to one function each. No logic; no torch before it is needed."""

from txtgen.cli.main import app, run

__all__ = ["app", "run"]
