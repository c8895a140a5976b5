"""The command line as a test sees it, and whole folders to convert."""

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


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A whole folder of each family, written once; nobody changes it."""
    from whole_folders import whole_folder  # needs transformers, which not every test here does

    made = {}

    def find(family):
        if family not in made:
            made[family] = whole_folder(family, tmp_path_factory.mktemp(family))
        return made[family]

    return find
