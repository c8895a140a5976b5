"""Hugging Face folders of tiny tokenizers, trained here and saved by transformers."""

import io
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

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
