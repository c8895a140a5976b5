"""Complete Hugging Face folders of tiny random models, with tokenizers of some 400 tokens."""

import json
import warnings
from pathlib import Path

from hf_folders import LLAMA, T5, byte_level, spm, write_json
from tiny_families import SEQ2SEQ, random_model
from tiny_families import T5 as T5_SIZES

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96}
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "t5", "bart", "marian")


def bpe(folder: Path, special: tuple[str, ...], cls: str, **config) -> dict[str, int]:
    """Write vocab.json, merges.txt and tokenizer_config.json. Returns the vocabulary."""
    vocab, merges = byte_level(special)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": cls, **config})
    return json.loads(vocab)


def pieces_of(model: bytes) -> list[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(model)
    return [processor.id_to_piece(number) for number in range(len(processor))]


def whole_folder(family: str, folder: Path, seed: int = 0, **options) -> Path:
    """A folder that transformers and txtgen read alike; `options` change the model's config."""
    folder.mkdir(parents=True, exist_ok=True)
    match family:
        case "gpt2":
            vocab = bpe(folder, ("<|endoftext|>",), "GPT2Tokenizer")
            end = vocab["<|endoftext|>"]
            config = {**GPT2, "bos_token_id": end, "eos_token_id": end}
            size = len(vocab)
        case "qwen2" | "qwen3":
            vocab = bpe(
                folder, QWEN, "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>",
                additional_special_tokens=["<|im_start|>"], chat_template=CHATML,
            )  # fmt: skip
            ends = [vocab["<|im_end|>"], vocab["<|endoftext|>"]]
            config = {**SMALL, "bos_token_id": None, "eos_token_id": ends, "pad_token_id": ends[1]}
            size = len(vocab)
        case "llama" | "mistral":
            model = spm(**LLAMA)
            (folder / "tokenizer.model").write_bytes(model)
            write_json(
                folder / "tokenizer_config.json",
                {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>",
                 "unk_token": "<unk>"},
            )  # fmt: skip
            config, size = {**SMALL, "bos_token_id": 1, "eos_token_id": 2}, len(pieces_of(model))
        case "t5":
            model = spm(**T5)
            (folder / "spiece.model").write_bytes(model)
            write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 10})
            size = len(pieces_of(model)) + 10
            config = {**T5_SIZES, "pad_token_id": 0, "eos_token_id": 1}
        case "bart":
            vocab = bpe(folder, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "BartTokenizer")
            config = {**SEQ2SEQ, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
                      "forced_eos_token_id": 2}  # fmt: skip
            size = len(vocab)
        case "marian":
            source, target = spm(vocab_size=300), spm(vocab_size=360, model_type="bpe")
            (folder / "source.spm").write_bytes(source)
            (folder / "target.spm").write_bytes(target)
            known = [piece for piece in pieces_of(source) + pieces_of(target) if not piece.startswith("<")]
            names = ["</s>", "<unk>", *sorted(dict.fromkeys(known)), "<pad>"]
            write_json(folder / "vocab.json", {name: number for number, name in enumerate(names)})
            write_json(
                folder / "tokenizer_config.json",
                {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de", "eos_token": "</s>",
                 "unk_token": "<unk>", "pad_token": "<pad>"},
            )  # fmt: skip
            pad = len(names) - 1
            config = {**SEQ2SEQ, "scale_embedding": True, "activation_function": "swish", "eos_token_id": 0,
                      "pad_token_id": pad, "decoder_start_token_id": pad, "forced_eos_token_id": 0}  # fmt: skip
            size = len(names)
    model = random_model(family, {**config, "vocab_size": size, **options}, str(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def transformers_pair(folder: Path, seq2seq: bool):
    """The model and the tokenizer that transformers loads."""
    import transformers

    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    # For a Mistral with nothing but a tokenizer.model, AutoTokenizer forgets the space that the model puts first.
    reader = transformers.LlamaTokenizer if (folder / "tokenizer.model").exists() else transformers.AutoTokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto.from_pretrained(folder).eval(), reader.from_pretrained(str(folder))
