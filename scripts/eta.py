"""Compare the time that a dry run foretells with what the run then takes: scripts/eta.py [CONFIG...] [--seconds S]

Every config is shortened to about so many seconds, with three validations and two saves. On an otherwise idle machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ("shakespeare-char", "shakespeare-sp", "multi30k-en-de", "poems-zh")


def txtgen(*arguments: str) -> tuple[float, str]:
    """Seconds of a command, and what it writes to stdout."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "txtgen", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout


def shortened(config: str, seconds: float) -> list[str]:
    """Settings with which a run of this config takes about so long."""
    spent = json.loads(txtgen("pretrain", config, "--dry-run", "--json")[1])["time"]
    around = spent["preparing_seconds"] + 3 * spent.get("validation_seconds", 0.0) + 2 * spent["save_seconds"]
    steps = max(30, int((seconds - around) / spent["step_seconds"]))
    settings = {"steps": steps, "validate_every": -(-steps // 3), "save_every": -(-steps // 2), "keep_every": 0}
    settings["schedule.warmup_steps"] = steps // 20
    return [part for key, value in settings.items() for part in ("--set", f"train.{key}={value}")]


def main() -> int:
    """Print a line a config. Returns 1 if any is off by more than 15 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--seconds", type=float, default=80.0)
    options = parser.parse_args()
    # What every command takes before it begins is no part of the run.
    imports = "import txtgen.commands.launching"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", imports], cwd=ROOT, check=True)
    loading = time.perf_counter() - started
    worst = 0.0
    for name in options.configs:
        config = str(ROOT / "configs" / f"{name}.yaml")
        settings = shortened(config, options.seconds)
        foretold = json.loads(txtgen("pretrain", config, *settings, "--dry-run", "--json")[1])["time"]["total_seconds"]
        with tempfile.TemporaryDirectory() as folder:
            taken = txtgen("pretrain", config, *settings, "--runs-path", folder, "--name", "eta")[0] - loading
        off = foretold / taken - 1
        worst = max(worst, abs(off))
        print(f"{name:24} {settings[1]:20} foretold {foretold:6.1f} s  taken {taken:6.1f} s  {off:+.1%}", flush=True)
    return int(worst > 0.15)


if __name__ == "__main__":
    sys.exit(main())
