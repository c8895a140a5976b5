"""Subword regularisation in the stream: drawn by document and epoch, for training only."""

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context

import pytest
import torch
from data_fakes import ByteTokenizer, data_config, plain

from txtgen.config.data import DataConfig
from txtgen.config.objectives import FILL_IN_MIDDLE, SENTINEL
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.data import build_objective, train_stream, validation_batches
from txtgen.data.types import Origin, TextRecord
from txtgen.errors import ConfigError
from txtgen.tokenizer import SentencePieceTokenizer, train_sentencepiece

PARTS = ("jump", "look", "walk", "over", "under", "fox", "dog", "quick", "lazy", "brown")
LINES = [f"the {one}{two}ing {two}s and {one}er {two}ed" for one in PARTS for two in PARTS]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model(request):
    sentinels = (SENTINEL.format(number) for number in range(20))
    config = SentencePieceConfig(vocab_size=430, algorithm=request.param).reserving([*sentinels, *FILL_IN_MIDDLE])
    return train_sentencepiece(config, LINES)[0]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    (tmp_path / "tsv").write_text("".join(f"{line}\t{line[::-1]}\n" for line in LINES), encoding="utf-8")

    def config(kind, **settings):
        spans = {"kind": "span_corruption", "num_sentinels": 20}
        objective = spans if kind == "span_corruption" else {"kind": kind}
        texts = {"path": f"{tmp_path}/lines", "documents": "line"}
        source = {"kind": "tsv", "path": f"{tmp_path}/tsv"} if kind == "seq2seq" else texts
        return data_config(source, objective=objective, validation={"fraction": 0.2}, **settings)

    return config


def objective_of(data, model, sampled=True):
    sampling = data.subword_sampling if sampled else None
    return build_objective(data.objective, model, max_length=64, sampling=sampling)


def stream(data, model, **options):
    return train_stream(data, objective_of(data, model), batch_tokens=256, length=64, seed=3, **options)


@pytest.mark.parametrize("kind", ["causal_lm", "span_corruption", "fill_in_middle", "seq2seq"])
def test_drawn_tokens_resume_and_are_the_same_on_any_number_of_ranks(data, model, kind):
    config = data(kind, subword_sampling={"alpha": 0.2})
    straight = [plain(batch) for batch in islice(stream(config, model), 30)]
    for place in (0, 7, 20):
        bookmark = json.loads(json.dumps(straight[place]["bookmark"]))
        resumed = [plain(batch) for batch in islice(stream(config, model, bookmark=bookmark), 4)]
        assert resumed == straight[place + 1 : place + 5]
    ranks = [list(islice(stream(config, model, rank=rank, world_size=2), 10)) for rank in range(2)]
    for number, batch in enumerate(islice(stream(config, model), 10)):
        for row in range(len(batch.input_ids)):
            assert torch.equal(batch.input_ids[row], ranks[row % 2][number].input_ids[row // 2])


def tokens_after(settings, files, bookmark):
    """What a process of its own reads next."""
    config, model = DataConfig(**settings), SentencePieceTokenizer(files["tokenizer.model"])
    return [plain(batch) for batch in islice(stream(config, model, bookmark=bookmark), 4)]


def test_another_process_resumes_with_the_same_tokens(data, model):
    """No seed of SentencePiece's own sampler repeats there what it drew here."""
    config = data("causal_lm", subword_sampling={"alpha": 0.2})
    straight = [plain(batch) for batch in islice(stream(config, model), 8)]
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        found = other.submit(tokens_after, config.model_dump(), model.files(), straight[3]["bookmark"]).result(60)
    assert found == straight[4:]


def texts_and_tokens(data, model, count):
    """The documents of the stream: text -> the different tokens that it had."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for batch in islice(stream(data, model), count):
        for row, segments in zip(batch.labels.tolist(), batch.segment_ids.tolist(), strict=True):
            for segment in range(2, max(segments)):  # the first and last may be parts of documents
                ids = tuple(token for token, its in zip(row, segments, strict=True) if its == segment)
                found.setdefault(model.decode(ids), set()).add(ids)
    return found


def test_every_epoch_draws_anew_and_no_text_is_changed(data, model):
    drawn = texts_and_tokens(data("causal_lm", subword_sampling={"alpha": 0.2}), model, 300)
    fixed = texts_and_tokens(data("causal_lm"), model, 300)
    assert set(drawn) | set(fixed) <= set(LINES)
    assert all(len(versions) == 1 for versions in fixed.values())
    assert sum(len(versions) > 1 for versions in drawn.values()) > 0.8 * len(drawn)


@pytest.mark.parametrize("side", ["both", "source", "target"])
def test_either_side_of_pairs_may_be_drawn(data, model, side):
    config = data("seq2seq", subword_sampling={"alpha": 0.1, "side": side})
    fixed = {(tuple(model.encode(line)), tuple(model.encode(line[::-1]))) for line in LINES}
    sources, targets = ({pair[number] for pair in fixed} for number in (0, 1))
    drawn_sources = drawn_targets = 0
    for batch in islice(stream(config, model), 20):
        for row in range(len(batch.labels)):
            source = tuple(token for token in batch.source_ids[row].tolist() if model.token_bytes(token))
            target = tuple(token for token in batch.labels[row].tolist() if token >= 0 and model.token_bytes(token))
            drawn_sources += source not in sources
            drawn_targets += target not in targets
    assert (drawn_sources > 0, drawn_targets > 0) == (side != "target", side != "source")


def test_validation_is_not_drawn(data, model):
    config = data("causal_lm", subword_sampling={"alpha": 0.2})
    fixed = objective_of(config, model, sampled=False)
    batches = validation_batches(config, fixed, batch_tokens=64, length=64, seed=3)
    scored = [token for batch in batches for token in batch.labels.flatten().tolist() if token >= 0]
    again = [token for batch in batches for token in batch.labels.flatten().tolist() if token >= 0]
    assert scored == again
    texts = model.decode([*scored]).split("the ")[1:]
    assert len(scored) == sum(len(model.encode(f"the {text}")) + 1 for text in texts)


def test_an_objective_survives_the_way_to_another_process(data, model):
    config = data("span_corruption", subword_sampling={"alpha": 0.2})
    objective = objective_of(config, model)
    copy = pickle.loads(pickle.dumps(objective))
    record = TextRecord(LINES[3], Origin(0, "x", 0))
    assert copy(record, 9)[0].input_ids.tolist() == objective(record, 9)[0].input_ids.tolist()


def test_a_tokenizer_without_segmentations_to_draw_is_refused(data):
    config = data("causal_lm", subword_sampling={})
    char = train_sentencepiece(SentencePieceConfig(vocab_size=400, algorithm="char"), LINES)[0]
    for model in (ByteTokenizer(), char):
        with pytest.raises(ConfigError, match="cannot draw segmentations"):
            objective_of(config, model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": {"kind": "chat"}}, "of conversations and preferences cannot be drawn"),
        ({"objective": {"kind": "dpo"}}, "of conversations and preferences cannot be drawn"),
        ({"objective": {"kind": "causal_lm"}, "side": "source"}, "plain text has no sides"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    side = {"side": settings["side"]} if "side" in settings else {}
    with pytest.raises(ValueError, match=words):
        data_config({"path": "x"}, objective=settings["objective"], subword_sampling=side)
