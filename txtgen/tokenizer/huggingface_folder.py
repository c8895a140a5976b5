"""The tokenizer of a Hugging Face folder, by one door."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from txtgen.errors import CheckpointError
from txtgen.tokenizer.bpe_files import from_bpe_files
from txtgen.tokenizer.decoders import is_byte_level
from txtgen.tokenizer.families import MARIAN, Family, family_of
from txtgen.tokenizer.huggingface import JSON_FILE, HuggingFaceTokenizer
from txtgen.tokenizer.huggingface_files import CONFIG_FILE, FolderFiles, added_tokens, chat_template, special_names
from txtgen.tokenizer.names import SpecialNames, check_ids, parse_object
from txtgen.tokenizer.post_processor import read_framing
from txtgen.tokenizer.sentencepiece import SentencePieceTokenizer
from txtgen.tokenizer.sentencepiece_model import MAX_MODEL_BYTES
from txtgen.tokenizer.types import Tokenizer

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
_MAX_SENTINELS = 100_000


@dataclass(frozen=True, slots=True)
class ImportedTokenizer:
    """A tokenizer, and how its family uses it.

    prefix, suffix: the ids that the family puts before and after a text. chat_template: a Jinja template that
    turns a conversation into text for `encode_with_special`, or None.
    """

    tokenizer: Tokenizer
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    chat_template: str | None = None


def tokenizer_from_hf_folder(folder: Path, *, target: bool = False) -> ImportedTokenizer:
    """The tokenizer of a Hugging Face folder; with `target`, the one of the target texts where there are two.

    SentencePiece models come along as they are: of Marian source.spm or target.spm with vocab.json; of T5, Llama
    and Mistral the .model, with the tokens that were added to it. Otherwise it is tokenizer.json, else vocab.json
    with merges.txt. A tokenizer.model beside a byte-level tokenizer.json, as Llama 3 has it, is not SentencePiece
    and passed over.

    transformers 5 builds the tokenizer of a Llama anew from such a model. Both give the same ids, except for a text
    that begins with a space: SentencePiece puts another before it, as the model was trained, transformers does not.

    Raises:
        CheckpointError: there is none, or it is damaged or of a kind that is not known.
        ResourceError: a file may not be read, or the tokenizers package is needed and not installed.
    """
    files = FolderFiles(folder)
    config = files.object(CONFIG_FILE) or {}
    family = family_of(config, files.object("config.json") or {})
    description = files.object(JSON_FILE)
    tokenizer: Tokenizer
    if family is MARIAN or files.exists("source.spm"):
        family, tokenizer = MARIAN, _marian(files, config, target)
    else:
        tokenizer = _tokenizer(files, config, family, description)
    prefix, suffix = _framing(files, config, family, tokenizer, description)
    return ImportedTokenizer(tokenizer, prefix, suffix, chat_template(files, config))


def _tokenizer(
    files: FolderFiles, config: Mapping[str, Any], family: Family, description: Mapping[str, Any] | None
) -> Tokenizer:
    """The tokenizer of any folder but Marian's; of its tokenizer.json, if it has one, the description."""
    if description is None or not is_byte_level(description):
        for name in filter(files.exists, family.model_files):
            return _sentencepiece(files, config, family, name, description)
    names = special_names(files, config, family.names)
    if description is not None:
        own = _marked_special(added_tokens(files, {}, description))
        control = [*names.control, *(_marked_special(added_tokens(files, config)) - own - names.all())]
        names = replace(names, control=tuple(control))
        return HuggingFaceTokenizer(files.read(JSON_FILE), names, files.path(JSON_FILE), description)
    if family.bpe and files.exists(VOCABULARY_FILE) and files.exists(MERGES_FILE):
        return from_bpe_files(
            files.read(VOCABULARY_FILE),
            files.read(MERGES_FILE),
            family.bpe,
            names,
            added=added_tokens(files, config),
            add_prefix_space=config.get("add_prefix_space") is True,
            where=files.path(VOCABULARY_FILE),
        )
    wanted = ", ".join([*family.model_files, JSON_FILE, *(["vocab.json with merges.txt"] if family.bpe else [])])
    raise CheckpointError(f"the folder has no tokenizer: none of {wanted}", str(files.folder), "use a complete folder")


