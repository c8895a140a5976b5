"""How a run begins or goes on: mistakes are told before anything is done, with what to type in their place."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from txtgen.checkpoint import load_checkpoint
from txtgen.cli import run
from txtgen.commands import launching
from txtgen.commands.running import session
from txtgen.commands.running.resuming import horizon_from
from txtgen.commands.running.run_folder import RunFolder
from txtgen.config.train import UNLIMITED, TrainConfig
from txtgen.train import Horizon

OLD_RUN = Path(__file__).parents[1] / "old_run"
CONSTANT = ["--set", "train.schedule.kind=constant"]


def step_of(folder: str) -> int:
    return load_checkpoint(Path(folder, "last.pth"), training=True).training["step"]


# -- what is asked of a corpus


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.validation_metric=bleu"], "train.validation_metric: bleu needs source and target pairs"),
        (["data.validation.fraction=0.0", "train.validation_metric=chrf"], "chrf needs source and target pairs"),
        (["data.validation.fraction=0.0", "train.patience=2"], "train.patience: nothing is held out"),
        (["samples.prompts=[]", "samples.every=2"], "samples.every: is 2, but there are no samples.prompts"),
    ],
)
def test_what_could_never_be_measured_is_refused_before_the_run(workshop, capfd, settings, told) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    assert run(["pretrain", "decoder.yaml", "--name", "a", *options]) == 3
    assert told in capfd.readouterr().err
    assert not Path("runs").exists()


def test_a_run_without_held_out_text_says_so(workshop, capfd) -> None:
    assert run(["pretrain", "text/a.txt", "--steps", "1", "--name", "a"]) == 0  # too small to hold any of it out
    assert "nothing is held out (data.validation): no validation loss, and no best.pth\n" in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "--steps", "1", "--name", "b"]) == 0
    assert "held out" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.validation.sources=[{kind: text, path: b.txt}]", "no file matches 'b.txt'; data.validation.sources.0: "),
        ("data.validation.sources=[{kind: text, path: empty}]", "the file is empty; data.validation.sources.0: "),
        (
            "data.sources.0.path=text/b.txt",
            "no file matches 'text/b.txt'; data.sources.0: text text/b.txt, relative to ",
        ),
    ],
)
def test_a_missing_file_is_found_before_anything_is_made_of_the_others(workshop, capfd, setting, told) -> None:
    Path("empty").touch()
    options = ["--set", "data.validation.fraction=0.0", "--set", setting]
    assert run(["pretrain", "decoder.yaml", "--name", "a", *options]) == 4
    assert told in (error := capfd.readouterr().err)
    assert "tokenizer" not in error
    assert not Path("runs").exists()


def test_a_dry_run_misses_files_as_early(workshop, capfd) -> None:
    missing = ["--set", "data.validation={sources: [{kind: text, path: b.txt}]}"]
    assert run(["pretrain", "decoder.yaml", *missing, "--dry-run"]) == 4
    found = capfd.readouterr()
    assert "data.validation.sources.0: " in found.err
    assert found.out == ""


def test_a_run_that_is_resumed_elsewhere_says_where_it_was_begun(workshop, capfd, monkeypatch) -> None:
    begun = ["pretrain", "decoder.yaml", "--name", "a", "--set", "data.sources.0.path=text", *CONSTANT]
    assert run([*begun, "--steps", "2"]) == 0
    elsewhere = workshop / "else"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = ["pretrain", "--resume", "--name", "a", "--runs-path", "../runs", "--steps", "3"]
    assert run(again) == 4
    told = f"relative to {elsewhere}; check the spelling; '.' holds 0 entries, none of a similar name; "
    assert told + f"the run was begun in {workshop}: start this command there" in capfd.readouterr().err
    assert run([*again, "--set", "data.sources.0.path=../text"]) == 0
    assert step_of("../runs/a") == 3


def test_what_was_learnt_before_a_bad_record_is_saved(workshop, capfd) -> None:
    lines = [json.dumps({"text": f"line {number} of some text."}) for number in range(4000)]
    Path("bad.jsonl").write_text("\n".join([*lines, "no JSON"]), encoding="utf-8")
    source = ["--set", "data.sources=[{kind: jsonl, path: bad.jsonl}]", "--set", "data.validation.fraction=0.0"]
    source += ["--set", "tokenizer.sample_bytes=1000", "--set", "train.save_every=0", *CONSTANT]
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "1000", *source]) == 4
    saved = step_of("runs/a")
    assert saved > 0
    status = json.loads(Path("runs/a/status.json").read_text())
    assert (status["step"], Path(status["last_checkpoint"]).name) == (saved, f"step-{saved:08d}.pth")
    told = f"after step {saved}; mend the record, or leave out such records with data.on_bad_record: skip; "
    assert told + f"the last checkpoint is runs/a/checkpoints/step-{saved:08d}.pth" in capfd.readouterr().err
    skipping = ["--set", "data.on_bad_record=skip", "--steps", str(saved + 3)]
    assert run(["pretrain", "--resume", "--name", "a", *skipping]) == 0
    told = capfd.readouterr().err
    assert "skipped, as bad, 1 of " in told
    assert " records read, such as bad.jsonl:4001" in told
    assert step_of("runs/a") == saved + 3


# -- how long it goes on


def test_a_run_cannot_be_told_to_have_done_less(workshop, a_second_a_step, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    kept = {path: path.read_bytes() for path in map(Path, ("runs/a/config.yaml", "runs/a/status.json"))}
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--resume", "--steps", "3", "--accept-changes"]) == 3
    assert "train.steps: 6 -> 3, but 6 steps are done" in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "--name", "timed", "--minutes", "0.1"]) == 0
    assert run(["pretrain", "--resume", "--name", "timed", "--set", "train.minutes=null", "--steps", "1"]) == 3
    assert "train.steps: None -> 1, but " in capfd.readouterr().err
    assert {path: path.read_bytes() for path in kept} == kept


def test_more_steps_that_move_the_learning_rate_need_a_word(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "4"]) == 0
    longer = ["pretrain", "--resume", "--name", "a", "--steps", "8"]
    assert run(longer) == 3
    assert "train.steps: 4 -> 8, learning rate of step 5: 0.001 -> 0.00378; " in capfd.readouterr().err
    assert run([*longer, "--accept-changes"]) == 0
    assert "changed after step 4: train.steps: 4 -> 8, learning rate of step 5: " in capfd.readouterr().err
    rates = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert next(line["learning_rate"] for line in rates if line["step"] == 5) == pytest.approx(0.00378, rel=1e-3)
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["changes"][0]["train.steps"] == "4 -> 8"


def test_what_was_accepted_stands_although_the_run_was_killed_before_its_next_save(
    workshop, monkeypatch, capfd
) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "4"]) == 0

    def killed(self) -> None:
        raise KeyboardInterrupt

    longer = ["pretrain", "--resume", "--name", "a", "--steps", "8", "--accept-changes"]
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "learn", killed)
        assert run(longer) == 130
    capfd.readouterr()
    assert run(["pretrain", "--resume", "--name", "a", "--set", "train.clip_norm=0.5"]) == 3
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert "changed after step 4: train.steps: 4 -> 8, learning rate" in capfd.readouterr().err
    assert step_of("runs/a") == 8
    assert load_checkpoint(Path("runs/a/last.pth")).lineage["changes"][0]["train.steps"] == "4 -> 8"


def test_runs_of_versions_that_noted_no_length_are_protected_too(workshop, capfd) -> None:
    shutil.copytree(OLD_RUN, "runs/old")
    text = Path("runs/old/config.yaml").read_text()
    assert run(["pretrain", "--resume", "--name", "old", "--steps", "800"]) == 3, text
    assert "learning rate of step 401: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("most", "now", "expected"),
    [
        (UNLIMITED, TrainConfig(minutes=0.2), Horizon(12, 8, 0.5)),
        (100_000, TrainConfig(minutes=0.2), Horizon(12, 8, 0.5)),  # a limit that the time does not reach
        (12, TrainConfig(minutes=0.2), Horizon(24)),  # one that ended it
        (UNLIMITED, TrainConfig(minutes=0.2, steps=10), Horizon(10)),
        (UNLIMITED, TrainConfig(minutes=0.3), Horizon(36)),
        (UNLIMITED, TrainConfig(steps=50), Horizon(50)),
    ],
)
def test_how_long_a_resumed_run_is_to_be(most, now, expected) -> None:
    """After 8 steps in 4 seconds."""
    training = {"step": 8, "seconds": 4.0, "horizon": [12, 8, 0.5, most, 0.2]}
    assert horizon_from(training, now) == expected


def test_more_steps_in_the_stable_phase_need_none_and_equal_the_straight_run(workshop) -> None:
    stable = ["--set", "train.schedule={kind: trapezoid, warmup_steps: 2, cooldown_steps: 1}"]
    assert run(["pretrain", "decoder.yaml", "--name", "straight", "--steps", "8", *stable]) == 0
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "6", *stable]) == 0
    for later in ("runs/a/last.pth", "runs/a/best.pth", "runs/a/checkpoints/step-00000006.pth"):
        Path(later).unlink()
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "8"]) == 0
    ours, straight = (load_checkpoint(Path(f"runs/{name}/last.pth")).model for name in ("a", "straight"))
    assert all(torch.equal(ours[name], straight[name]) for name in straight)


@pytest.mark.parametrize("minutes", [["--minutes", "0.2"], ["--set", "train.minutes=0.2"]])
def test_minutes_end_a_run_whatever_steps_its_config_has(workshop, a_second_a_step, capfd, minutes) -> None:
    quick = ["--set", "train.validate_every=0", "--set", "train.save_every=0"]
    assert run(["pretrain", "decoder.yaml", "--name", "a", *minutes, *quick]) == 0
    assert step_of("runs/a") == 12
    assert "whichever is less" not in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "--name", "b", *minutes, "--steps", "5", *quick]) == 0
    assert step_of("runs/b") == 5
    assert "the run ends after 5 steps or 0.2 minutes, whichever is less\n" in capfd.readouterr().err


# -- what the command line names


def test_a_config_is_no_text(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "text/a.txt"]) == 2
    told = "decoder.yaml; name its files inside it, or by --set data.sources.0.path=text/a.txt"
    assert told in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "translator.yaml"]) == 2
    Path("decoder.yaml").rename("DECODER.YML")
    assert run(["pretrain", "DECODER.YML", "--steps", "1"]) == 0
    assert Path("runs/DECODER-1/last.pth").exists()
    Path("chats.json").write_text("[]")
    assert run(["pretrain", "chats.json"]) == 2
    assert "a .json file is not taken for a corpus; chats.json; records go into a .jsonl" in capfd.readouterr().err


def test_a_run_goes_on_by_the_command_that_began_it(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "p", "--steps", "2", *CONSTANT]) == 0
    chats = ["finetune", "chats.jsonl", "--base", "runs/p"]
    assert run([*chats, "--name", "f", "--steps", "2", *CONSTANT]) == 0
    capfd.readouterr()
    Path("chats.yaml").write_text(Path("decoder.yaml").read_text())
    assert run(["pretrain", "chats.yaml", "--steps", "2", *CONSTANT]) == 0
    assert run([*chats, "--steps", "1"]) == 0  # runs/chats-2
    assert run(["pretrain", "chats.yaml", "--resume", "--steps", "3", *CONSTANT]) == 0
    assert step_of("runs/chats-1") == 3
    shutil.rmtree("runs/chats-1")
    capfd.readouterr()
    for inputs in ([], ["decoder.yaml"]):
        assert run(["pretrain", *inputs, "--resume", "--name", "f"]) == 2
        told = "this is a finetune run; runs/f; go on with it by: txtgen finetune --resume --name f\n"
        assert told in capfd.readouterr().err
    assert run(["finetune", "--resume", "--name", "p"]) == 2
    assert "go on with it by: txtgen pretrain --resume --name p\n" in capfd.readouterr().err
    assert run(["pretrain", "--resume", "--steps", "3"]) == 0  # the newest of its own
    assert (step_of("runs/p"), step_of("runs/f")) == (3, 2)


def test_a_misspelt_run_is_told_and_leaves_no_folder(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "stories", "--steps", "1"]) == 0
    for inputs in ([], ["decoder.yaml"]):
        assert run(["pretrain", *inputs, "--resume", "--name", "storys"]) == 5
        assert "no such run; runs/storys; did you mean stories?" in capfd.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["stories"]


def test_a_sound_copy_of_a_damaged_newest_checkpoint_is_taken(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", *CONSTANT]) == 0
    newest = Path("runs/a/checkpoints/step-00000006.pth")
    newest.unlink()
    newest.write_bytes(b"damaged")
    assert run(["pretrain", "--resume", "--name", "a"]) == 0
    assert "nothing to do in runs/a: 6 of 6 steps are done" in capfd.readouterr().err
    assert load_checkpoint(newest, training=True).training["step"] == 6


def test_an_old_copy_as_last_pth_is_not_preferred_to_a_newer_checkpoint(workshop) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", *CONSTANT]) == 0
    Path("runs/a/last.pth").unlink()
    shutil.copy("runs/a/checkpoints/step-00000002.pth", "runs/a/last.pth")
    Path("runs/a/checkpoints/step-00000006.pth").write_bytes(b"damaged")
    assert RunFolder(Path("runs/a")).newest()[0].name == "step-00000004.pth"


def test_the_newest_run_of_a_restart_is_the_one_that_was_newest_at_first(workshop, monkeypatch) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "1"]) == 0
    asked = []
    monkeypatch.setattr(launching, "run_ranks", lambda command, *_: asked.append(command) or 0)
    assert run(["pretrain", "--resume", "--max-restarts", "1"]) == 0
    (command,) = asked
    assert command[command.index("--name") + 1] == "a"
    assert "--resume" in command


def test_last_pth_alone_is_gone_on_from(workshop) -> None:
    """As in a folder whose checkpoints/ was not copied."""
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "2", *CONSTANT]) == 0
    for path in Path("runs/a/checkpoints").iterdir():
        path.unlink()
    Path("runs/a/checkpoints").rmdir()
    assert run(["pretrain", "--resume", "--name", "a", "--steps", "4"]) == 0
    assert step_of("runs/a") == 4
    kept = sorted(path.name for path in Path("runs/a/checkpoints").iterdir())
    assert kept == ["step-00000002.pth", "step-00000004.pth"]


def test_a_cooldown_is_advised_only_what_it_can_be_told(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "long", *CONSTANT]) == 0
    cooldown = ["cooldown", "--from", "runs/long", "--steps", "2", "--name", "end"]
    assert run(cooldown) == 0
    assert run(cooldown) == 9
    told = "go on with it (txtgen pretrain --resume --name end), move it aside with --overwrite, or choose another"
    assert told in capfd.readouterr().err
    with open("text/a.txt", "a", encoding="utf-8") as file:
        file.write("one more line.\n")
    assert run([*cooldown, "--overwrite"]) == 4
    assert "--accept-changes" in capfd.readouterr().err
    assert run([*cooldown, "--accept-changes", "--overwrite"]) == 0
    assert (step_of("runs/end"), step_of("runs/end.old-1")) == (8, 8)


def test_a_run_is_named_by_name_and_told_where_there_is_nothing_to_do(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", "--steps", "1"]) == 0
    capfd.readouterr()
    for path in ("a", "runs/a"):
        assert run(["pretrain", "--resume", path]) == 2
        told = f"a run is named by --name; {path}; type: txtgen pretrain --resume --name a\n"
        assert told in capfd.readouterr().err
    assert run(["pretrain", "--resume", "--name", "runs/a"]) == 5
    assert "did you mean a?" in capfd.readouterr().err
    assert run(["pretrain", "--resume"]) == 0
    assert "nothing to do in runs/a: 1 of 1 steps are done" in capfd.readouterr().err


def test_a_resume_with_nothing_to_do_leaves_the_config(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a", *CONSTANT]) == 0
    before = Path("runs/a/config.yaml").read_text()
    assert run(["pretrain", "--resume", "--name", "a", "--minutes", "0.0000001"]) == 0
    assert "nothing to do in runs/a: the time of the run is over" in capfd.readouterr().err
    assert Path("runs/a/config.yaml").read_text() == before


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_by_itself(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    for path in (*Path("runs/a/checkpoints").iterdir(), Path("runs/a/last.pth"), Path("runs/a/best.pth")):
        path.unlink()
    before = Path("runs/a/metrics.jsonl").read_text()
    assert run(["pretrain", "--resume", "--name", "a"]) == 5
    anew = "txtgen pretrain runs/a/config.yaml --name a --overwrite"
    told = f"runs/a/checkpoints/step-00000006.pth is gone: put it back, or begin anew: {anew}\n"
    assert told in capfd.readouterr().err
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 9
    assert "runs/a; move it aside with --overwrite, or choose another --name" in capfd.readouterr().err
    assert Path("runs/a/metrics.jsonl").read_text() == before
    shutil.copytree("runs/a", "runs/copied")
    assert run(["pretrain", "--resume", "--name", "copied"]) == 5
    assert "runs/copied/checkpoints/step-00000006.pth is gone" in capfd.readouterr().err
    assert run(anew.split()[1:]) == 0
    assert Path("runs/a.old-1/metrics.jsonl").read_text() == before


@pytest.mark.parametrize("background", ["true", "false"])
def test_status_knows_the_last_checkpoint_however_it_was_saved(workshop, monkeypatch, background) -> None:
    told, original = [], session.Session.log

    def log(self, report) -> None:
        original(self, report)
        told.append(json.loads(Path("runs/a/status.json").read_text()).get("last_checkpoint"))

    monkeypatch.setattr(session.Session, "log", log)
    saving = ["--set", f"train.save_in_background={background}"]
    assert run(["pretrain", "decoder.yaml", "--name", "a", *saving]) == 0
    assert told[:2] == [None, None]
    assert "None" not in told
    if background == "false":
        assert [Path(path).name for path in told[2:]] == [f"step-{step:08d}.pth" for step in (2, 2, 4, 4)]
    assert run(["pretrain", "--resume", "--name", "a", "--set", "data.sources.0.path=gone"]) == 4
    assert json.loads(Path("runs/a/status.json").read_text())["last_checkpoint"].endswith("step-00000006.pth")


def test_a_cooldown_that_was_killed_after_its_first_checkpoint_is_resumed(workshop, monkeypatch) -> None:
    assert run(["pretrain", "decoder.yaml", "--name", "long", *CONSTANT]) == 0

    def killed(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "settle_in", killed)
        assert run(["cooldown", "--from", "runs/long", "--name", "end", "--steps", "2"]) == 130
    assert not Path("runs/end/config.yaml").exists()
    assert run(["pretrain", "--resume", "--name", "end"]) == 0
    assert step_of("runs/end") == 8
    assert load_checkpoint(Path("runs/end/last.pth")).config.run["train"]["schedule"]["cooldown_steps"] == 2


def test_a_text_folder_with_a_config_in_it_is_no_run(workshop) -> None:
    Path("text/config.yaml").write_text("a: 1\n")
    assert run(["pretrain", "text", "--steps", "1", *CONSTANT]) == 0
    assert run(["pretrain", "text", "--resume", "--steps", "2", *CONSTANT]) == 0
    assert step_of("runs/text-1") == 2


def test_a_resumed_run_keeps_its_base_which_may_move(workshop, trained, capfd) -> None:
    shutil.copytree(trained / "runs/decoder", "runs/base")
    assert run(["pretrain", "decoder.yaml", "--name", "other", "--set", "seed=1"]) == 0
    assert run(["finetune", "chats.jsonl", "--base", "runs/base", "--name", "f", "--steps", "2", *CONSTANT]) == 0
    again = ["finetune", "--resume", "--name", "f", "--steps", "3", "--base"]
    assert run([*again, "runs/other"]) == 3
    told = "a resumed run cannot change base: 'runs/base' -> 'runs/other', which is another model; runs/f"
    assert told in capfd.readouterr().err
    assert run([*again, "runs/none"]) == 5
    Path("runs/base").rename("moved")
    assert run([*again, "moved"]) == 0
    assert step_of("runs/f") == 3


def test_json_is_of_a_dry_run(workshop, capfd) -> None:
    assert run(["pretrain", "decoder.yaml", "--json"]) == 2
    assert "add --dry-run, or leave it out" in capfd.readouterr().err
    assert not Path("runs").exists()
