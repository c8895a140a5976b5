"""Speed beside peers: interleaved rounds, medians, and a look at who else uses the machine.

    python scripts/bench.py train --shape small    # tokens per second of a training step, on one thread and on all
    python scripts/bench.py decode --shape small   # tokens per second of greedy decoding; --batch 32 for many rows
    python scripts/bench.py translate --beam 5     # sentences per second of an encoder-decoder
    python scripts/bench.py first --shape gpt2     # seconds from the shell to the first token, beside `import torch`
    python scripts/bench.py loss CONFIG            # seconds to a validation loss, beside nanoGPT's recipe
    python scripts/bench.py start CONFIG           # seconds to the first step, beside `import torch`
    python scripts/bench.py feed --text FILE       # tokens per second of text into batches, beside SentencePiece alone

The peers (transformers, litgpt, CTranslate2, llama.cpp, a plain GPT-2 as nanoGPT trains it) are installed into an
environment of their own, .venv-bench, which this script makes; building llama.cpp takes some six minutes. All have
random weights. Each is given the number of threads that serves it best in decoding.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-bench"
PEERS = ["transformers", "litgpt==0.5.13", "ctranslate2==4.8.5", "llama-cpp-python", "gguf", "sentencepiece"]
SHAPES = {
    "tiny": {"layers": 4, "width": 128, "heads": 4, "context": 64, "batch": 12, "vocabulary": 330},
    "small": {"layers": 6, "width": 384, "heads": 6, "context": 256, "batch": 16, "vocabulary": 8000},
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "context": 1024, "batch": 1, "vocabulary": 50257},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "decode", "translate", "first", "loss", "start", "feed"])
    parser.add_argument("config", nargs="?", help="of the run, for loss and start")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of train, decode and translate")
    parser.add_argument("--batch", type=int, default=1, help="sequences at a time, of decode")
    parser.add_argument("--new", type=int, default=128, help="tokens of each sequence, of decode")
    parser.add_argument("--beam", type=int, default=1, help="beams of translate")
    parser.add_argument("--sentences", type=int, default=200, help="of translate")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--peers", nargs="*", help="only these, such as plain")
    parser.add_argument("--target", type=float, default=1.88, help="validation loss to reach")
    parser.add_argument(
        "--text", type=Path, default=ROOT / "../shared/data/shakespeare", help="texts, or of feed a file"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.what in ("loss", "start") and arguments.config is None:
        parser.error(f"{arguments.what} needs a CONFIG")
    enter_environment()
    match arguments.what:
        case "loss":
            show(time_to_loss(arguments), "seconds", arguments)
        case "start":
            show(time_to_first_step(arguments), "seconds", arguments)
        case "first":
            show(time_to_first_token(arguments), "seconds", arguments)
        case "feed":
            from bench_feeding import feeding

            show(measure(feeding(arguments.text), arguments.rounds, arguments.seconds), "tokens/s", arguments)
        case "train":
            from bench_candidates import training

            candidates = training(SHAPES[arguments.shape], arguments)
            show(measure(candidates, arguments.rounds, arguments.seconds), "tokens/s", arguments)
        case _:
            from bench_decoding import decoding
            from bench_translating import translating

            unit = "tokens/s" if arguments.what == "decode" else "sentences/s"
            with tempfile.TemporaryDirectory() as folder:
                make = decoding if arguments.what == "decode" else translating
                candidates = at_their_best(make(SHAPES[arguments.shape], arguments, Path(folder)))
                show(measure(candidates, arguments.rounds, arguments.seconds), unit, arguments)


def enter_environment() -> None:
    """Run this script again inside .venv-bench, which is made if it is missing; txtgen is that of this checkout."""
    python = ENVIRONMENT / "bin" / "python"
    if Path(sys.prefix) != ENVIRONMENT or os.environ.get("PYTHONPATH") != str(ROOT):
        if not python.exists():
            print("setting up .venv-bench", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
            # The peers have demands of their own on everything but torch.
            pin = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
            subprocess.run([python, "-m", "pip", "install", "-q", pin, "-e", ROOT, *PEERS], check=True)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(python, [str(python), *sys.argv])


Rounds = dict[str, list[tuple[float, float]]]
"""For each candidate and round, what was measured, and the share of the machine that others used meanwhile."""


def at_their_best(works: dict) -> dict:
    """Candidates for `measure`, each with the number of threads that it is fastest with."""
    import torch

    found = {}
    for name, work in works.items():
        taken = {}
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            work(threads)
            started = time.perf_counter()
            work(threads)
            taken[threads] = time.perf_counter() - started
        best = min(taken, key=taken.__getitem__)
        found[f"{name}, {best} thread{'s' * (best > 1)}"] = partial(work, best), best
    return found


def measure(candidates: dict, rounds: int, seconds: float) -> Rounds:
    """Tokens (or sentences) per second of candidates, each with its number of threads."""
    import torch

    for work, _ in candidates.values():
        work()
        work()
    results: Rounds = {name: [] for name in candidates}
    for number in range(rounds):
        order = list(candidates.items())
        for name, (work, threads) in order if number % 2 == 0 else reversed(order):
            torch.set_num_threads(threads)
            before, started, tokens = processor_times(), time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                tokens += work()
            elapsed = time.perf_counter() - started
            results[name].append((tokens / elapsed, foreign_share(before, processor_times())))
    return results


def time_to_loss(arguments: argparse.Namespace) -> Rounds:
    """Seconds from process start: of nanoGPT's recipe to its end, of a run of txtgen until its validation reaches the
    target, and to its end."""
    names = ("nanoGPT's recipe, whole process", f"txtgen to {arguments.target}", "txtgen to its end")
    results: Rounds = {name: [] for name in names}
    recipe = [sys.executable, str(ROOT / "scripts" / "plain_gpt2.py")]
    texts = [str(arguments.text / name) for name in ("train.txt", "val.txt")]
    for _ in range(arguments.rounds):
        before, started = processor_times(), time.perf_counter()
        loss = subprocess.run([*recipe, *texts], check=True, capture_output=True, text=True).stdout.strip()
        taken = time.perf_counter() - started
        results[names[0]].append((taken, foreign_share(before, processor_times())))
        with tempfile.TemporaryDirectory() as runs:
            before = processor_times()
            reached, ended, losses = run_until(arguments, Path(runs))
            foreign = foreign_share(before, processor_times())
        results[names[1]].append((reached, foreign))
        results[names[2]].append((ended, foreign))
        print(f"nanoGPT {taken:.1f} s, loss {loss}; txtgen {reached:.1f} s, losses {losses}", file=sys.stderr)
    return results


def run_until(arguments: argparse.Namespace, runs: Path) -> tuple[float, float, list[float]]:
    """Train as the config says. Returns the seconds until a validation line at or below the target was there (infinite:
    none was), those until the end, and all validation losses. The whole of val.txt must be scored."""
    started, reached = time.perf_counter(), float("inf")
    settings = ["--set", "train.validation_batches=null"]
    command = [sys.executable, "-m", "txtgen", "pretrain", arguments.config, "--name", "run", "--runs-path", str(runs)]
    process = subprocess.Popen([*command, *settings], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if reached == float("inf") and min(validation_losses(runs), default=9.9) <= arguments.target:
            reached = time.perf_counter() - started
        time.sleep(0.02)
    ended = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"txtgen ended with {process.returncode}")
    losses = validation_losses(runs)
    if reached == float("inf") and min(losses, default=9.9) <= arguments.target:
        reached = ended
    return reached, ended, losses


def validation_losses(runs: Path) -> list[float]:
    """Those that stand in the metrics of the run so far."""
    path = runs / "run" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    metrics = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line["val_loss"] for line in metrics if "val_loss" in line]


def time_to_first_step(arguments: argparse.Namespace) -> Rounds:
    """Seconds of `import torch` in a process of its own, and of a run to the line of metrics of its first step."""
    results: Rounds = {"import torch": [], "txtgen to its first step": []}
    for _ in range(arguments.rounds):
        before, started = processor_times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        taken = time.perf_counter() - started
        results["import torch"].append((taken, foreign_share(before, processor_times())))
        with tempfile.TemporaryDirectory() as runs:
            before, started = processor_times(), time.perf_counter()
            command = [sys.executable, "-m", "txtgen", "pretrain", arguments.config, "--steps", "1", "--name", "run"]
            flags = ["--runs-path", runs, "--set", "train.schedule.warmup_steps=0"]
            process = subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
            metrics = Path(runs) / "run" / "metrics.jsonl"
            while process.poll() is None and not metrics.exists():
                time.sleep(0.005)
            taken = time.perf_counter() - started
            process.wait()
        results["txtgen to its first step"].append((taken, foreign_share(before, processor_times())))
    return results


def time_to_first_token(arguments: argparse.Namespace) -> Rounds:
    """Seconds of `import torch`, of that and reading a checkpoint's bytes, and of `txtgen generate` and transformers to
    their first token: each in a process of its own."""
    from bench_decoding import first_token_commands

    results: Rounds = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = first_token_commands(SHAPES[arguments.shape], Path(folder))
        for _ in range(arguments.rounds + 1):  # the first round warms up
            for name, command in commands.items():
                before, started = processor_times(), time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                taken = time.perf_counter() - started
                results.setdefault(name, []).append((taken, foreign_share(before, processor_times())))
    return {name: rounds[1:] for name, rounds in results.items()}


def processor_times() -> tuple[float, float, float]:
    """Seconds of processor time so far: of the whole machine busy, of all in all, of this process and those it ran."""
    try:
        fields = [float(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0.0, 0.0, 0.0
    tick, own = os.sysconf("SC_CLK_TCK"), os.times()
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / tick, sum(fields) / tick, sum(own[:4])


def foreign_share(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    """Share of the machine's processor time that other processes used between two readings."""
    busy, total, own = (late - early for early, late in zip(before, after, strict=True))
    return max(0.0, busy - own) / total if total else 0.0


def show(results: Rounds, unit: str, arguments: argparse.Namespace) -> None:
    """Medians over the rounds in which others used less than 6 % of the machine, and their ratio to the first."""
    rows = {}
    for name, rounds in results.items():
        quiet = [value for value, foreign in rounds if foreign < 0.06]
        median = statistics.median(quiet or [value for value, _ in rounds])
        rows[name] = {"median": median, "quiet_rounds": len(quiet), "rounds": [value for value, _ in rounds]}
    if arguments.json:
        print(json.dumps({**{key: str(value) for key, value in vars(arguments).items()}, **rows}))
        return
    first = next(iter(rows.values()))["median"]
    for name, row in rows.items():
        quiet = f"{row['quiet_rounds']}/{len(row['rounds'])} quiet rounds"
        print(f"{name:36} {row['median']:12,.2f} {unit:9} {row['median'] / first:6.3f} of the first   {quiet}")


if __name__ == "__main__":
    main()
