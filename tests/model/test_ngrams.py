import pytest
import torch
from test_state import extend, walked
from tiny_models import ARCHITECTURES, logits_of, random_ids, source_for, tiny_config, tiny_model

from txtgen.config.model import NgramConfig
from txtgen.model import build_model, init_weights
from txtgen.model.ngrams import FACTOR, PRIME, NgramEmbedding, with_room_before

NGRAMS = NgramConfig(max_order=4, num_buckets=64)


def table(order: int, buckets: int) -> NgramEmbedding:
    torch.manual_seed(0)
    return NgramEmbedding(order, buckets, 5).double()


def by_hand(embedding: NgramEmbedding, document: list[int]) -> torch.Tensor:
    """[N,D], an n-gram at a time in Python's own integers."""
    rows = []
    for place in range(len(document)):
        value, total = document[place] + 1, torch.zeros(5, dtype=torch.float64)
        for back in range(1, embedding.max_order):
            before = document[place - back] + 1 if place >= back else 0
            value = (value * FACTOR + before) % PRIME
            total += embedding.weight[value % embedding.num_buckets + (back - 1) * embedding.num_buckets]
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_each_order_adds_the_vector_of_its_bucket(order):
    embedding, ids = table(order, 100), random_ids(2, 9)
    found = embedding(with_room_before(ids, embedding.reach), torch.arange(9)[None])
    torch.testing.assert_close(found, torch.stack([by_hand(embedding, row) for row in ids.tolist()]))


def test_dropout_leaves_out_whole_vectors_in_training_alone():
    embedding, ids = table(4, 100), random_ids(40, 9)
    padded, positions = with_room_before(ids, embedding.reach), torch.arange(9)[None]
    whole = embedding(padded, positions)
    vectors = embedding.weight[embedding._buckets(padded, positions)]
    embedding.dropout = 0.25
    torch.testing.assert_close(embedding.eval()(padded, positions), whole)
    dropped = embedding.train()(padded, positions)
    kept = torch.linalg.lstsq(vectors.mT, dropped[..., None]).solution[..., 0]
    assert set(kept.mul(0.75).round(decimals=9).abs().unique().tolist()) == {0.0, 1.0}
    assert 0.7 < (kept > 0.5).double().mean() < 0.8


def test_no_ngram_reaches_into_another_document():
    embedding, ids = table(4, 100), random_ids(1, 9)
    positions = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])
    found = embedding(with_room_before(ids, embedding.reach), positions)[0]
    documents = [ids[0, :4].tolist(), ids[0, 4:5].tolist(), ids[0, 5:].tolist()]
    torch.testing.assert_close(found, torch.cat([by_hand(embedding, document) for document in documents]))


def test_the_largest_hash_does_not_overflow():
    embedding, ids = table(8, 1000), torch.full((1, 9), 2**24)
    found = embedding(with_room_before(ids, embedding.reach), torch.arange(9)[None])
    torch.testing.assert_close(found[0], by_hand(embedding, ids[0].tolist()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_agree_with_the_whole_sequence(architecture):
    model = tiny_model(architecture, "rotary", ngrams=NGRAMS)
    state, reference = walked(model)
    state.select(torch.tensor([1, 1]))
    reference.select([1, 1])
    extend(model, state, reference, 5, seed=6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_equal_documents_alone(architecture):
    model = tiny_model(architecture, "rotary", ngrams=NGRAMS)
    ids, sources = random_ids(1, 9), source_for(model, 1)
    packed = {
        "input_ids": ids,
        "positions": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
        "segment_ids": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2]], dtype=torch.int32),
    }
    with torch.no_grad():
        together = model(**packed, separate=True, **sources)
    alone = torch.cat([logits_of(model, part, **sources) for part in (ids[:, :4], ids[:, 4:])], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


def test_they_start_at_nothing_and_learn():
    model, without = build_model(tiny_config(ngrams=NGRAMS)), build_model(tiny_config())
    init_weights(model, 3)
    init_weights(without, 3)
    ids = random_ids(2, 9)
    assert torch.equal(logits_of(model, ids), logits_of(without, ids))
    model.hidden(ids, torch.arange(9)[None], torch.ones_like(ids)).square().sum().backward()
    touched = model.ngram_embedding.weight.grad.abs().sum(-1) > 0
    assert 0 < touched.sum() <= 2 * 9 * 3
    assert model.ngram_embedding.weight.shape == (3 * 64, 16)
    assert without.ngram_embedding is None
