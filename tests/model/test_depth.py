"""How far from the output parameters are."""

from txtgen.config.model import DecoderConfig, EncoderDecoderConfig, T5RelativePosition
from txtgen.model import build_model
from txtgen.model.depth import depths

SIZE = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_length": 16, "vocab_size": 13}


def test_of_a_decoder() -> None:
    found = depths(build_model(DecoderConfig(num_layers=3, **SIZE), device="meta"))
    assert found["token_embedding.weight"] == 3
    assert {name.split(".")[2]: depth for name, depth in found.items() if ".layers." in name} == {
        "0": 2,
        "1": 1,
        "2": 0,
    }
    assert found["decoder.final_norm.weight"] == 0


def test_of_both_stacks() -> None:
    config = EncoderDecoderConfig(
        num_encoder_layers=1,
        num_decoder_layers=2,
        source_vocab_size=13,
        max_source_length=16,
        share_embeddings=False,
        tie_embeddings=False,
        position=T5RelativePosition(),
        **SIZE,
    )
    found = depths(build_model(config, device="meta"))
    expected = {
        "encoder.layers.0.": 0,
        "decoder.layers.0.": 1,
        "decoder.layers.1.": 0,
        "encoder.relative_bias.": 1,
        "decoder.relative_bias.": 2,
        "encoder.final_norm.": 0,
        "token_embedding.": 2,
        "source_embedding.": 2,
        "lm_head.": 0,
    }
    for prefix, depth in expected.items():
        assert {d for name, d in found.items() if name.startswith(prefix)} == {depth}, prefix
