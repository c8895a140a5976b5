"""Speed beside a peer: interleaved rounds in one process, medians, and a look at who else uses the machine.

    python scripts/bench.py train            # tokens per second of a training step
    python scripts/bench.py decode           # tokens per second of greedy decoding, batch 1
    python scripts/bench.py train --shape small --rounds 5 --json

The peer (transformers) is installed into an environment of its own, .venv-bench, which this script makes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-bench"
PEERS = ["transformers==4.57.6"]
SHAPES = {
    "tiny": {"layers": 4, "width": 128, "heads": 4, "context": 64, "batch": 12, "vocabulary": 330},
    "small": {"layers": 6, "width": 384, "heads": 6, "context": 256, "batch": 16, "vocabulary": 8000},
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "context": 1024, "batch": 1, "vocabulary": 50257},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "decode"])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    enter_environment()
    candidates = (training if arguments.what == "train" else decoding)(SHAPES[arguments.shape], arguments.dtype)
    report(measure(candidates, arguments.rounds, arguments.seconds), arguments)


def enter_environment() -> None:
    """Run this script again inside .venv-bench, which is made if it is missing."""
    python = ENVIRONMENT / "bin" / "python"
    if Path(sys.prefix) == ENVIRONMENT:
        return
    if not python.exists():
        print("setting up .venv-bench", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        subprocess.run([*install, "-e", ROOT], check=True)
        subprocess.run([*install, *PEERS], check=True)
    os.execv(python, [str(python), *sys.argv])


Candidate = Callable[[], int]
"""Does one piece of work and says how many tokens it was."""


def training(shape: dict[str, int], dtype: str) -> dict[str, Candidate]:
    """One optimizer step of either: forward, backward, clip, AdamW."""
    import torch

    from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
    from txtgen.data.types import Batch
    from txtgen.train import TrainState, build_optimizer, train

    rows, width = shape["batch"], shape["context"]
    ids = torch.randint(10, shape["vocabulary"], (rows, width + 1))
    torch_dtype = getattr(torch, dtype)
    batch = Batch(
        input_ids=ids[:, :-1],
        labels=ids[:, 1:].contiguous(),
        positions=torch.arange(width).expand(rows, width).contiguous(),
        segment_ids=torch.ones(rows, width, dtype=torch.int32),
    )
    model = own_model(shape).train()
    state = TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=1e-4)))
    config = TrainConfig(steps=10**9, batch_tokens=rows * width, schedule=ConstantSchedule())
    steps = train(state, iter(lambda: batch, None), config, dtype=torch_dtype)

    peer = peer_model(shape).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=True)

    def own_step() -> int:
        return next(steps).tokens

    def peer_step() -> int:
        with torch.autocast("cpu", dtype=torch_dtype, enabled=dtype != "float32"):
            loss = peer(input_ids=batch.input_ids, labels=batch.labels, shift_labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return rows * width

    return {"txtgen": own_step, "transformers": peer_step}


def decoding(shape: dict[str, int], dtype: str) -> dict[str, Candidate]:
    """Greedy decoding of 64 tokens after a prompt of 16, batch 1."""
    import torch

    from txtgen.config.decoding import GreedyConfig
    from txtgen.decode.search import search
    from txtgen.decode.types import PromptBatch

    torch_dtype = getattr(torch, dtype)
    model = own_model({**shape, "context": max(128, shape["context"])}).eval().to(torch_dtype)
    peer = peer_model({**shape, "context": max(128, shape["context"])}).eval().to(torch_dtype)
    prompt = torch.randint(10, shape["vocabulary"], (1, 16))
    new = 64

    def own() -> int:
        batch = PromptBatch(prompt, torch.tensor([16]))
        search(model, batch, GreedyConfig(max_new_tokens=new), limits=[new])
        return new

    def other() -> int:
        with torch.inference_mode():
            peer.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        return new

    return {"txtgen": own, "transformers": other}


def own_model(shape: dict[str, int]):
    """A GPT-2 of this shape, by txtgen."""
    from txtgen.config.model import DecoderConfig, LearnedPosition
    from txtgen.model import build_model, init_weights

    model = build_model(
        DecoderConfig(
            d_model=shape["width"],
            num_layers=shape["layers"],
            num_heads=shape["heads"],
            max_length=shape["context"],
            vocab_size=shape["vocabulary"],
            activation="gelu_tanh",
            position=LearnedPosition(),
        ),
        device="cpu",
    )
    init_weights(model, 0)
    return model


def peer_model(shape: dict[str, int]):
    """A GPT-2 of this shape, by transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=shape["width"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            n_positions=shape["context"],
            vocab_size=shape["vocabulary"],
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=2,
            eos_token_id=None,
        )
    )


def measure(candidates: dict[str, Candidate], rounds: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """For each candidate and round, tokens per second and the share of the machine that others used meanwhile."""
    for work in candidates.values():
        work()
        work()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for number in range(rounds):
        order = list(candidates.items())
        for name, work in order if number % 2 == 0 else reversed(order):
            before, started, tokens = processor_times(), time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                tokens += work()
            elapsed = time.perf_counter() - started
            results[name].append((tokens / elapsed, foreign_share(before, processor_times())))
    return results


def processor_times() -> tuple[float, float, float]:
    """Seconds of processor time so far: of the whole machine busy, of all in all, of this process."""
    try:
        fields = [float(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0.0, 0.0, 0.0
    tick = os.sysconf("SC_CLK_TCK")
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / tick, sum(fields) / tick, time.process_time()


def foreign_share(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    """Share of the machine's processor time that other processes used between two readings."""
    busy, total, own = (late - early for early, late in zip(before, after, strict=True))
    return max(0.0, busy - own) / total if total else 0.0


def report(results: dict[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> None:
    """Medians over the rounds in which others used less than 6 % of the machine, and their ratio."""
    rows = {}
    for name, rounds in results.items():
        quiet = [rate for rate, foreign in rounds if foreign < 0.06]
        rates = quiet or [rate for rate, _ in rounds]
        rows[name] = {"tokens_per_second": statistics.median(rates), "quiet_rounds": len(quiet), "rounds": len(rounds)}
    own, peer = (rows[name]["tokens_per_second"] for name in ("txtgen", "transformers"))
    if arguments.json:
        print(json.dumps({"what": arguments.what, "shape": arguments.shape, "dtype": arguments.dtype, **rows}))
        return
    for name, row in rows.items():
        print(
            f"{name:14} {row['tokens_per_second']:10,.0f} tokens/s   {row['quiet_rounds']}/{row['rounds']} quiet rounds"
        )
    print(f"ratio          {own / peer:10.2f}")


if __name__ == "__main__":
    main()
