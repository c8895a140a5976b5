"""Logits of every family beside transformers, at the sizes of real models with random weights.

python scripts/family_parity.py            # the environment of scripts/test; needs some 6 GB of memory and disk
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

from txtgen.checkpoint import load_weights
from txtgen.convert.families import family_of, read_model
from txtgen.convert.fields import Fields, read_json
from txtgen.convert.weights import open_weights
from txtgen.model import build_model

LLAMA = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 2048, "vocab_size": 32_000,
}  # fmt: skip
SIZES = {
    "GPT-2 small": transformers.GPT2Config(),
    "Llama, 135 M": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "Mistral, 135 M, window 64": transformers.MistralConfig(**LLAMA, sliding_window=64),
    "Qwen2, 0.5 B": transformers.Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        tie_word_embeddings=True, vocab_size=151_936,
    ),
    "Qwen3, 0.6 B": transformers.Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, tie_word_embeddings=True, vocab_size=151_936,
    ),
    "T5 small": transformers.T5Config(decoder_start_token_id=0),
    "Flan-T5 small": transformers.T5Config(
        d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
    "BART base": transformers.BartConfig(
        d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        encoder_attention_heads=12, decoder_attention_heads=12,
    ),
    "Marian (Opus)": transformers.MarianConfig(
        d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048, decoder_ffn_dim=2048,
        encoder_attention_heads=8, decoder_attention_heads=8, scale_embedding=True, activation_function="swish",
        max_position_embeddings=512,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name, config in SIZES.items():
        row = {"model": name, **compare(config)}
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{name:26} {row['parameters'] / 1e6:7.1f} M   logits up to {row['largest_logit']:6.2f}   "
                f"largest difference {row['largest_difference']:.1e}",
                flush=True,
            )


def compare(config: transformers.PreTrainedConfig) -> dict[str, float]:
    """Two rows of 96 tokens (sources of 64, one of them shorter) through both models, float32."""
    torch.manual_seed(0)
    classes = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    theirs = classes.from_config(config).eval()
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        theirs.save_pretrained(place)
        fields = Fields(read_json(Path(place) / "config.json"), place)
        ours_config, state = read_model(family_of(fields), fields, open_weights(Path(place)))
        ours = build_model(ours_config, "meta")
        load_weights(ours, state, place, assign=True)
        ids = torch.randint(5, config.vocab_size - 5, (2, 96))
        positions = torch.arange(96).expand(2, 96)
        if config.is_encoder_decoder:
            source = torch.randint(5, config.vocab_size - 5, (2, 64))
            mask = torch.arange(64)[None] < torch.tensor([[64], [40]])
            found = ours.eval()(ids, positions, torch.ones_like(ids), source_ids=source, source_mask=mask)
            expected = theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=ids).logits
        else:
            found = ours.eval()(ids, positions, torch.ones_like(ids))
            expected = theirs(ids).logits
    return {
        "parameters": sum(parameter.numel() for parameter in theirs.parameters()),
        "largest_logit": expected.abs().max().item(),
        "largest_difference": (found - expected).abs().max().item(),
    }


if __name__ == "__main__":
    main()