def _marked_special(added: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The added tokens of which the files say that they are special."""
    return {name for name, entry in added.items() if entry.get("special")}


def _sentencepiece(
    files: FolderFiles, config: Mapping[str, Any], family: Family, name: str, description: Mapping[str, Any] | None
) -> SentencePieceTokenizer:
    """A .model as it is, or with the tokens that were added to it."""
    model = files.read(name, MAX_MODEL_BYTES)
    plain = SentencePieceTokenizer(model, files.path(name))
    pieces = plain.pieces(range(len(plain)))
    entries = added_tokens(files, config, description)
    added = {token: entry["id"] for token, entry in entries.items()}
    for number, sentinel in enumerate(_sentinels(files, config, family)):
        added.setdefault(sentinel, len(pieces) + number)
    names = special_names(files, config, family.names)
    new = {token: token_id for token, token_id in added.items() if pieces[token_id : token_id + 1] != [token]}
    special = plain.special
    stated = {"unk_token": special.unk_id, "bos_token": special.bos_id, "eos_token": special.eos_id}
    same = all(pieces[stated[key]] == token for key, token in names.roles().items() if key in stated)
    # Pieces that are text to SentencePiece, such as user-defined symbols, and special by the folder's other files.
    marked = ({*_marked_special(entries), *names.all()} & {*pieces}) - plain.special_pieces.keys()
    if not new and same and not marked:
        return plain
    taken = {*new.values()}
    vocabulary = {piece: i for i, piece in enumerate(pieces) if i not in taken and piece not in new} | new
    names = replace(names, unk=names.unk or pieces[special.unk_id])
    return _with_vocabulary(model, files.path(name), vocabulary, names, [*new, *sorted(marked)])


def _with_vocabulary(
    model: bytes, where: str, vocabulary: Mapping[str, Any], names: SpecialNames, control: Iterable[str]
) -> SentencePieceTokenizer:
    """A SentencePiece model with ids of its own; everything in the order of the ids, so that equal ones look equal."""
    check_ids(vocabulary, where)
    known = replace(names, control=(*{*names.control, *control},)).within(vocabulary)
    in_order = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    names = replace(known, control=tuple(sorted(known.control, key=in_order.__getitem__)))
    return SentencePieceTokenizer(model, where, in_order, names)


def _sentinels(files: FolderFiles, config: Mapping[str, Any], family: Family) -> list[str]:
    """The tokens that T5 has after the pieces of its model."""
    number = config.get("extra_ids", family.num_sentinels)
    if type(number) is not int or not 0 <= number <= _MAX_SENTINELS:
        raise CheckpointError(f"extra_ids is {str(number)[:60]!r}", files.path(CONFIG_FILE), "give a whole number")
    return [f"<extra_id_{i}>" for i in reversed(range(number))]


def _marian(files: FolderFiles, config: Mapping[str, Any], target: bool) -> SentencePieceTokenizer:
    """The source or the target side of a Marian model: its SentencePiece model, its ids from a vocabulary."""
    separate = target and config.get("separate_vocabs") is True
    vocabulary_file = "target_vocab.json" if separate else VOCABULARY_FILE
    vocabulary = parse_object(files.read(vocabulary_file), files.path(vocabulary_file))
    name = "target.spm" if target else "source.spm"
    model = files.read(name, MAX_MODEL_BYTES)
    plain = SentencePieceTokenizer(model, files.path(name))
    if vocabulary == {piece: token_id for token_id, piece in enumerate(plain.pieces(range(len(plain))))}:
        return plain
    names = special_names(files, config, MARIAN.names)
    languages = [piece for piece in vocabulary if piece.startswith(">>") and piece.endswith("<<")]
    return _with_vocabulary(model, files.path(name), vocabulary, names, languages)


def _framing(
    files: FolderFiles,
    config: Mapping[str, Any],
    family: Family,
    tokenizer: Tokenizer,
    description: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text: by the family's class, by tokenizer.json, or by tokenizer_config.json."""
    if description is not None and not family.fixed:
        return read_framing(description.get("post_processor"), files.path(JSON_FILE))
    add_bos, add_eos = family.add_bos, family.add_eos
    if not family.fixed:
        add_bos = config.get("add_bos_token", add_bos) is True
        add_eos = config.get("add_eos_token", add_eos) is True
    named = special_names(files, config, family.names).roles()
    special = tokenizer.special
    prefix = (special.bos_id,) if add_bos and "bos_token" in named else ()
    return prefix, (special.eos_id,) if add_eos and "eos_token" in named else ()
