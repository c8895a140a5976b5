"""What the tokenizer classes of Hugging Face take for granted, by family."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from txtgen.tokenizer.bpe_files import BpeFamily
from txtgen.tokenizer.names import SpecialNames


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's tokenizer class takes for granted.

    names: its special tokens. add_bos, add_eos: what it puts around a text. fixed: whether it does so whatever the
    files say. model_files: its SentencePiece model, the usual name first. bpe: how its vocab.json is to be read.
    num_sentinels: tokens such as <extra_id_0> that stand after the pieces of its model, the last one first.
    """

    names: SpecialNames
    add_bos: bool = False
    add_eos: bool = False
    fixed: bool = False
    model_files: tuple[str, ...] = ()
    bpe: BpeFamily | None = None
    num_sentinels: int = 0


_ENDOFTEXT = "<|endoftext|>"
_GPT2 = Family(SpecialNames(unk=_ENDOFTEXT, bos=_ENDOFTEXT, eos=_ENDOFTEXT), bpe="gpt2")
_BART = Family(
    SpecialNames("<pad>", "<unk>", "<s>", "</s>", ("<mask>",)), add_bos=True, add_eos=True, fixed=True, bpe="bart"
)
_QWEN2 = Family(SpecialNames(pad=_ENDOFTEXT, unk=_ENDOFTEXT, eos=_ENDOFTEXT), bpe="qwen2")
_LLAMA = Family(SpecialNames(unk="<unk>", bos="<s>", eos="</s>"), add_bos=True, model_files=("tokenizer.model",))
_T5 = Family(
    SpecialNames(pad="<pad>", unk="<unk>", eos="</s>"),
    add_eos=True,
    fixed=True,
    model_files=("spiece.model", "tokenizer.model"),
    num_sentinels=100,
)
MARIAN = Family(SpecialNames(pad="<pad>", unk="<unk>", eos="</s>"), add_eos=True, fixed=True)

_CLASSES = {
    "GPT2": _GPT2,
    "Bart": _BART,
    "Roberta": _BART,
    "Qwen2": _QWEN2,
    "Llama": _LLAMA,
    "T5": _T5,
    "Marian": MARIAN,
}
_MODEL_TYPES = {
    "gpt2": _GPT2,
    "bart": _BART,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    "marian": MARIAN,
}
GENERIC = Family(SpecialNames(), model_files=("tokenizer.model", "spiece.model"))


def family_of(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> Family:
    """The family of a folder, by the tokenizer class that its files declare, else by the type of its model.

    Where a general class is declared, such as PreTrainedTokenizerFast, it takes nothing for granted.
    """
    declared = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    name = declared.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(declared, str) else ""
    if name in _CLASSES:
        return _CLASSES[name]
    model_type = model_config.get("model_type")
    family = _MODEL_TYPES.get(model_type, GENERIC) if isinstance(model_type, str) else GENERIC
    if not declared:
        return family
    return replace(family, names=SpecialNames(), fixed=False, model_files=GENERIC.model_files, num_sentinels=0)
