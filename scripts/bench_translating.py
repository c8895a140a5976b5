"""What `bench.py translate` times: translations by txtgen and by its peers, with random weights."""

import argparse
import copy
import random
from functools import cache, partial
from pathlib import Path

import torch
from bench_decoding import KINDS, Candidate, in_kind, save, wanted

from txtgen.processes import Line, Subprocess

TRANSLATOR = {"width": 512, "layers": 6, "heads": 8, "vocabulary": 8000, "context": 128}
AT_ONCE, TARGET = 32, 20
"""How many sentences at a time, tokens of each translation. Sources have 10 to 30 tokens."""


def translating(_shape: dict[str, int], arguments: argparse.Namespace, folder: Path) -> dict[str, Candidate]:
    """Translations of `arguments.sentences` sources into 20 tokens each, sorted by length, 32 at a time; by
    `arguments.beam` beams."""
    choose, size = random.Random(0), TRANSLATOR["vocabulary"]
    lengths = sorted(choose.randint(10, 30) for _ in range(arguments.sentences))
    sources = [[choose.randrange(10, size) for _ in range(length)] for length in lengths]
    peer, works = huggingface_translator(), {}
    for kind in KINDS:
        if wanted(arguments, f"txtgen {kind}"):
            works[f"txtgen {kind}"] = own_translation(in_kind(own_translator(), kind), sources, arguments.beam)
        if wanted(arguments, name := f"txtgen {kind}, 2 workers"):
            works[name] = shared_translation(kind, sources, arguments.beam, 2)
    for kind in KINDS[:2]:
        if wanted(arguments, f"transformers {kind}"):
            works[f"transformers {kind}"] = huggingface_translation(peer, kind, sources, arguments.beam)
    for kind in ("float32", "int8"):
        for workers in (1, 2):
            name = f"ctranslate2 {kind}, {workers} worker{'s' * (workers > 1)}"
            if wanted(arguments, name):
                works[name] = ctranslate2_translation(peer, kind, sources, arguments.beam, workers, folder)
    return works


def padded(sources: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B,S] and mask [B,S] bool of some sources."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([len(source) for source in sources])[:, None]


def batches(sources: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sources as they are translated together."""
    return [padded(sources[start : start + AT_ONCE]) for start in range(0, len(sources), AT_ONCE)]


def own_translator():
    """An encoder-decoder of this shape, by txtgen."""
    from txtgen.config.model import EncoderDecoderConfig
    from txtgen.model import build_model, init_weights

    config = EncoderDecoderConfig(
        d_model=TRANSLATOR["width"],
        num_heads=TRANSLATOR["heads"],
        num_encoder_layers=TRANSLATOR["layers"],
        num_decoder_layers=TRANSLATOR["layers"],
        vocab_size=TRANSLATOR["vocabulary"],
        max_length=TRANSLATOR["context"],
        max_source_length=TRANSLATOR["context"],
        activation="relu",
    )
    model = build_model(config, device="cpu")
    init_weights(model, 0)
    return model


def own_translation(model, sources: list[list[int]], beam: int) -> Candidate:
    """By txtgen's search."""
    from txtgen.config.decoding import BeamConfig, GreedyConfig
    from txtgen.decode import PromptBatch, search

    config = GreedyConfig() if beam == 1 else BeamConfig(beam_size=beam)
    prompts = [
        PromptBatch(torch.zeros(len(ids), 1, dtype=torch.int64), torch.ones(len(ids), dtype=torch.int64), ids, mask)
        for ids, mask in batches(sources)
    ]

    def work(_threads: int) -> int:
        found = [search(model, prompt, config, limits=[TARGET] * len(prompt)) for prompt in prompts]
        return sum(len(results) for results in found)

    return work


def shared_translation(kind: str, sources: list[list[int]], beam: int, count: int) -> Candidate:
    """The same by so many processes of one thread, each with every so manieth batch and a model of its own."""
    shares = [[each for n, each in enumerate(sources) if n // AT_ONCE % count == share] for share in range(count)]
    works = [partial(translate_share, kind, share, beam) for share in shares]
    team = cache(lambda: [Subprocess(work, f"worker {number}") for number, work in enumerate(works)])

    def work(_threads: int) -> int:
        for worker in team():
            worker.send("translate")
        return sum(worker.receive() for worker in team())

    return work


def translate_share(kind: str, sources: list[list[int]], beam: int, line: Line) -> None:
    """In a worker: translate its share as often as it is told to."""
    work = own_translation(in_kind(own_translator(), kind), sources, beam)
    while line.receive():
        line.send(work(1))


def huggingface_translator():
    """A Marian of this shape, by transformers."""
    from transformers import MarianConfig, MarianMTModel

    layers, heads, width = TRANSLATOR["layers"], TRANSLATOR["heads"], TRANSLATOR["width"]
    config = MarianConfig(
        vocab_size=TRANSLATOR["vocabulary"],
        decoder_vocab_size=TRANSLATOR["vocabulary"],
        max_position_embeddings=TRANSLATOR["context"],
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=None,
        decoder_start_token_id=0,
    )
    return MarianMTModel(config).eval()


def huggingface_translation(peer, kind: str, sources: list[list[int]], beam: int) -> Candidate:
    """By generate of transformers."""
    model = copy.deepcopy(peer).to(getattr(torch, kind))
    parts = batches(sources)

    @torch.inference_mode()
    def work(_threads: int) -> int:
        options = {"max_new_tokens": TARGET, "min_new_tokens": TARGET, "num_beams": beam, "do_sample": False}
        return sum(len(model.generate(ids, attention_mask=mask.long(), **options)) for ids, mask in parts)

    return work


def ctranslate2_translation(
    peer, kind: str, sources: list[list[int]], beam: int, workers: int, folder: Path
) -> Candidate:
    """By CTranslate2, from the weights of transformers; so many workers share the sentences."""
    import ctranslate2
    from ctranslate2.converters.transformers import BartLoader

    path = folder / f"ctranslate2-{kind}-{workers}"
    original = copy.deepcopy(peer)
    original.config.normalize_before = original.config.normalize_embedding = False
    spec = BartLoader().get_model_spec(original)
    words = [f"t{number}" for number in range(peer.config.vocab_size)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.bos_token = spec.config.decoder_start_token = spec.config.unk_token = words[0]
    spec.config.eos_token = words[1]
    save(spec, kind, path)
    texts = [[words[token] for token in source] for source in sources]
    model = cache(partial(ctranslate2.Translator, str(path), "cpu", compute_type=kind, inter_threads=workers))

    def work(threads: int) -> int:
        options = {"max_decoding_length": TARGET, "min_decoding_length": TARGET, "beam_size": beam}
        found = model(intra_threads=threads).translate_batch(texts, max_batch_size=AT_ONCE, **options)
        return sum(len(result.hypotheses[0]) == TARGET for result in found)

    return work
