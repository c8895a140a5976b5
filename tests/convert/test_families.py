"""Every family against transformers: the same logits, and nothing lost on the way in and out."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from tiny_families import MODELS, inputs, save, their_logits, tiny_model

from txtgen.checkpoint import load_weights
from txtgen.config.model import DecoderConfig, EncoderDecoderConfig, LearnedPosition, NgramConfig
from txtgen.convert.families import Written, family_of, read_model, writable_family
from txtgen.convert.fields import Fields, read_json
from txtgen.convert.weights import Weights, open_file, open_weights
from txtgen.decode import PromptBatch
from txtgen.errors import CheckpointError
from txtgen.model import build_model, init_weights

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny models by name, each written once."""
    folders = {}

    def folder_of(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            save(tiny_model(name), folders[name])
        return folders[name]

    return folder_of


def read(folder):
    fields = Fields(read_json(folder / "config.json"), "config.json")
    family = family_of(fields)
    return family, *read_model(family, fields, open_weights(folder))


def built(config, state):
    model = build_model(config)
    load_weights(model, state, "test")
    return model.eval()


def our_logits(model, ids, source, mask):
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        return model(ids, positions, torch.ones_like(ids), source_ids=source, source_mask=mask)


@every_model
def test_logits_are_those_of_transformers(saved, name):
    _, config, state = read(saved(name))
    given = inputs(isinstance(config, EncoderDecoderConfig))
    theirs = their_logits(tiny_model(name), *given)
    assert theirs.std() > 0.1
    torch.testing.assert_close(our_logits(built(config, state), *given), theirs, rtol=0, atol=2e-5)


@every_model
def test_cached_steps_are_those_of_transformers(saved, name):
    _, config, state = read(saved(name))
    model = built(config, state)
    ids, source, mask = inputs(isinstance(config, EncoderDecoderConfig))
    theirs = their_logits(tiny_model(name), ids, source, mask)
    logits, memory = model.prefill(PromptBatch(ids[:, :4], torch.full((3,), 4), source, mask), capacity=12)
    torch.testing.assert_close(logits, theirs[:, 3], rtol=0, atol=2e-5)
    torch.testing.assert_close(model.extend(ids[:, 4:7], memory), theirs[:, 4:7], rtol=0, atol=2e-5)
    for place in range(7, 12):
        step = model.extend(ids[:, place : place + 1], memory)[:, 0]
        torch.testing.assert_close(step, theirs[:, place], rtol=0, atol=2e-5)


@every_model
def test_out_and_in_again_changes_nothing(saved, name):
    family, config, state = read(saved(name))
    chosen = writable_family(config, state)
    written = dict(Written(chosen, config, state))
    again = chosen.read(Fields(chosen.write(config), "written"), written)
    twice = writable_family(again, state)
    assert twice is chosen
    if chosen is family:
        theirs = open_weights(saved(name))
        assert set(written) <= set(theirs) | {f"{family.prefix}{name}" for name in theirs}
        for parameter in set(written) & set(theirs):
            skipped = 2 if family.name == "bart" and "embed_positions" in parameter else 0
            assert torch.equal(written[parameter][skipped:], theirs[parameter][skipped:]), parameter
    assert {rule_name for rule in chosen.rules(config) for rule_name in rule.names} == set(state)
    for rule in chosen.rules(config):
        parts = rule.to_ours(written[rule.theirs], [state[part].shape[0] for part in rule.names])
        for part, tensor in zip(rule.names, parts, strict=True):
            assert torch.equal(tensor, state[part]), part


def test_weights_of_the_bare_model_are_recognised(saved, tmp_path):
    _, config, state = read(saved("gpt2"))
    bare = {name.removeprefix("transformer."): tensor for name, tensor in open_weights(saved("gpt2")).items()}
    for old in ("h.0.attn.bias", "h.1.attn.masked_bias"):
        bare[old] = torch.ones(1, 1, 4, 4)
    bare["lm_head.weight"] = bare["wte.weight"].clone()
    torch.save({"model_state_dict": {f"module.{name}": tensor for name, tensor in bare.items()}}, tmp_path / "w.pth")
    fields = Fields(read_json(saved("gpt2") / "config.json"), "config.json")
    found, ours = read_model(family_of(fields), fields, open_file(tmp_path / "w.pth"))
    assert found == config
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_half_precision_stays_unless_asked(saved, tmp_path):
    import copy

    save(copy.deepcopy(tiny_model("llama")).to(torch.bfloat16), tmp_path)
    fields = Fields(read_json(tmp_path / "config.json"), "config.json")
    for dtype, expected in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        _, state = read_model(family_of(fields), fields, open_weights(tmp_path), dtype)
        assert {tensor.dtype for tensor in state.values()} == {expected}


RECIPES = {
    "llama": {"position": {"kind": "rotary"}, "norm": "rms_norm", "gated": True, "activation": "silu",
              "attention_bias": False, "ffn_bias": False, "tie_embeddings": True},
    "mistral": {"position": {"kind": "rotary"}, "norm": "rms_norm", "gated": True, "activation": "gelu",
                "attention_bias": False, "ffn_bias": False, "sliding_window": 5},
    "qwen3": {"position": {"kind": "rotary"}, "norm": "rms_norm", "gated": True, "activation": "silu",
              "attention_bias": False, "ffn_bias": False, "qk_norm": True, "num_kv_heads": 1},
    "gpt2": {"position": {"kind": "learned"}, "activation": "gelu_tanh"},
}  # fmt: skip


def recipe(**options):
    return DecoderConfig.model_validate(
        {"vocab_size": 41, "d_model": 16, "num_heads": 2, "num_layers": 2, "max_length": 32, **options}
    )


@pytest.mark.parametrize("family", RECIPES)
def test_our_own_recipes_find_their_family(family):
    config = recipe(**RECIPES[family])
    model = build_model(config)
    init_weights(model, 1)
    assert writable_family(config, model.state_dict()).name == family


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("logit_softcap", 15.0),
        ("ngrams", NgramConfig()),
        ("num_ffn_hidden_layers", 2),
        ("scale_embeddings", True),
        ("norm", "layer_norm"),
        ("gated", False),
        ("activation", "relu_squared"),
        ("position", LearnedPosition()),
    ],
)
def test_an_option_that_no_family_has_is_named(option, value):
    config = recipe(**{**RECIPES["qwen3"], option: value})
    model = build_model(config)
    if (option, value) == ("activation", "relu_squared"):
        assert writable_family(config, model.state_dict()).name == "qwen3"
        return
    with pytest.raises(CheckpointError, match=rf"qwen3 comes nearest.*model\.{option} is"):
        writable_family(config, model.state_dict())


