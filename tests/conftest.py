"""Tiny models and batches that many tests share."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from txtgen.config.model import DecoderConfig, EncoderDecoderConfig
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.data.types import IGNORE, Batch
from txtgen.model import Transformer, build_model, init_weights
from txtgen.native import UnavailableError, load_library
from txtgen.tokenizer import Tokenizer, train_sentencepiece

# How long an example takes says more of the machine than of the code.
settings.register_profile("txtgen", deadline=None)
settings.load_profile("txtgen")

# Tiny tensors gain nothing from threads, and threads that wait for a busy core make the suite crawl.
torch.set_num_threads(1)

# Built here, if need be, and not by the first test that generates, whose cache may be a passing one.
with suppress(UnavailableError):
    load_library()

DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real text, where there is one."""
    if not DATA.is_dir():
        pytest.skip("needs the folder of real text beside the checkout, ../shared/data")
    return DATA


@pytest.fixture(params=["decoder", "encoder_decoder"])
def tiny_model(request) -> Transformer:
    """A model of either architecture that fits into a thought."""
    size = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_length": 16, "vocab_size": 13}
    if request.param == "decoder":
        config = DecoderConfig(num_layers=2, **size)
    else:
        config = EncoderDecoderConfig(
            num_encoder_layers=1, num_decoder_layers=2, source_vocab_size=13, max_source_length=16, **size
        )
    model = build_model(config, device="cpu")
    init_weights(model, 1)
    return model


@pytest.fixture
def tiny_batch(tiny_model: Transformer) -> Batch:
    """Four rows of seven tokens, the last of them padded."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 13, (4, 8), generator=generator)
    labels = ids[:, 1:].clone()
    labels[-1, 4:] = IGNORE
    segments = torch.ones(4, 7, dtype=torch.int32)
    segments[-1, 4:] = 0
    source = source_mask = None
    if tiny_model.config.kind == "encoder_decoder":
        source = torch.randint(4, 13, (4, 5), generator=generator)
        source_mask = torch.ones(4, 5, dtype=torch.bool)
        source_mask[1, 3:] = False
    return Batch(
        input_ids=ids[:, :-1],
        labels=labels,
        positions=torch.arange(7).expand(4, 7).clone(),
        segment_ids=segments,
        source_ids=source,
        source_mask=source_mask,
        bookmark={"at": 1},
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small SentencePiece model of a few English words."""
    texts = [f"the {animal} {verb} over the {place}.\n" for animal in ANIMALS for verb in VERBS for place in PLACES]
    return train_sentencepiece(SentencePieceConfig(vocab_size=320), texts)[0]


ANIMALS = ("quick brown fox", "lazy dog", "small cat", "old horse")
VERBS = ("jumps", "runs", "looks", "walks")
PLACES = ("hill", "river", "fence", "moon")
