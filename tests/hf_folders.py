"""Hugging Face folders of tiny tokenizers, trained here and saved by transformers."""

import io
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

# Whoever imports this module is skipped where they are missing.
pytest.importorskip("tokenizers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog, again and again; it's 12345 o'clock.\n\n  Twelve  spaces,\tone tab.\n"
    "床前明月光,疑是地上霜。舉頭望明月,低頭思故鄉。\n안녕하세요 세계\nif x:\n    return [x] * 12345\n"
    "réponse café naïve Straße\n"
    "Съешь же ещё этих мягких французских булок.\nمرحبا بالعالم\nहिन्दी में लिखो\n"
) * 4

TEXTS = [
    "",
    "a",
    " a",
    "a ",
    "  a  b   c  ",
    "\n",
    "a\n\nb\n",
    "\ta\r\nb",
    "The quick brown fox, isn't it? It's 12345.",
    "床前明月光,疑是地上霜。",
    "안녕하세요 세계",
    "Съешь же ещё этих",
    "مرحبا بالعالم",
    "हिन्दी में",
    "naïve café Straße e\u0301",
    "😀 \U0001f469\u200d\U0001f467 fox",
    "\ua66e\U0001f9ff漢",
    "a\u2581b \u2581",
    "a\x00b",
    "ﬁ ① Ａ",
    "</s><s><pad><unk> <|endoftext|> <extra_id_0> <0x41> >>fra<<",
]


def auto(folder: Path, **options: Any) -> Any:
    """What transformers makes of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(str(folder), **options)


def save(tokenizer: Any, folder: Path, model_type: str = "") -> Path:
    """Save a tokenizer of transformers, with a config.json that names the model's type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer.save_pretrained(str(folder))
    if model_type:
        write_json(folder / "config.json", {"model_type": model_type})
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@cache
def byte_level(special: tuple[str, ...], vocab_size: int = 420) -> tuple[str, str]:
    """A byte-level BPE as (vocab.json, merges.txt), special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.split("\n"), trainer)
    description = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in description["merges"]]
    return json.dumps(description["vocab"], ensure_ascii=False), "#version: 0.2\n" + "\n".join(merges) + "\n"


@cache
def spm(**options: Any) -> bytes:
    """A SentencePiece model of the corpus, with SentencePiece's own defaults."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=model,
        **{"vocab_size": 420, "hard_vocab_limit": False, "minloglevel": 3, **options},
    )
    return model.getvalue()


LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "vocab_size": 480,
    "character_coverage": 0.99,
}
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "character_coverage": 0.99}


def bpe_folder(folder: Path, cls: str, special: tuple[str, ...], **options: Any) -> Path:
    """A folder with vocab.json, merges.txt and tokenizer_config.json only."""
    vocab, merges = byte_level(special)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": cls, **options})
    return folder


ENDOFTEXT = "<|endoftext|>"
BART_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def added_token(name: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": name, "special": special, **flags}


def gpt2_folder(folder: Path) -> Path:
    return bpe_folder(folder, "GPT2Tokenizer", (ENDOFTEXT,))


def bart_folder(folder: Path) -> Path:
    return bpe_folder(folder, "BartTokenizer", BART_SPECIAL)


def qwen_folder(folder: Path) -> Path:
    """Qwen2 with its chat tokens, and <think>, which is added but not special."""
    added = [added_token(name) for name in (ENDOFTEXT, "<|im_start|>", "<|im_end|>")] + [added_token("<think>", False)]
    return bpe_folder(
        folder,
        "Qwen2Tokenizer",
        (),
        added_tokens_decoder={str(420 + number): token for number, token in enumerate(added)},
        eos_token="<|im_end|>",
        pad_token=ENDOFTEXT,
        bos_token=None,
        unk_token=None,
    )


def spm_folder(folder: Path, model_type: str, **config: Any) -> Path:
    """A folder of Llama or T5 with its SentencePiece model only."""
    name, model = ("spiece.model", spm(**T5)) if model_type == "t5" else ("tokenizer.model", spm(**LLAMA))
    write_json(folder / "config.json", {"model_type": model_type})
    write_json(folder / "tokenizer_config.json", config)
    (folder / name).write_bytes(model)
    return folder


def llama_oracle(model: bytes, **options: Any) -> Any:
    """What transformers makes of Llama's .model, put together here because its reader needs protobuf."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {processor.id_to_piece(i): i for i in range(len(processor))}
    scores = {piece: processor.get_score(i) for piece, i in vocab.items()}
    from transformers.tokenization_utils_base import generate_merges

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, scores), **options)


def t5_oracle(model: bytes, charsmap: bytes, extra_ids: int) -> Any:
    """What transformers makes of T5's .model, likewise."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra_ids))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.T5Tokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap, extra_ids=extra_ids)


def marian_folder(folder: Path, separate: bool = False) -> Path:
    """Marian with two models whose pieces have ids of their own, some of them none."""
    source = spm(vocab_size=150, character_coverage=0.99)
    target = spm(vocab_size=200, character_coverage=0.99, model_type="bpe")
    folder.mkdir(parents=True)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    pieces = [_pieces(source), _pieces(target)] if separate else [_pieces(source) | _pieces(target)]
    for name, found in zip(("vocab.json", "target_vocab.json"), pieces, strict=False):
        usual = ["</s>", "<unk>", *sorted(found, key=lambda piece: piece[::-1])[5:], ">>fra<<", ">>deu<<", "<pad>"]
        write_json(folder / name, {piece: number for number, piece in enumerate(usual)})
    write_json(folder / "config.json", {"model_type": "marian"})
    write_json(
        folder / "tokenizer_config.json", {"source_lang": "en", "target_lang": "fr", "separate_vocabs": separate}
    )
    return folder


def _pieces(model: bytes) -> set[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {processor.id_to_piece(i) for i in range(len(processor))} - {"<s>", "</s>", "<unk>"}