def test_a_family_can_be_asked_for(saved):
    _, config, state = read(saved("llama-tied-biased"))
    assert writable_family(config, state, "llama").name == "llama"
    with pytest.raises(CheckpointError, match="attention_bias"):
        writable_family(config, state, "mistral")
    with pytest.raises(CheckpointError, match="cannot be written as t5"):
        writable_family(config, state, "t5")


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 50}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROTATIONS = {
    "yarn, the length beside it": {"rope_parameters": YARN, "original_max_position_embeddings": 8},
    "llama3, the length beside it": {"rope_parameters": LLAMA3, "original_max_position_embeddings": 8},
    "linear needs no length": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        "original_max_position_embeddings": 8,
    },
    "the old section first": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_theta": 300.0,
    },
}


def changed_model(folder, name, tmp_path, **values):
    """What transformers and txtgen make of a folder with another config.json."""
    import shutil
    import warnings

    import transformers

    copy = shutil.copytree(folder, tmp_path / name)
    (copy / "config.json").write_text(json.dumps(read_json(copy / "config.json") | values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(copy).eval()
    return theirs, read(copy)


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_as_transformers_reads_them(saved, tmp_path, name):
    theirs, (_, config, state) = changed_model(saved("llama-wide-heads"), "llama", tmp_path, **ROTATIONS[name])
    given = inputs(False)
    expected = their_logits(theirs, *given)
    torch.testing.assert_close(our_logits(built(config, state), *given), expected, rtol=0, atol=2e-5)
    assert not torch.allclose(expected, their_logits(tiny_model("llama-wide-heads"), *given), atol=1e-3)


def test_scores_that_shrink_with_depth(saved, tmp_path):
    flags = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}
    theirs, (family, config, state) = changed_model(saved("gpt2"), "gpt2", tmp_path, **flags)
    given = inputs(False)
    expected = their_logits(theirs, *given)
    torch.testing.assert_close(our_logits(built(config, state), *given), expected, rtol=0, atol=2e-5)
    assert not torch.allclose(expected, their_logits(tiny_model("gpt2"), *given), atol=1e-3)
    torch.save(dict(Written(family, config, state)), tmp_path / "w.bin")
    again, twice = read_model(family, Fields(family.write(config), "written"), open_file(tmp_path / "w.bin"))
    assert again == config
    assert all(torch.equal(twice[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied-biased", "bart", "t5"])
@pytest.mark.parametrize("worn", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."])
@pytest.mark.parametrize("bare", [False, True])
def test_names_that_training_wrapped(saved, tmp_path, name, worn, bare):
    family, config, state = read(saved(name))
    theirs = open_weights(saved(name))
    prefix = family.prefix if bare else ""
    torch.save({worn + part.removeprefix(prefix): theirs[part] for part in theirs}, tmp_path / "w.pth")
    fields = Fields(read_json(saved(name) / "config.json"), "config.json")
    found, ours = read_model(family, fields, open_file(tmp_path / "w.pth"))
    assert found == config
    assert all(torch.equal(ours[part], tensor) for part, tensor in state.items())


def test_sizes_beyond_any_machine(saved):
    sizes = {"hidden_size": 2**31 - 1, "vocab_size": 2**31 - 1}
    fields = Fields(read_json(saved("llama") / "config.json") | sizes, "config.json")
    with pytest.raises(CheckpointError, match=r"sizes are beyond any machine; config\.json"):
        read_model(family_of(fields), fields, open_weights(saved("llama")))


ZERO_STRETCH = -7.213475204444817
"""With it, YaRN at factor 4 multiplies by 0."""


class TestBadFiles:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "gptneox"}, "'gptneox' cannot be read.*supported are.*nearest: gpt2"),
            ({"model_type": "bert"}, "'bert' cannot be read"),
            ({"vocab_size": 40}, r"model.embed_tokens.weight is \[41, 16\], and the config says \[40, 16\]"),
            ({"num_hidden_layers": 1}, "unexpected model.layers.1"),
            ({"num_hidden_layers": 3}, "missing model.layers.2"),
            ({"num_hidden_layers": "two"}, 'num_hidden_layers is "two".*a whole number'),
            ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000.*from 1 to 10,000"),
            ({"hidden_size": None}, "hidden_size is missing"),
            ({"hidden_act": "mish"}, "hidden_act is .mish."),
            ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type is 'longrope'"),
            ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
            ({"rope_parameters": [1]}, "rope_parameters is .*a mapping"),
            ({"num_key_value_heads": 3}, "num_kv_heads.*does not divide"),
            ({"rms_norm_eps": -1.0}, "norm_eps"),
            ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000.*a finite number"),
            ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN.*a finite number"),
            (
                {"rope_parameters": {"rope_type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": ZERO_STRETCH}},
                "mscale_all_dim is -7.21",
            ),
        ],
    )
    def test_a_config_that_cannot_be_used(self, saved, change, message):
        fields = Fields(read_json(saved("llama") / "config.json") | change, "config.json")
        with pytest.raises(CheckpointError, match=message):
            read_model(family_of(fields), fields, open_weights(saved("llama")))

    def test_tied_weights_that_differ(self, saved):
        fields = Fields(read_json(saved("llama") / "config.json") | {"tie_word_embeddings": True}, "config.json")
        with pytest.raises(CheckpointError, match=r"lm_head.weight should repeat model.embed_tokens.weight"):
            read_model(family_of(fields), fields, open_weights(saved("llama")))

    def test_options_of_gpt2_that_we_lack(self, saved):
        fields = Fields(read_json(saved("gpt2") / "config.json") | {"scale_attn_weights": False}, "config.json")
        with pytest.raises(CheckpointError, match="scale_attn_weights is false"):
            read_model(family_of(fields), fields, open_weights(saved("gpt2")))

    def test_values_too_large_for_a_dtype(self, saved, tmp_path):
        tensors = dict(open_weights(saved("gpt2")))
        tensors["transformer.h.1.ln_1.bias"] = torch.full((16,), 1e6)
        torch.save(tensors, tmp_path / "w.bin")
        fields = Fields(read_json(saved("gpt2") / "config.json"), "config.json")
        with pytest.raises(CheckpointError, match=r"too large for float16; .*h\.1\.ln_1\.bias"):
            read_model(family_of(fields), fields, open_file(tmp_path / "w.bin"), torch.float16)

    def test_missing_weights_are_missing_somewhere(self, saved):
        fields = Fields(read_json(saved("llama") / "config.json") | {"num_hidden_layers": 3}, "config.json")
        with pytest.raises(CheckpointError, match=r"missing model\.layers\.2.*; .*model\.safetensors"):
            read_model(family_of(fields), fields, open_weights(saved("llama")))

    def test_stacks_of_unequal_width(self, saved):
        fields = Fields(read_json(saved("bart") / "config.json") | {"decoder_ffn_dim": 8}, "config.json")
        with pytest.raises(CheckpointError, match="encoder_ffn_dim is 24, but decoder_ffn_dim is 8"):
            read_model(family_of(fields), fields, open_weights(saved("bart")))


def test_all_tensors_come_from_a_mapping_that_reads_lazily(saved):
    weights = open_weights(saved("llama"))
    assert isinstance(weights, Weights)
    assert "model.norm.weight" in weights
    assert not weights._open


def test_a_t5_with_an_output_layer_of_its_own(saved, tmp_path):
    import shutil
    import warnings

    import transformers
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(saved("t5-v1.1"), tmp_path / "t5")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(41, 16, generator=torch.Generator().manual_seed(3))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    family, config, state = read(folder)
    assert not config.tie_embeddings
    assert not config.scale_output
    given = inputs(True)
    torch.testing.assert_close(
        our_logits(built(config, state), *given), their_logits(theirs, *given), rtol=0, atol=2e-5
    )
    again = family.read(Fields(family.write(config), "written"), Written(family, config, state))
    assert again == config
