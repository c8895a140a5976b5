"""Pretraining and finetuning through the command line, and what stays of a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import txtgen
from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands.running import pacing, session
from txtgen.commands.running.run_folder import RunFolder
from txtgen.config.loader import load_config
from txtgen.config.runs import PretrainConfig
from txtgen.train.loss import batch_loss


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics(folder) if "loss" in line}


def test_a_run_leaves_what_the_contract_says(trained) -> None:
    folder = trained / "runs" / "decoder"
    files = {"config.yaml", "tokenizer.model", "metrics.jsonl", "log.txt", "status.json", "last.pth", "best.pth"}
    assert {path.name for path in folder.iterdir()} >= {"checkpoints", *files}
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        f"step-{step:08d}.pth" for step in (2, 4, 6)
    ]
    assert (folder / "last.pth").samefile(folder / "checkpoints" / "step-00000006.pth")
    train = [line for line in metrics(folder) if "loss" in line]
    keys = {"step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds"}
    speed = {"data_wait_share", "flops_per_second", "mfu", "peak_memory_bytes"}
    assert keys | speed <= set(train[0])
    assert all(0 < line["mfu"] < 2 and 0 <= line["data_wait_share"] <= 1 for line in train)
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    validation = [line for line in metrics(folder) if "val_loss" in line]
    assert [line["step"] for line in validation] == [3, 6]
    assert {"val_bits_per_byte", "seconds"} <= set(validation[0])
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("finished", 6, 0)
    assert load_checkpoint(folder / "best.pth", training=True).training is None
    assert "sample at step 6" in (folder / "log.txt").read_text()


def test_the_saved_config_starts_the_same_run(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "one"]) == 0
    assert run(["pretrain", "runs/one/config.yaml", "--name", "two"]) == 0
    assert losses(Path("runs/one")) == losses(Path("runs/two"))
    one, two = (load_checkpoint(Path(f"runs/{name}/last.pth")) for name in ("one", "two"))
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)


@pytest.mark.parametrize("config", ["decoder", "translator"])
def test_a_resumed_run_equals_the_straight_one(workshop, trained, config, monkeypatch) -> None:
    """Stopped by a signal after an odd step, with dropout, and resumed: the same losses and the same weights."""
    original = session.Session.log

    def interrupt(self, report) -> None:
        original(self, report)
        if report.step == 3:
            self.stop.receive(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "log", interrupt)
        assert run(["pretrain", f"{config}.yaml", "--name", "cut"]) == 143
    folder, straight = Path("runs/cut"), trained / "runs" / config
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert load_checkpoint(folder / "last.pth", training=True).training["step"] == 3
    assert run(["pretrain", "--resume", "--name", "cut"]) == 0
    assert losses(folder) == losses(straight)
    ours, theirs = (
        load_checkpoint(folder / "last.pth", training=True),
        load_checkpoint(straight / "last.pth", training=True),
    )
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in ours.model)
    for key in {"lanes", "window", "used", "places"} & {*theirs.training["bookmark"]}:
        assert ours.training["bookmark"][key] == theirs.training["bookmark"][key]
    assert ours.training["tokens"] == theirs.training["tokens"]


def test_a_run_that_goes_on_elsewhere_says_what_differs(workshop, capfd, monkeypatch) -> None:
    version = txtgen.__version__
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    capfd.readouterr()
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "7"]) == 0
    assert "not as the run was saved" not in capfd.readouterr().err
    here = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: here + 6)
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "8"]) == 0
    assert f"not as the run was saved: threads {here} -> {here + 6}." in capfd.readouterr().err
    monkeypatch.setattr("txtgen.__version__", "9.9.9")
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "9"]) == 0
    assert f"not as the run was saved: txtgen {version} -> 9.9.9." in capfd.readouterr().err


def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    newest = Path("runs/a/checkpoints/step-00000006.pth")
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(byte ^ 0xFF for byte in content[middle : middle + 300])  # padding and more
    newest.unlink()
    newest.write_bytes(content)
    before = losses(Path("runs/a"))
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert "step-00000006.pth" in capfd.readouterr().err
    assert losses(Path("runs/a")) == before


def test_a_killed_process_leaves_a_run_that_resumes(workshop) -> None:
    """SIGKILL at some moment after the first save."""
    command = [sys.executable, "-m", "txtgen", "pretrain", "decoder.yaml", "--name", "killed", "--steps", "4000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 60
        while not list(Path("runs").glob("killed/checkpoints/step-*.pth")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    folder = RunFolder(Path("runs/killed"))
    _, checkpoint, warnings = folder.newest()
    assert not warnings
    step = checkpoint.training["step"]
    assert run(["pretrain", "--resume", "--name", "killed", "--steps", str(step + 2), "--accept-changes"]) == 0
    assert load_checkpoint(folder.last, training=True).training["step"] == step + 2


def test_a_run_killed_before_last_pth_was_made_resumes_by_name(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    Path("runs/a/last.pth").unlink()
    Path("runs/a/best.pth").unlink(missing_ok=True)
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "7"]) == 0
    assert load_checkpoint(Path("runs/a/last.pth"), training=True).training["step"] == 7


def test_the_folder_that_is_named_goes_on_wherever_its_run_was_begun(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--runs-path", "old", "--steps", "2"]) == 0
    shutil.copytree("old/a", "new/b")
    shutil.copytree("old/a", "runs/c")
    assert run(["pretrain", "--resume", "--name", "b", "--runs-path", "new", "--steps", "3"]) == 0
    assert run(["pretrain", "--resume", "--steps", "4", "--accept-changes"]) == 0  # the newest under runs/
    steps = {
        path: load_checkpoint(Path(path, "last.pth"), training=True).training["step"]
        for path in ("old/a", "new/b", "runs/c")
    }
    assert steps == {"old/a": 2, "new/b": 3, "runs/c": 4}
    assert sorted(path.name for path in Path("old").iterdir()) == ["a"]
    saved = load_config(PretrainConfig, Path("runs/c/config.yaml"))
    assert (saved.runs_path, saved.name) == ("runs", "c")


def test_ctrl_c_in_a_real_process_saves_and_exits_130(workshop) -> None:
    command = [sys.executable, "-m", "txtgen", "pretrain", "decoder.yaml", "--name", "cut", "--steps", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        timer = threading.Timer(300, process.kill)  # a guard, not a claim
        timer.start()
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        timer.cancel()
    assert process.returncode == 130, rest
    assert "resume:" in rest
    assert "Traceback" not in rest
    assert Path("runs/cut/last.pth").exists()


def test_nothing_is_to_do_when_all_steps_are_done(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert "nothing to do" in capfd.readouterr().err
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "8", "--accept-changes"]) == 0
    assert max(losses(Path("runs/a"))) == 8


def test_the_end_tells_of_the_metric_that_is_the_best_in(workshop, capfd) -> None:
    assert run(["pretrain", "translator.yaml", "--name", "a"]) == 0
    best = max((line for line in metrics(Path("runs/a")) if "val_bleu" in line), key=lambda line: line["val_bleu"])
    assert f", best BLEU {best['val_bleu']:.2f} at step {best['step']}: runs/a\n" in capfd.readouterr().err


def test_samples_that_do_not_fit_are_told_of_once(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a b", "--set", "samples.decoding.max_new_tokens=99"]) == 0
    error = capfd.readouterr().err
    assert error.count("max_new_tokens 99 does not fit 1 of 1 prompts") == 1
    assert error.count("sample  the cat") == 2
    assert "generate: txtgen generate 'runs/a b' --prompt TEXT\n" in error


def test_an_occupied_folder_is_refused_then_moved_aside(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "2"]) == 0
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "2"]) == 9
    assert "already holds a run" in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "2", "--overwrite"]) == 0
    assert Path("runs/a.old-1/last.pth").exists()
    assert run(["pretrain", "decoder.yaml", "--steps", "2"]) == 0
    assert Path("runs/decoder-1/last.pth").exists()


def test_resuming_nothing_is_a_checkpoint_error(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--resume"]) == 5
    assert run(["pretrain", "--resume"]) == 5
    assert run(["pretrain"]) == 2


def test_a_run_is_fitted_into_its_time_and_ends_at_the_end_of_its_schedule(workshop, a_second_a_step) -> None:
    settings = ["schedule.kind=trapezoid", "schedule.cooldown_ratio=1.0", "save_every=0", "validate_every=0"]
    arguments = [part for setting in settings for part in ("--set", f"train.{setting}")]
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "100000", "--minutes", "0.2", *arguments]) == 0
    status = json.loads(Path("runs/a/status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("finished", 12, 12)
    rates = [line["learning_rate"] for line in metrics(Path("runs/a")) if "learning_rate" in line]
    assert rates[-1] == pytest.approx(0.01 / 13)
    assert load_checkpoint(Path("runs/a/last.pth"), training=True).training["horizon"] == [12, 0, 0.0, 100_000, 0.2]
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert max(losses(Path("runs/a"))) == 12  # the time is that of the whole run


def test_a_run_that_is_given_more_time_goes_on_at_the_rate_of_the_longer_schedule(
    workshop, a_second_a_step, monkeypatch
) -> None:
    monkeypatch.setattr(pacing.Pace, "elapsed", lambda pace: float(pace.state.step))
    settings = ["schedule.kind=trapezoid", "schedule.cooldown_ratio=1.0", "save_every=0", "validate_every=0"]
    arguments = [part for setting in settings for part in ("--set", f"train.{setting}")]
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "100000", "--minutes", "0.2", *arguments]) == 0
    assert run(["pretrain", "--resume", "--name", "a", "--minutes", "0.4", "--accept-changes"]) == 0
    rates = [line["learning_rate"] for line in metrics(Path("runs/a")) if "learning_rate" in line]
    assert rates[11] == pytest.approx(0.01 / 13)
    assert rates[12:14] == pytest.approx([0.01 * 12 / 25, 0.01 * 11 / 25])


def test_a_resumed_run_holds_its_optimizer_once(workshop, monkeypatch) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--set", "train.ema_decay=0.5"]) == 0
    begin, held = session.Session.run, []

    def noting(self):
        held.append(self.job.resumed.keys())
        return begin(self)

    monkeypatch.setattr(session.Session, "run", noting)
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "8", "--accept-changes"]) == 0
    assert "bookmark" in held[0]
    assert not {"optimizer", "weights"} & held[0]


def test_text_files_alone_are_enough(workshop) -> None:
    small = ["--set", "model.d_model=16", "--set", "model.num_layers=1", "--set", "model.d_ff=32", "--set"]
    assert run(["pretrain", "text", "--steps", "2", *small, "tokenizer.vocab_size=300"]) == 0
    assert Path("runs/text-1/last.pth").exists()
    assert run(["pretrain", "text/*.txt", "--steps", "1", *small, "tokenizer.vocab_size=300"]) == 0
    assert Path("runs/text-2/last.pth").exists()
    assert run(["finetune", "chats.jsonl", "--base", "runs/text-1", "--steps", "2"]) == 0
    assert load_checkpoint(Path("runs/chats-1/last.pth")).config.chat is not None


def test_a_diverging_run_exits_7_and_keeps_the_last_good_checkpoint(workshop, capfd, monkeypatch) -> None:
    steps = count(1)

    def diverge_at_step_5(*arguments):
        sums = batch_loss(*arguments)
        return replace(sums, objective=sums.objective * float("nan")) if next(steps) == 5 else sums

    monkeypatch.setattr("txtgen.train.loss.batch_loss", diverge_at_step_5)
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 7
    error = capfd.readouterr().err
    assert "the gradient is not finite; step 5, documents " in error
    status = json.loads(Path("runs/a/status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"][:24]) == ("diverged", 7, "the gradient is not fini")
    last = load_checkpoint(Path("runs/a/last.pth"))
    assert last.lineage["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in last.model.values())


# -- finetune


def test_finetuning_starts_from_the_base_and_says_so(workshop, trained) -> None:
    base = trained / "runs" / "decoder"
    arguments = ["--base", str(base), "--steps", "2", "--name", "b", "--set", "train.optimizer.learning_rate=1e-30"]
    assert run(["finetune", "chats.jsonl", *arguments]) == 0
    ours, theirs = load_checkpoint(Path("runs/b/last.pth")), load_checkpoint(base / "best.pth")
    assert all(torch.allclose(ours.model[name], theirs.model[name], atol=1e-6) for name in ours.model)
    assert ours.lineage["parent"] == theirs.fingerprint
    assert ours.tokenizer.fingerprint() == theirs.tokenizer.fingerprint()
    assert Path("runs/b/config.yaml").read_text().count("learning_rate: 1.0e-30") == 1


@pytest.mark.parametrize(
    ("data", "more", "rate"),
    [
        ("chats.jsonl", [], 1e-4),
        ("chats.jsonl", ["--set", "adapter.rank=8"], 1e-3),
        ("chosen.jsonl", [], 1e-5),
        ("chosen.jsonl", ["--set", "adapter.rank=8"], 1e-4),
        ("chosen.jsonl", ["--set", "train.optimizer.learning_rate=0.5"], 0.5),
    ],
)
def test_the_usual_rate_is_that_of_what_is_learnt(workshop, trained, data, more, rate) -> None:
    pairs = [{"prompt": f"a {n}?", "chosen": f"a cat {n}", "rejected": f"a dog {n}"} for n in range(9)]
    Path("chosen.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    base = str(trained / "runs" / "decoder")
    assert run(["finetune", data, "--base", base, "--steps", "1", "--name", "b", *more]) == 0
    optimizer = load_checkpoint(Path("runs/b/last.pth")).config.run["train"]["optimizer"]
    assert optimizer["learning_rate"] == pytest.approx(rate)


def test_frozen_parameters_do_not_move(workshop, trained) -> None:
    base = trained / "runs" / "decoder"
    freeze = ["--set", 'freeze=["*embedding*", "decoder.layers.0.self_attention.*"]']
    assert run(["finetune", "chats.jsonl", "--base", str(base), "--steps", "3", "--name", "b", *freeze]) == 0
    ours, theirs = load_checkpoint(Path("runs/b/last.pth")).model, load_checkpoint(base / "best.pth").model
    for name in ours:
        frozen = "embedding" in name or "self_attention." in name
        assert torch.equal(ours[name], theirs[name]) == frozen, name


def test_what_freezing_means(workshop, trained) -> None:
    base = trained / "runs" / "translator"
    last = ("encoder.layers.0.", "decoder.layers.0.", "encoder.final_norm.", "decoder.final_norm.")
    for name, freeze, moves in (
        ("embeddings", "freeze={embeddings: true}", lambda name: "_embedding." not in name),
        ("layers", "freeze={all_but_last: 1}", lambda name: name.startswith(last)),
    ):
        arguments = ["--base", str(base), "--steps", "2", "--name", name, "--set", freeze]
        assert run(["finetune", "pairs.tsv", *arguments, "--set", "train.optimizer.learning_rate=0.1"]) == 0
        ours, theirs = load_checkpoint(Path(f"runs/{name}/last.pth")).model, load_checkpoint(base / "best.pth").model
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]) != moves(key), (name, key)


def test_pairs_finetune_a_translator(workshop, trained) -> None:
    assert run(["finetune", "pairs.tsv", "--base", str(trained / "runs" / "translator"), "--steps", "2"]) == 0
    assert Path("runs/pairs-1/last.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chats.jsonl"], 2, "add --base"),
        (["chats.jsonl", "--base", "missing.pth"], 5, "no such model"),
        (["chats.jsonl", "--base", "DECODER", "--set", 'freeze=["nothing.*"]'], 3, "matches no parameter"),
        (["chats.jsonl", "--base", "DECODER", "--set", 'freeze=["*"]'], 3, "every parameter is frozen"),
        (["chats.jsonl", "--base", "DECODER", "--set", "freeze.all_but_last=2"], 3, "the model has 1 layers, fewer"),
        (["chats.jsonl", "--base", "DECODER", "--set", "freeze={all_but: 2}"], 3, "unknown key"),
        (["pairs.tsv", "--base", "DECODER", "--set", "data.objective.kind=seq2seq"], 3, "needs an encoder_decoder"),
        (
            ["chats.jsonl", "--base", "DECODER", "--set", "source_tokenizer.path=other.model"],
            3,
            "no tokenizer for sources",
        ),
        (["chats.jsonl", "--base", "DECODER", "--set", "train.batch_tokens=100"], 3, "not a multiple"),
    ],
)
def test_finetuning_what_cannot_be_is_refused(workshop, trained, capfd, arguments, code, message) -> None:
    assert run(["tokenizer", "train", "pairs.tsv", "--out", "other.model", "--vocab-size", "300"]) == 0
    arguments = [str(trained / "runs" / "decoder") if item == "DECODER" else item for item in arguments]
    assert run(["finetune", *arguments]) == code
    error = capfd.readouterr().err
    assert error.count("error: ") == 1
    assert message in error
    assert not list(Path("runs").glob("*/last.pth")) if Path("runs").exists() else True
