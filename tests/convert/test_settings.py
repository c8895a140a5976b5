"""What a folder says beside its weights: special tokens, chat template, settings of generation."""

import json
import logging
import shutil

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


from txtgen.chat import encode_chat, render
from txtgen.convert import import_folder
from txtgen.convert.fields import Fields
from txtgen.convert.generation import read_generation

SPELLINGS = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ pad_token is defined }}"


def change(path, **values):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


@pytest.fixture
def folder_of(tmp_path, folder_of):
    """A copy to spoil."""
    return lambda family: shutil.copytree(folder_of(family), tmp_path / family)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "llama", "mistral"])
def test_templates_get_the_special_tokens_that_transformers_gives_them(folder_of, family):
    from transformers import AutoTokenizer

    folder = folder_of(family)
    change(folder / "tokenizer_config.json", chat_template=SPELLINGS)
    chat = [{"role": "user", "content": "the fox"}]
    expected = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(chat, tokenize=False)
    (piece,) = render([("user", "the fox")], import_folder(folder).config.chat, reply=True)
    assert piece.text == expected


def test_a_qwen_begins_with_nothing(folder_of):
    from transformers import AutoTokenizer

    folder = folder_of("qwen2")
    change(folder / "tokenizer_config.json", chat_template="{{ bos_token }}{{ messages[0].content }}")
    their = AutoTokenizer.from_pretrained(str(folder))
    text = their.apply_chat_template([{"role": "user", "content": "the fox"}], tokenize=False)
    checkpoint = import_folder(folder)
    ids, _ = encode_chat([("user", "the fox")], checkpoint.config.chat, checkpoint.tokenizer, reply=True)
    assert ids == their(text)["input_ids"] == checkpoint.tokenizer.encode("the fox")


def test_an_empty_template_is_none(folder_of):
    folder = folder_of("qwen2")
    change(folder / "tokenizer_config.json", chat_template="")
    assert import_folder(folder).config.chat is None
    change(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    assert import_folder(folder).config.chat is not None
    (folder / "chat_template.jinja").write_text("")
    assert import_folder(folder).config.chat is None


def test_a_template_may_refuse_the_first_conversation(folder_of):
    folder = folder_of("qwen2")
    template = "{% if messages|length < 2 %}{{ raise_exception('more') }}{% endif %}{{ messages[1].content }}"
    change(folder / "tokenizer_config.json", chat_template=template)
    assert import_folder(folder).config.chat.template == template


def test_an_end_token_outside_the_embedding_ends_nothing(folder_of, caplog):
    """As GPT2Config(vocab_size=420) writes it, and transformers runs it."""
    folder = folder_of("gpt2")
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=50256, bos_token_id=50256)
    checkpoint = import_folder(folder)
    assert checkpoint.config.framing.end == (checkpoint.tokenizer.special.eos_id,)
    assert "end tokens beyond the embedding's 420 rows: [50256]" in caplog.text
    change(folder / "generation_config.json", eos_token_id=[3, -1])
    assert import_folder(folder).config.framing.end == (3,)


SETTINGS = [
    ({"suppress_tokens": [-1, 5, 9999], "begin_suppress_tokens": [-1]}, {"suppress_tokens": (5,)}, ""),
    ({"do_sample": True, "top_k": 50.0}, {"strategy": "sample", "top_k": 50}, "top_k 50.0 (Input should be a valid"),
    ({"do_sample": True, "top_k": -1}, {"strategy": "sample", "top_k": 50}, "top_k -1"),
    ({"do_sample": True, "top_k": 7}, {"strategy": "sample", "top_k": 7}, ""),
    ({"do_sample": True, "temperature": -1.0, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}, "temperature -1.0"),
    ({"do_sample": "yes"}, {"strategy": "greedy"}, "do_sample 'yes'"),
    ({"num_return_sequences": 3}, {"num_return": 1}, "num_return_sequences 3 (greedy search gives one result"),
    ({"num_beams": 4, "num_return_sequences": 3}, {"beam_size": 4, "num_return": 3}, ""),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"num_groups": 2, "diversity_penalty": 0.5}, ""),
    ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 0.5}, {"num_groups": 1}, "num_beam_groups 3"),
    ({"num_beams": "many"}, {"strategy": "greedy"}, "num_beams 'many'"),
    ({"num_beams": 4, "early_stopping": True}, {"early_stopping": "true"}, ""),
    ({"num_beams": 4, "do_sample": True}, {"strategy": "beam_sample", "beam_size": 4, "top_k": 50}, ""),
    ({"penalty_alpha": 0.5, "top_k": 6}, {"strategy": "contrastive", "penalty_alpha": 0.5, "top_k": 6}, ""),
    ({"penalty_alpha": 2.0}, {"strategy": "contrastive", "penalty_alpha": 0.6, "top_k": 50}, "penalty_alpha 2.0"),
    ({"num_beams": 4, "num_beam_groups": 2}, {"num_groups": 1}, "num_beam_groups 2"),
    ({"num_beams": 4, "diversity_penalty": 2.0}, {"diversity_penalty": 0.0}, "diversity_penalty 2.0"),
    ({"no_repeat_ngram_size": -2, "repetition_penalty": 1.5}, {"repetition_penalty": 1.5}, "no_repeat_ngram_size -2"),
    ({"max_length": 20, "min_length": 56}, {"max_length": 20, "min_length": 0}, "min_length 56 (is 56, more than"),
    ({"sequence_bias": [[[], 1.0]]}, {"sequence_bias": ()}, "sequence_bias [{'token_ids': []"),
]


@pytest.mark.parametrize(("values", "expected", "told"), SETTINGS)
def test_a_setting_that_cannot_be_is_left_out_alone(values, expected, told, caplog):
    found = read_generation(Fields(values, "generation_config.json"), 100)
    assert {name: getattr(found, name) for name in expected} == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * bool(told)
    assert told in caplog.text
