"""A vocabulary short-list: the target tokens that may plausibly occur in the translation of a source.

Source: L'Hostis et al. 2016, arXiv 1610.00072; the file is one of safetensors, which holds tensors and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from txtgen.errors import CheckpointError, ResourceError
from txtgen.files import replace_file
from txtgen.lexicon.alignment import Ints
from txtgen.tokenizer import Tokenizer

FORMAT = "txtgen short-list 1"
HOW = "txtgen shortlist MODEL --data SOURCE --target TARGET --out FILE"
DIMENSIONS = {"frequent": 1, "candidates": 2}
"""Of the tensors in a file, by their names."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of target tokens that are in the lists of their sources, and how many tokens a list has on average."""

    share: float
    tokens: float


@dataclass(frozen=True)
class Shortlist:
    """Target tokens that any source may need, and those that each source token may.

    frequent: [N] int32. candidates: [V,K] int32, for each source token; -1 stands for none. source_tokenizer,
    tokenizer: fingerprints of those of both sides; where they are the same, a source's own tokens may occur too.
    """

    frequent: NDArray[np.int32]
    candidates: NDArray[np.int32]
    source_tokenizer: str
    tokenizer: str

    def tokens(self, source_ids: Sequence[int] | Ints) -> list[int]:
        """The target tokens that may occur where the source has these tokens, in ascending order."""
        ids = np.asarray(source_ids, dtype=np.int64)
        parts: list[NDArray[np.signedinteger]] = [self.frequent, self.candidates[ids].ravel()]
        if self.source_tokenizer == self.tokenizer:
            parts.append(ids)
        tokens = np.unique(np.concatenate(parts))
        found: list[int] = tokens[tokens >= 0].tolist()
        return found

    def coverage(self, pairs: Sequence[tuple[Sequence[int] | Ints, Sequence[int] | Ints]]) -> Coverage:
        """How well the lists of sources hold the tokens of their targets; at least one target has one."""
        lists = [self.tokens(source) for source, _ in pairs]
        held = sum(int(np.isin(target, tokens).sum()) for tokens, (_, target) in zip(lists, pairs, strict=True))
        return Coverage(held / sum(len(target) for _, target in pairs), sum(map(len, lists)) / len(lists))

    def fingerprint(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        told = repr((self.source_tokenizer, self.tokenizer, self.candidates.shape)).encode()
        return sha256(told + self.frequent.tobytes() + self.candidates.tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            ResourceError: there is no room or no permission.
        """
        told = {"format": FORMAT, "source_tokenizer": self.source_tokenizer, "tokenizer": self.tokenizer}
        packed = save({"frequent": self.frequent, "candidates": self.candidates}, told)
        with replace_file(path, needs=len(packed)) as handle:
            handle.write(packed)

    @classmethod
    def load(cls, path: Path) -> "Shortlist":
        """Read one that `save` has written.

        Raises:
            CheckpointError: there is no such file, or it is no short-list, or damaged.
            ResourceError: it cannot be read.
        """
        if not path.is_file():
            raise CheckpointError("no such short-list", str(path), f"make it first: {HOW}")
        try:
            with safe_open(path, "np") as file:
                told = file.metadata() or {}
                if told.get("format") != FORMAT or set(file.keys()) != set(DIMENSIONS):
                    raise CheckpointError("no short-list of this version of txtgen", str(path), f"make it anew: {HOW}")
                tensors = {name: file.get_tensor(name) for name in DIMENSIONS}
        except OSError as error:
            raise ResourceError(
                f"cannot read: {error.strerror or error}", str(path), "check its permissions"
            ) from error
        except (SafetensorError, TypeError, ValueError) as error:  # the last two: numbers of a kind that numpy lacks
            told_of = f"not a usable short-list: it is cut short or no safetensors file ({error})"
            raise CheckpointError(told_of, str(path), f"make it anew: {HOW}") from error
        for name, dimensions in DIMENSIONS.items():
            if tensors[name].dtype != np.int32 or tensors[name].ndim != dimensions:
                raise CheckpointError(f"not a usable short-list: {name} is not one", str(path), f"make it anew: {HOW}")
        return cls(**tensors, source_tokenizer=told.get("source_tokenizer", ""), tokenizer=told.get("tokenizer", ""))

    def check(self, source_tokenizer: Tokenizer, tokenizer: Tokenizer, where: str = "shortlist") -> None:
        """Refuse a model with these tokenizers of source and target unless it was made for them.

        Raises:
            CheckpointError: it was not, or has tokens that they do not have.
        """
        for side, mine, its in (
            ("source", self.source_tokenizer, source_tokenizer),
            ("target", self.tokenizer, tokenizer),
        ):
            if mine != its.fingerprint():
                told = f"the short-list was made for another tokenizer of the {side} ({mine[:16]})"
                raise CheckpointError(told, where, f"make one for this model: {HOW}")
        known = all(
            tokens.min(initial=0) >= least and tokens.max(initial=0) < len(tokenizer)
            for tokens, least in ((self.frequent, 0), (self.candidates, -1))
        )
        if len(self.candidates) != len(source_tokenizer) or not known:
            raise CheckpointError("the short-list is damaged: it has other tokens", where, f"make it anew: {HOW}")
