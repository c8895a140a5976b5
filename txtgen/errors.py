"""Every error that a user can cause, as one small tree.

    TxtgenError             1  a bug, unless a subclass says otherwise
    ├── UsageError          2  flags that are wrong or contradict each other
    ├── ConfigError         3  a configuration that cannot be used
    ├── DataError           4  a corpus that cannot be read or is too small
    ├── CheckpointError     5  a checkpoint or tokenizer that is damaged or does not fit
    ├── ResourceError       6  disk, memory (OutOfMemoryError), permission
    ├── DivergedError       7  a loss or gradient that is not finite
    ├── DistributedError    8  another rank failed or did not answer
    └── BusyError           9  a folder that is in use or already holds a run

The number is the exit code of the process.
"""

import re

# Everything that can move the cursor, hide text or reorder it: C0 except tab and newline, DEL, C1, bidi controls,
# zero-width and tag characters, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)


def safe_text(text: str) -> str:
    """The text with everything that could act on a terminal made visible, such as ``\\x1b``."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


class TxtgenError(Exception):
    """A user's mistake, or a fault of the machine, told in three parts.

    Args:
        what: what is wrong, with the offending value.
        where: the place: ``file:line``, a dotted config key, or a tensor with both shapes.
        fix: what to do about it.
    """

    exit_code = 1
    told = False
    """Whether another process has told the user already."""

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        """The parts on one line, joined by semicolons."""
        return "; ".join(part for part in (self.what, self.where, self.fix) if part)


class UsageError(TxtgenError):
    """The command line is wrong or contradicts itself."""

    exit_code = 2


class ConfigError(TxtgenError):
    """The configuration cannot be used."""

    exit_code = 3


class DataError(TxtgenError):
    """The corpus cannot be read, or does not hold what the run needs."""

    exit_code = 4


class CheckpointError(TxtgenError):
    """A checkpoint or a tokenizer is damaged, unsafe, or does not fit."""

    exit_code = 5


class ResourceError(TxtgenError):
    """The machine lacks disk space, memory or a permission."""

    exit_code = 6


class OutOfMemoryError(ResourceError):
    """The memory does not suffice, however little is computed at once."""


class DivergedError(TxtgenError):
    """Training reached a loss or gradient that is not finite."""

    exit_code = 7


class DistributedError(TxtgenError):
    """Another rank failed or did not answer in time, or a process that helps this one was killed."""

    exit_code = 8


class BusyError(TxtgenError):
    """A run folder is in use by another process, or already holds a run."""

    exit_code = 9
