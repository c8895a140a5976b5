"""tokenizer_from_hf_folder: what transformers makes of a folder, for every family."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_folders import (
    ENDOFTEXT,
    LLAMA,
    T5,
    TEXTS,
    added_token,
    auto,
    bart_folder,
    bpe_folder,
    gpt2_folder,
    llama_oracle,
    marian_folder,
    qwen_folder,
    save,
    spm,
    spm_folder,
    t5_oracle,
    write_json,
)

from txtgen.errors import CheckpointError, ResourceError
from txtgen.tokenizer import (
    HuggingFaceTokenizer,
    ImportedTokenizer,
    SentencePieceTokenizer,
    huggingface,
    huggingface_files,
    tokenizer_from_hf_folder,
)
from txtgen.tokenizer.sentencepiece_proto import read_model

ORDINARY = TEXTS[:-1]
"""Texts that spell no special token."""


def assert_same(imported: ImportedTokenizer, oracle: Any, texts: list[str], unknown: bool = True) -> None:
    """The ids, the framing, the special ids and decoding are those of transformers."""
    tokenizer = imported.tokenizer
    assert len(tokenizer) == len(oracle)
    for text in texts:
        ids = oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == ids, text
        assert [*imported.prefix, *ids, *imported.suffix] == oracle.encode(text), text
        if unknown or tokenizer.special.unk_id not in ids:
            assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert tokenizer.special.eos_id == oracle.eos_token_id
    for role in ("pad", "bos", "unk"):
        given = getattr(oracle, f"{role}_token_id")
        assert getattr(tokenizer.special, f"{role}_id") == (tokenizer.special.eos_id if given is None else given)


@pytest.mark.parametrize("make", [gpt2_folder, bart_folder, qwen_folder])
@pytest.mark.parametrize("saved", [False, True], ids=["old files", "tokenizer.json"])
def test_byte_level_bpe_is_that_of_transformers(make: Callable[[Path], Path], saved: bool, tmp_path: Path) -> None:
    folder = make(tmp_path / "old")
    oracle = auto(folder)
    if saved:
        folder = save(oracle, tmp_path / "new")
    imported = tokenizer_from_hf_folder(folder)
    assert isinstance(imported.tokenizer, HuggingFaceTokenizer)
    assert_same(imported, oracle, ORDINARY)
    for text in TEXTS:
        assert imported.tokenizer.decode(imported.tokenizer.encode(text)) == (
            text if make is not qwen_folder else text.replace("e\u0301", "\u00e9")
        )
        assert imported.tokenizer.encode_with_special(text) == oracle.encode(text, add_special_tokens=False)


def test_a_chat_text_of_qwen_is_parsed_and_forged_by_nobody(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_hf_folder(qwen_folder(tmp_path)).tokenizer
    text = f"<|im_start|>user\n<think>a<|im_end|>{ENDOFTEXT}"
    parsed = tokenizer.encode_with_special(text)
    assert parsed == auto(tmp_path).encode(text)
    assert {420, 421, 422, 423} < {*parsed}
    assert {420, 421, 422}.isdisjoint(tokenizer.encode(text))
    assert tokenizer.decode(parsed) == "user\n<think>a"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.control_ids == {"<|im_start|>": 421}


@pytest.mark.parametrize("added", [False, True])
def test_llama_is_that_of_transformers(added: bool, tmp_path: Path) -> None:
    names = {"eos_token": "<|im_end|>", "pad_token": "[PAD]"} if added else {}
    tokens = {"480": added_token("<|im_end|>"), "481": added_token("[PAD]")} if added else {}
    config = {"add_bos_token": True, "added_tokens_decoder": tokens, **names}
    imported = tokenizer_from_hf_folder(spm_folder(tmp_path, "llama", tokenizer_class="LlamaTokenizer", **config))
    oracle = llama_oracle(spm(**LLAMA), add_bos_token=True, **names)
    assert isinstance(imported.tokenizer, SentencePieceTokenizer)
    assert (imported.tokenizer.vocabulary is not None) == added
    assert_same(imported, oracle, [text for text in ORDINARY if not text.startswith(" ")])
    end = names.get("eos_token", "</s>")
    for text in [f"<s>[INST] a [/INST] b{end}c", "a<s>\u2581b", "<unk> a", "<s><s>", f"x{end}"]:
        expected = oracle.encode(text, add_special_tokens=False)
        assert imported.tokenizer.encode_with_special(text) == expected, text
    assert imported.tokenizer.pieces(imported.tokenizer.encode(" a")) == ["\u2581\u2581", "a"]  # transformers: ▁a


@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_a_json_of_llama_or_t5_alone_is_that_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = spm(**(T5 if model_type == "t5" else LLAMA))
    if model_type == "t5":
        oracle = t5_oracle(model, read_model(model).charsmap, 10)
    else:
        oracle = llama_oracle(model, add_bos_token=True)
    imported = tokenizer_from_hf_folder(save(oracle, tmp_path, model_type))
    assert isinstance(imported.tokenizer, HuggingFaceTokenizer)
    assert_same(imported, auto(tmp_path), ORDINARY, unknown=False)
    for text in TEXTS:
        assert imported.tokenizer.encode_with_special(text) == oracle.encode(text, add_special_tokens=False)


def test_llama_adds_bos_by_itself(tmp_path: Path) -> None:
    imported = tokenizer_from_hf_folder(spm_folder(tmp_path, "llama"))
    assert (imported.prefix, imported.suffix) == ((1,), ())


def test_added_tokens_come_from_their_own_file_too(tmp_path: Path) -> None:
    folder = spm_folder(tmp_path, "mistral", tokenizer_class="LlamaTokenizer")
    write_json(folder / "added_tokens.json", {"<|tool|>": 480})
    tokenizer = tokenizer_from_hf_folder(folder).tokenizer
    assert tokenizer.control_ids == {"<|tool|>": 480}
    assert 480 not in tokenizer.encode("a<|tool|>b")
    assert tokenizer.encode_with_special("a<|tool|>b") == [*tokenizer.encode("a"), 480, *tokenizer.encode("ab")[1:]]
    assert tokenizer.decode([480]) == ""


def test_t5_is_that_of_transformers(tmp_path: Path) -> None:
    imported = tokenizer_from_hf_folder(spm_folder(tmp_path, "t5", tokenizer_class="T5Tokenizer", extra_ids=10))
    model = spm(**T5)
    oracle = t5_oracle(model, read_model(model).charsmap, 10)
    assert_same(imported, oracle, ORDINARY, unknown=False)
    tokenizer = imported.tokenizer
    assert tokenizer.control_ids["<extra_id_0>"] == len(tokenizer) - 1 == oracle.convert_tokens_to_ids("<extra_id_0>")
    for text in ["The <extra_id_0> fox<extra_id_1>over  <extra_id_2> ", "</s>a<pad>"]:
        assert tokenizer.encode_with_special(text) == oracle.encode(text, add_special_tokens=False)


def test_t5_has_a_hundred_sentinels_by_itself(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_hf_folder(spm_folder(tmp_path, "t5")).tokenizer
    assert len(tokenizer.control_ids) == 100


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("target", [False, True])
def test_marian_is_that_of_transformers(separate: bool, target: bool, tmp_path: Path) -> None:
    folder = marian_folder(tmp_path / "marian", separate)
    oracle = auto(folder, separate_vocabs=separate)
    imported = tokenizer_from_hf_folder(folder, target=target)
    tokenizer = imported.tokenizer
    languages = [">>fra<< a fox", ">>deu<<The fox"] if not (separate and target) else []
    for text in ORDINARY + languages:
        ids = oracle(text_target=text)["input_ids"] if target else oracle(text)["input_ids"]
        assert [*imported.prefix, *tokenizer.encode(text), *imported.suffix] == ids, text
    assert tokenizer.decode(tokenizer.encode("the lazy dog")) == "the lazy dog"
    vocabulary = json.loads((folder / ("target_vocab.json" if separate and target else "vocab.json")).read_text())
    assert len(tokenizer) == len(vocabulary)
    assert tokenizer.special.pad_id == vocabulary["<pad>"]
    assert tokenizer.control_ids == {name: vocabulary[name] for name in (">>fra<<", ">>deu<<")}


def test_no_text_of_marian_is_a_special_token(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_hf_folder(marian_folder(tmp_path / "marian")).tokenizer
    for text in ["</s>", "a <pad> b", "a >>fra<<", "<unk>"]:
        reserved = {tokenizer.special.pad_id, tokenizer.special.eos_id, *tokenizer.control_ids.values()}
        assert reserved.isdisjoint(tokenizer.encode(text))
    assert tokenizer.encode(">>xyz<< a")[0] not in tokenizer.control_ids.values()


def test_a_byte_level_json_goes_before_a_model_that_is_no_sentencepiece(tmp_path: Path) -> None:
    folder = save(auto(gpt2_folder(tmp_path / "old")), tmp_path / "llama3", "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert isinstance(tokenizer_from_hf_folder(folder).tokenizer, HuggingFaceTokenizer)


@pytest.mark.parametrize(
    ("post_processor", "framing"),
    [
        (None, ((), ())),
        ({"type": "BertProcessing", "cls": ["a", 7], "sep": ["b", 8]}, ((7,), (8,))),
        (
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "x", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "y", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {"x": {"id": "x", "ids": [3, 4]}, "y": {"id": "y", "ids": [5]}},
            },
            ((3, 4), (5,)),
        ),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_framing_comes_from_the_post_processor(post_processor: Any, framing: Any, nested: bool, tmp_path: Path) -> None:
    folder = save(auto(gpt2_folder(tmp_path / "old")), tmp_path / "new")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ENDOFTEXT})
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if nested and post_processor is not None:
        level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        post_processor = {"type": "Sequence", "processors": [level, post_processor]}
    write_json(folder / "tokenizer.json", description | {"post_processor": post_processor})
    imported = tokenizer_from_hf_folder(folder)
    assert (imported.prefix, imported.suffix) == framing


def test_flags_of_the_config_count_where_there_is_no_json(tmp_path: Path) -> None:
    config = {"add_bos_token": True, "add_eos_token": True}
    folder = bpe_folder(tmp_path / "old", "GPT2Tokenizer", (ENDOFTEXT,), **config)
    imported = tokenizer_from_hf_folder(folder)
    assert (imported.prefix, imported.suffix) == ((0,), (0,))
    assert auto(folder).encode("a") == [0, *imported.tokenizer.encode("a"), 0]
    folder = save(auto(gpt2_folder(tmp_path / "plain")), tmp_path / "new")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **config})
    assert tokenizer_from_hf_folder(folder).prefix == ()
    assert auto(folder).encode("a") == imported.tokenizer.encode("a")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
    ],
)
def test_the_chat_template_comes_along(template: Any, expected: str | None, tmp_path: Path) -> None:
    folder = spm_folder(tmp_path, "llama", chat_template=template)
    assert tokenizer_from_hf_folder(folder).chat_template == expected
    (folder / "chat_template.jinja").write_text("{{ own }}", encoding="utf-8")
    assert tokenizer_from_hf_folder(folder).chat_template == "{{ own }}"


def test_names_may_be_objects_or_in_the_map_of_special_tokens(tmp_path: Path) -> None:
    folder = spm_folder(tmp_path, "llama", eos_token={"content": "<s>", "lstrip": False})
    write_json(folder / "special_tokens_map.json", {"eos_token": "</s>", "pad_token": "<unk>"})
    tokenizer = tokenizer_from_hf_folder(folder).tokenizer
    assert tokenizer.special.eos_id == 1
    assert tokenizer.special.pad_id == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", b"[]", "no JSON object"),
        ("tokenizer_config.json", b"{", "not JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "nested too deep"),
        ("tokenizer_config.json", b'{"eos_token": "\\uD800"}', "surrogate"),
        ("added_tokens.json", b'{"a\\udc00": 480}', "surrogate"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token is '5'"),
        ("tokenizer_config.json", b'{"extra_ids": -1, "tokenizer_class": "T5Tokenizer"}', "extra_ids is '-1'"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "added tokens"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": {"content": "a"}, "9": {"content": 4}}}', "id"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat template"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "other", "template": "x"}]}', "called default"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
        ("chat_template.jinja", b"x" * 2_000_000, "larger than"),
        ("added_tokens.json", b'{"a": 1e9}', "for an id"),
        ("added_tokens.json", b'{"a": 99999999999}', "for an id"),
        ("special_tokens_map.json", b'{"additional_special_tokens": 5}', "not the name of a token"),
        ("tokenizer.model", b"nonsense", "SentencePiece"),
    ],
)
def test_bad_files_are_told_by_name(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    folder = spm_folder(tmp_path, "llama")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        tokenizer_from_hf_folder(folder)
    assert caught.value.what
    assert str(folder) in caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize("merges", [b"a b c\n", b"\xff\xff", b"#version\nq zzzzz\n", b"a  b\n"])
def test_bad_merges_are_told(merges: bytes, tmp_path: Path) -> None:
    (gpt2_folder(tmp_path) / "merges.txt").write_bytes(merges)
    with pytest.raises(CheckpointError, match="not a usable tokenizer"):
        tokenizer_from_hf_folder(tmp_path)


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        tokenizer_from_hf_folder(tmp_path / "none")
    write_json(tmp_path / "config.json", {"model_type": "qwen2"})
    with pytest.raises(CheckpointError, match=r"none of tokenizer.json, vocab.json with merges.txt"):
        tokenizer_from_hf_folder(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "marian"})
    with pytest.raises(CheckpointError, match=r"has no vocab.json"):
        tokenizer_from_hf_folder(tmp_path)


def test_without_the_tokenizers_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2_folder(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ResourceError, match=r"pip install 'txtgen\[hf\]'"):
        tokenizer_from_hf_folder(tmp_path)


def test_a_folder_is_parsed_and_its_tokenizer_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(auto(qwen_folder(tmp_path / "old")), tmp_path / "new")
    parsed, built = [], []
    read, build = huggingface_files.parse_object, huggingface._load

    def counting_read(content: bytes, where: str) -> dict[str, Any]:
        parsed.append(Path(where).name)
        return read(content, where)

    def counting_build(description: dict[str, Any], where: str) -> Any:
        built.append(where)
        return build(description, where)

    for module in (huggingface_files, huggingface):
        monkeypatch.setattr(module, "parse_object", counting_read)
    monkeypatch.setattr(huggingface, "_load", counting_build)
    tokenizer = tokenizer_from_hf_folder(folder).tokenizer
    assert tokenizer.encode_with_special("a<|im_end|>")[-1] == 422
    assert parsed.count("tokenizer.json") == len(built) == 1
