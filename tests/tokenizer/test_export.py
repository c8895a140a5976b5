"""export_tokenizer: transformers makes the same tokenizer of what is written, and so does the way back."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hf_folders import (
    CORPUS,
    LLAMA,
    T5,
    TEXTS,
    auto,
    bart_folder,
    gpt2_folder,
    marian_folder,
    qwen_folder,
    spm,
    spm_folder,
    write_json,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer import (
    SentencePieceTokenizer,
    export_tokenizer,
    tokenizer_from_hf_folder,
    train_sentencepiece,
)

ALGORITHMS = ("unigram", "bpe", "char")
NASTY = ["\u2581", "\u2581\u2581", "\u2585", "\x00", "\r\n", "\n", " ", "  ", "     ", "\t", "e\u0301", "漢字", "한국"]
NASTY += ["<0x41>", "<0x0A>", "<0x", "😀", "ﬁ①", "the ", "12345", "\u3000", "aaaa", "床前明月", "fox jumps"]
SPELLED = ["<|user|>", "</s>", "<s>", "<pad>", "<unk>"]


def any_text(parts: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts) | st.text(max_size=6), max_size=8).map("".join)


@cache
def trained(algorithm: str, **options: Any) -> SentencePieceTokenizer:
    return train_sentencepiece(SentencePieceConfig(algorithm=algorithm, vocab_size=420, **options), [CORPUS])[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SentencePieceTokenizer, Any, Any]]:
    """Of each algorithm, and with nfkc: the tokenizer, what transformers makes of it, and with split special tokens."""
    found = {}
    for name in (*ALGORITHMS, "nfkc"):
        own = trained("unigram", normalization="nfkc") if name == "nfkc" else trained(name)
        folder = tmp_path_factory.mktemp(name)
        write_json(folder / "config.json", {"model_type": "llama"})
        export_tokenizer(own, folder, family="llama", prefix=(own.special.bos_id,))
        found[name] = own, auto(folder), auto(folder, split_special_tokens=True)
    return found


@pytest.mark.parametrize("name", [*ALGORITHMS, "nfkc"])
@given(text=any_text(NASTY))
@settings(max_examples=150, deadline=None)
def test_a_model_trained_here_is_the_same_in_transformers(exported: Any, name: str, text: str) -> None:
    assume(not any(spelled in text for spelled in SPELLED))
    own, theirs, _ = exported[name]
    ids = own.encode(text)
    assert theirs.encode(text) == [own.special.bos_id, *ids]
    assert theirs.decode(ids, skip_special_tokens=True) == own.decode(ids)


@pytest.mark.parametrize("name", [*ALGORITHMS, "nfkc"])
@given(text=any_text(NASTY + SPELLED))
@settings(max_examples=100, deadline=None)
def test_special_tokens_are_the_same_in_transformers(exported: Any, name: str, text: str) -> None:
    own, theirs, split = exported[name]
    assert split.encode(text, add_special_tokens=False) == own.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == own.encode_with_special(text)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_transformers_knows_the_special_and_control_tokens(exported: Any, name: str) -> None:
    own, theirs, _ = exported[name]
    assert len(theirs) == len(own)
    roles = (theirs.pad_token_id, theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id)
    assert roles == (0, 1, 2, 3)
    assert set(own.control_ids.values()) <= set(theirs.all_special_ids)
    assert theirs.decode([2, *own.encode("a"), own.control_ids["<|user|>"], 3], skip_special_tokens=True) == "a"


@pytest.mark.parametrize("family", ["llama", "bart", "t5", "qwen3", "gpt2"])
def test_a_model_trained_here_comes_back(family: str, tmp_path: Path) -> None:
    own = trained("unigram")
    export_tokenizer(own, tmp_path, family=family, prefix=(2,), suffix=(3, 3))
    write_json(tmp_path / "config.json", {"model_type": family})
    again = tokenizer_from_hf_folder(tmp_path)
    assert again.tokenizer.fingerprint() == own.fingerprint()
    assert (again.prefix, again.suffix) == ((2,), (3, 3))
    assert auto(tmp_path).encode("a") == [2, *own.encode("a"), 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("normalization", ["identity", "nfkc"])
def test_real_text_is_the_same_in_transformers(
    algorithm: str, normalization: str, data_folder: Path, tmp_path: Path
) -> None:
    texts = []
    for language in ("de", "en", "fr"):
        with gzip.open(data_folder / f"multi30k/val.{language}.gz", "rt", encoding="utf-8") as lines:
            texts += lines.read().split("\n")
    with gzip.open(data_folder / "poetry_zh/tang300.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [json.loads(line)["text"] for line in lines]
    book = (data_folder / "books_en/moby_dick_or_the_whale.txt").read_text(encoding="utf-8")
    texts += [book[start : start + 3000] for start in range(0, len(book), 3000)]
    config = SentencePieceConfig(algorithm=algorithm, vocab_size=4000, normalization=normalization)
    own = train_sentencepiece(config, ["\n".join(texts)])[0]
    export_tokenizer(own, tmp_path, family="llama")
    theirs = auto(tmp_path)
    differ = [text for text in texts if theirs.encode(text) != own.encode(text)]
    # Scores in single and double precision: see equivalent.py. None of these texts is such a one today.
    assert len(differ) <= len(texts) // 1000
    assert all(theirs.decode(own.encode(text)) == own.decode(own.encode(text)) for text in texts)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_byte_pieces_the_unknown_is_the_same(algorithm: str, tmp_path: Path) -> None:
    own = trained(algorithm, byte_fallback=False)
    export_tokenizer(own, tmp_path, family="llama")
    theirs = auto(tmp_path)
    assert own.special.unk_id in own.encode("a\ua66eb")
    for text in [*TEXTS[:-1], "\ua66e\U0001f9ff \ua66e"]:
        if "\u2581" not in text:
            assert theirs.encode(text) == own.encode(text), text


@pytest.mark.parametrize("model_type", ["llama", "mistral", "t5"])
@pytest.mark.parametrize("added", [False, True])
def test_a_model_from_elsewhere_goes_out_as_it_came(model_type: str, added: bool, tmp_path: Path) -> None:
    folder = spm_folder(tmp_path / "in", model_type)
    model_file = "spiece.model" if model_type == "t5" else "tokenizer.model"
    if added:
        size = len(tokenizer_from_hf_folder(folder).tokenizer)
        write_json(folder / "added_tokens.json", {"<|tool|>": size})
    imported = tokenizer_from_hf_folder(folder)
    out = tmp_path / "out"
    export_tokenizer(
        imported.tokenizer,
        out,
        family=model_type,
        prefix=imported.prefix,
        suffix=imported.suffix,
        chat_template="{{ x }}",
    )
    write_json(out / "config.json", {"model_type": model_type})
    assert (out / model_file).read_bytes() == spm(**(T5 if model_type == "t5" else LLAMA))
    again = tokenizer_from_hf_folder(out)
    assert again.tokenizer.fingerprint() == imported.tokenizer.fingerprint()
    assert (again.prefix, again.suffix, again.chat_template) == (imported.prefix, imported.suffix, "{{ x }}")
    theirs = auto(out)
    assert theirs.chat_template == "{{ x }}"
    assert theirs.eos_token_id == imported.tokenizer.special.eos_id
    for text in TEXTS[:-1]:
        if model_type == "t5" or not text.startswith(" "):
            expected = [*imported.prefix, *imported.tokenizer.encode(text), *imported.suffix]
            assert theirs.encode(text) == expected, text
    spelled = "a</s>b" + "<|tool|> c" * added + "<extra_id_0> d" * (model_type == "t5")
    assert theirs.encode(spelled, add_special_tokens=False) == imported.tokenizer.encode_with_special(spelled)


@pytest.mark.parametrize(("make", "family"), [(gpt2_folder, "gpt2"), (bart_folder, "bart"), (qwen_folder, "qwen3")])
def test_a_tokenizer_json_goes_out_as_it_came(make: Any, family: str, tmp_path: Path) -> None:
    imported = tokenizer_from_hf_folder(make(tmp_path / "in"))
    oracle = auto(tmp_path / "in")
    out = tmp_path / "out"
    export_tokenizer(imported.tokenizer, out, family=family, prefix=imported.prefix, suffix=imported.suffix)
    write_json(out / "config.json", {"model_type": family})
    again = tokenizer_from_hf_folder(out)
    assert again.tokenizer.files() == imported.tokenizer.files()
    assert (again.prefix, again.suffix) == (imported.prefix, imported.suffix)
    theirs = auto(out)
    assert [theirs.encode(text) for text in TEXTS] == [oracle.encode(text) for text in TEXTS]
    for role in ("pad", "bos", "eos"):
        assert getattr(theirs, f"{role}_token") == getattr(oracle, f"{role}_token")


def test_a_tokenizer_json_can_be_framed_anew(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_hf_folder(qwen_folder(tmp_path / "in")).tokenizer
    end = tokenizer.special.eos_id
    export_tokenizer(tokenizer, tmp_path / "out", family="qwen2", prefix=(end,), suffix=(420, end))
    assert auto(tmp_path / "out").encode("a") == [end, *tokenizer.encode("a"), 420, end]


@pytest.mark.parametrize("separate", [False, True])
def test_marian_goes_out_as_it_came(separate: bool, tmp_path: Path) -> None:
    folder = marian_folder(tmp_path / "in", separate)
    source = tokenizer_from_hf_folder(folder)
    target = tokenizer_from_hf_folder(folder, target=True).tokenizer
    out = tmp_path / "out"
    export_tokenizer(target, out, family="marian", suffix=source.suffix, source_tokenizer=source.tokenizer)
    write_json(out / "config.json", {"model_type": "marian"})
    assert (out / "target_vocab.json").exists() == separate
    for name in ("source.spm", "target.spm"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    before, after = auto(folder), auto(out)
    for text in [*TEXTS, ">>fra<< a fox"]:
        assert after(text)["input_ids"] == before(text)["input_ids"]
        assert after(text_target=text)["input_ids"] == before(text_target=text)["input_ids"]
    assert tokenizer_from_hf_folder(out).tokenizer.fingerprint() == source.tokenizer.fingerprint()


def test_a_model_trained_here_can_be_one_of_marian(tmp_path: Path) -> None:
    source, target = trained("unigram"), trained("bpe")
    export_tokenizer(target, tmp_path, family="marian", suffix=(3,), source_tokenizer=source)
    write_json(tmp_path / "config.json", {"model_type": "marian"})
    theirs = auto(tmp_path)
    for text in TEXTS[:-1]:
        if "\u2581" not in text:
            assert theirs(text)["input_ids"] == [*source.encode(text), 3]
            assert theirs(text_target=text)["input_ids"] == [*target.encode(text), 3]
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.eos_token_id) == (0, 1, 3)
    assert tokenizer_from_hf_folder(tmp_path).tokenizer.fingerprint() == source.fingerprint()
    assert tokenizer_from_hf_folder(tmp_path, target=True).tokenizer.fingerprint() == target.fingerprint()


def test_what_a_family_cannot_have_is_told(tmp_path: Path) -> None:
    own, other = trained("unigram"), trained("bpe")
    with pytest.raises(CheckpointError, match="one tokenizer"):
        export_tokenizer(own, tmp_path, family="t5", source_tokenizer=other)
    with pytest.raises(CheckpointError, match="end token after every text"):
        export_tokenizer(own, tmp_path, family="marian", prefix=(2,), suffix=(3,))
    with pytest.raises(CheckpointError, match="SentencePiece"):
        export_tokenizer(tokenizer_from_hf_folder(gpt2_folder(tmp_path / "a")).tokenizer, tmp_path, family="marian")
    suffixed = SentencePieceTokenizer(spm(treat_whitespace_as_suffix=True, vocab_size=150, character_coverage=0.99))
    with pytest.raises(CheckpointError, match="no equivalent"):
        export_tokenizer(suffixed, tmp_path, family="llama")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        export_tokenizer(trained("char"), tmp_path / "file", family="llama")
