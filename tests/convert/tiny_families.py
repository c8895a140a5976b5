"""Tiny random models of transformers, of every family and in several configurations."""

import functools
import warnings
from zlib import crc32

import torch

VOCAB = 41
COMMON = {"vocab_size": VOCAB}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "dropout": 0.1,
}
T5 = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 50.0,
    "beta_fast": 4.0,
}
MODELS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False, "n_inner": 20, "activation_function": "relu"}),
    "llama": ("llama", LLAMA),
    "llama-tied-biased": (
        "llama",
        {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    ),
    "llama-wide-heads": ("llama", {**LLAMA, "head_dim": 10, "num_key_value_heads": 4, "rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 77.0}}),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 3}),
    "mistral-no-window": ("mistral", {**LLAMA, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "rope_parameters": YARN},
    ),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 8}),
    "qwen3-biased-window": (
        "qwen3",
        {
            **LLAMA,
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "t5": ("t5", {**T5, "feed_forward_proj": "relu"}),
    "t5-v1.1": (
        "t5",
        {
            **T5,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "num_decoder_layers": 1,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 10,
        },
    ),
    "bart": ("bart", {**SEQ2SEQ, "pad_token_id": 1, "decoder_start_token_id": 2}),
    "bart-scaled": ("bart", {**SEQ2SEQ, "scale_embedding": True, "activation_function": "relu", "decoder_layers": 1}),
    "marian": ("marian", {**SEQ2SEQ, "scale_embedding": True, "activation_function": "swish", "pad_token_id": 40,
                          "eos_token_id": 0, "decoder_start_token_id": 40}),
    "marian-two-vocabularies": (
        "marian",
        {**SEQ2SEQ, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 37, "pad_token_id": 36,
         "eos_token_id": 0, "decoder_start_token_id": 36},
    ),
}  # fmt: skip
"""Name -> family and the arguments of its config."""


def weight(name: str, shape: torch.Size, seed: str = "") -> torch.Tensor:
    """A large random tensor that depends on its name alone: norms and biases too, so that none can be forgotten."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(crc32((name + seed).encode()))) * 0.3
    return tensor + 1.0 if "norm" in name and name.endswith("weight") else tensor


def inputs(seq2seq: bool, rows: int = 3, length: int = 12):
    """Random ids [B,T], and for an encoder-decoder sources [B,S] of unequal length and their mask, else None."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 36, (rows, length), generator=generator)
    if not seq2seq:
        return ids, None, None
    source = torch.randint(3, 36, (rows, 9), generator=generator)
    return ids, source, torch.arange(9)[None] < torch.tensor([9, 5, 7])[:rows, None]


@functools.cache
def tiny_model(name: str):
    """One of the models above."""
    family, options = MODELS[name]
    return random_model(family, COMMON | options)


def random_model(family: str, options: dict, seed: str = ""):
    """A model of transformers with random weights."""
    import transformers

    classes = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
        "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
        "marian": (transformers.MarianConfig, transformers.MarianMTModel),
    }
    config_class, model_class = classes[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(config_class(**options)).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if family != "marian" or "embed_positions" not in part:
                parameter.copy_(weight(part, parameter.shape, seed))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(weight("final_logits_bias", model.final_logits_bias.shape, seed))
    return model


def their_logits(model, ids, source, mask):
    """Logits [B,T,V] of a model of transformers."""
    with torch.no_grad():
        if source is None:
            return model(ids).logits
        return model(input_ids=source, attention_mask=mask.long(), decoder_input_ids=ids).logits


def save(model, folder) -> None:
    """Save as transformers does, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
