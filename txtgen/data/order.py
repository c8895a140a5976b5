"""Orders and choices that depend on a key alone: the same on every machine, rank and release of numpy."""

import enum
import hashlib
import struct

import numpy as np
from numpy.typing import NDArray


class Use(enum.IntEnum):
    """What a key is for; it comes first in the key, so that no two uses ever draw the same."""

    BLOCKS = 1
    UNITS = 2
    HOLD_OUT = 3
    HEAD_START = 4
    BATCHES = 5
    SAMPLE = 6
    RECORD = 7
    PART = 8
    NOISE = 9
    SUBWORDS = 10


def keyed_word(*key: int) -> int:
    """A number from 0 to 2**64 - 1 that depends on the key and nothing else. Source: BLAKE2, RFC 7693."""
    packed = struct.pack(f"<{len(key)}q", *key)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def keyed_share(*key: int) -> float:
    """A number from 0 up to, but not including, 1 that depends on the key and nothing else."""
    return (keyed_word(*key) >> 11) / 2**53


def keyed_permutation(size: int, *key: int) -> NDArray[np.int64]:
    """The numbers 0 to size - 1 in an order that depends on the key and nothing else; [size] int64.

    numpy promises that the words of a bit generator never change, but not what `Generator.permutation` makes
    of them, so the words themselves are sorted. Source: Salmon et al. 2011 (Philox).
    """
    return np.argsort(np.random.Philox(key=keyed_word(*key)).random_raw(size), kind="stable")


class Draws:
    """Random draws, one after the other, that depend on the key and nothing else."""

    def __init__(self, *key: int) -> None:
        self._words = np.random.Philox(key=keyed_word(*key))

    def shares(self, count: int) -> NDArray[np.float64]:
        """Numbers from 0 up to, but not including, 1; [count] float64."""
        return (self._words.random_raw(count) >> np.uint64(11)) / 2.0**53

    def below(self, limit: int) -> int:
        """A whole number from 0 up to, but not including, the limit."""
        return int(self.shares(1)[0] * limit)

    def permutation(self, size: int) -> NDArray[np.int64]:
        """The numbers 0 to size - 1 in a random order; [size] int64."""
        return np.argsort(self._words.random_raw(size), kind="stable")

    def choice(self, size: int, count: int) -> NDArray[np.int64]:
        """So many different numbers of 0 to size - 1, in ascending order; [count] int64."""
        return np.sort(self.permutation(size)[:count])
