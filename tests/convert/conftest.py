"""The command line as a test sees it."""

import pytest

from txtgen.cli import run


@pytest.fixture
def run_txtgen(capsys):
    """Run a command; gives what it wrote to stdout, or to stderr where it is to fail with this exit code."""

    def call(*arguments, code: int = 0) -> str:
        capsys.readouterr()
        found = run([str(argument) for argument in arguments])
        written = capsys.readouterr()
        assert found == code, written.err
        return written.err if code else written.out

    return call
