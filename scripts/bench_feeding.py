"""What `bench.py feed` times against one another: text into training batches, and into ids by SentencePiece alone."""

from itertools import cycle
from pathlib import Path

from bench_candidates import Candidate


def feeding(text: Path) -> dict[str, tuple[Candidate, int]]:
    """Text into training batches, and what SentencePiece alone takes to make ids of the same documents."""
    from sentencepiece import SentencePieceProcessor

    from txtgen.config.data import DataConfig
    from txtgen.config.tokenizer import SentencePieceConfig
    from txtgen.data import build_objective, train_stream
    from txtgen.tokenizer.training import train_sentencepiece

    documents = [part for part in text.read_text(encoding="utf-8").split("\n\n") if part]
    tokenizer, _ = train_sentencepiece(SentencePieceConfig(vocab_size=8000), documents)
    source = {"kind": "text", "path": str(text), "documents": "paragraph"}
    data = DataConfig.model_validate({"sources": (source,)}, strict=False)
    objective = build_objective(data.objective, tokenizer, max_length=1024, max_source_length=None)
    processor = SentencePieceProcessor(model_proto=tokenizer.model)

    def alone(threads: int) -> Candidate:
        parts = cycle([documents[start : start + 2000] for start in range(0, len(documents), 2000)])
        options = {"num_threads": threads, "return_type": "numpy"}
        return lambda: sum(map(len, processor.encode(next(parts), **options)))

    def stream(workers: int) -> Candidate:
        batches = train_stream(data, objective, batch_tokens=65536, length=1024, seed=0, workers=workers)
        return lambda: int((next(batches).segment_ids > 0).sum())

    works = {f"SentencePiece alone, {count} threads": alone(count) for count in (2, 1)}
    works |= {f"txtgen, {count} workers": stream(count) for count in (0, 1, 2)}
    return {name: (work, 1) for name, work in works.items()}
