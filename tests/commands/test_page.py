"""report.html holds what the run folder holds, in one page that can do nothing but show it."""

import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest

from txtgen.cli import run
from txtgen.commands.running import journal, session
from txtgen.commands.running.run_folder import RunFolder
from txtgen.commands.showing.curves import MAX_POINTS, Series, decimate, draw, labels, linear_ticks, log_ticks
from txtgen.commands.showing.formatting import written
from txtgen.commands.showing.page import render, write_page
from txtgen.errors import DataError, ResourceError

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onclick='x' {{ 7*7 }} \x1b[31m\u202e\x00 <!--"
)


class Page(HTMLParser):
    """The elements of a page with their attributes, its texts, and what stands in script and style elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.raw.get(self.cdata_elem or "", self.texts).append(data)

    def points(self) -> dict[str, list]:
        figures = [attributes for tag, attributes in self.elements if tag == "figure"]
        titles = [attributes["aria-label"] for tag, attributes in self.elements if tag == "svg"]
        return {
            title.removesuffix(" over steps"): json.loads(figure["data-points"])
            for title, figure in zip(titles, figures, strict=True)
        }


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.path.mkdir(parents=True)
    folder.config.write_text("train: {steps: 10}\n")
    return folder


def test_a_run_leaves_a_page_of_itself(trained) -> None:
    page = Page((trained / "runs/translator/report.html").read_text(encoding="utf-8"))
    assert "finished" in page.texts
    curves = page.points()
    assert {"Loss (nats)", "Validation, BLEU", "Learning rate", "Tokens per second", "Peak memory"} <= set(curves)
    training, validation = curves["Loss (nats)"]
    lines = [json.loads(line) for line in (trained / "runs/translator/metrics.jsonl").read_text().splitlines()]
    assert [value for *_, value in training] == [written(line["loss"], "plain") for line in lines if "loss" in line]
    assert [step for _, _, step, _ in validation] == ["2", "4"]
    assert any("estimated" in text or "tokens, about" in text for text in page.texts)
    assert any("max_source_length" in text for text in page.texts)  # the config


def test_the_report_command_writes_it_anew(trained, capfd) -> None:
    path = trained / "runs" / "decoder" / "report.html"
    path.unlink()
    assert run(["runs", "report", "decoder", "--runs-path", str(trained / "runs")]) == 0
    assert capfd.readouterr().out == f"{path}\n"
    assert "the cat" in Page(path.read_text(encoding="utf-8")).texts


def test_the_page_loads_nothing_and_runs_only_its_own_script(trained) -> None:
    page = Page((trained / "runs/decoder/report.html").read_text(encoding="utf-8"))
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind in ("script", "style"):
        digest = base64.b64encode(sha256("".join(page.raw[kind]).encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        assert not {"src", "href", "style", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]


def test_hostile_text_stays_text(folder) -> None:
    folder.append(folder.samples, {"step": 1, "prompt": HOSTILE, "text": HOSTILE + "猫👩‍👧 \ud800"})
    folder.append(folder.metrics, {"step": 1, "loss": HOSTILE, "val_loss": 2.0})
    facts = {"name": HOSTILE, "files": HOSTILE}
    reading = {"records": 7, "bad_records": 1, "bad_examples": [HOSTILE], "oddities": {HOSTILE: {"count": 2}}}
    about = {"corpus": [facts], "starts": [{HOSTILE: HOSTILE}], "base": HOSTILE, "reading": reading}
    folder.write_note(folder.about, json.dumps(about))
    folder.status.write_text(json.dumps({"state": HOSTILE, "exit_code": 1, "reason": HOSTILE}))
    folder.config.write_text(f"# {HOSTILE.encode('ascii', 'ignore').decode()}\n")
    text = render(folder.path)
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", text)
    shown = "".join(page.texts)
    assert "\\x1b[31m\\u202e\\x00" in shown
    assert "猫👩‍👧 \\ud800" in shown
    assert "{{ 7*7 }}" in shown


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "loss": 3.0}],
        [{"step": 5, "val_loss": 1e30, "loss": 0, "grad_norm": 1e-30}],
        [{"step": step, "loss": float("nan"), "grad_norm": float("inf"), "mfu": None} for step in range(3)],
        [{"step": step, "loss": 2.0, "grad_norm": 10.0 ** (step - 40), "learning_rate": 0} for step in range(70)],
        [{"step": -step, "loss": -step} for step in range(9)],
        [{"step": 10**17 + step, "loss": 1 + step * 1e-15} for step in range(9)],
    ],
)
def test_any_numbers_can_be_drawn(folder, lines) -> None:
    for line in lines:
        folder.append(folder.metrics, line)
    text = write_page(folder.path).read_text(encoding="utf-8")
    assert "nan" not in re.sub("[a-z]*nan[a-z]+", "", text.lower().split("<body>")[1].split("<script>")[0])
    for title, drawn in Page(text).points().items():
        assert drawn, title


def test_a_long_run_is_decimated_and_keeps_its_extremes(folder) -> None:
    with open(folder.metrics, "w") as file:
        for step in range(1, 100_001):
            loss = 50.0 if step == 77_777 else 2.0 + (step % 2) * 0.5
            file.write(f'{{"step": {step}, "loss": {loss}, "grad_norm": 1.0}}\n')
    text = render(folder.path)
    assert len(text) < 150_000
    (training,) = Page(text).points()["Loss (nats)"]
    assert len(training) == MAX_POINTS
    assert (training[0][2], training[-1][2]) == ("1", "100,000")


def test_decimation_keeps_least_mean_and_greatest() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    steps, low, mean, high = decimate(np.arange(1000.0), values, 37)
    assert len(steps) == len(low) == len(mean) == len(high) == 37
    assert (low.min(), high.max()) == (values.min(), values.max())
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert (steps[0], steps[-1]) == (0, 999)
    same = decimate(np.arange(5.0), values[:5], 37)
    assert all((part == values[:5]).all() for part in same[1:])


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7.2), (1e-9, 3e-9), (2.1034, 2.1039), (0, 1.3e12), (1e5, 1e5 + 3)]
)
def test_ticks_are_few_inside_and_told_apart(low, high) -> None:
    ticks = linear_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in ticks)
    assert len(set(labels(ticks, "plain"))) == len(ticks)


def test_ticks_of_a_logarithmic_axis_are_powers() -> None:
    assert log_ticks(0.05, 2000) == pytest.approx([0.1, 1, 10, 100, 1000])
    assert len(log_ticks(1e-40, 1e40)) <= 7
    assert len(log_ticks(2, 8)) >= 2


def test_what_the_first_steps_reach_is_left_out_and_told() -> None:
    steps = np.arange(1.0, 101.0)
    curve = draw("loss", [Series("", steps, np.where(steps < 4, 11.0, 2.0 + 1 / steps))], clip_first=True)
    assert curve is not None
    assert curve.beyond == "up to 11 at first"
    assert max(float(label) for _, label in curve.y_ticks) < 3
    assert draw("none", [Series("", np.zeros(0), np.zeros(0))]) is None


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (0, "plain", "0"), (2.50000, "plain", "2.5"), (3e-4, "plain", "3e-4"), (12_345, "plain", "12.35k"),
        (1e30, "plain", "1e30"), (0.4567, "share", "45.7 %"),
        (1234, "count", "1,234"), (49_152_000_000, "large", "49.15G"),
        (660_791_296, "bytes", "660.8 MB"), (12, "bytes", "12 B"), (-1500.0, "plain", "-1500"),
    ],
)  # fmt: skip
def test_numbers_in_words(value, kind, words) -> None:
    assert written(value, kind) == words


@pytest.mark.parametrize("error", [ResourceError("the disk is full"), RuntimeError("a bug"), RecursionError()])
def test_a_page_that_fails_costs_one_warning_and_never_the_run(workshop, monkeypatch, error) -> None:
    def fail(path) -> None:
        raise error

    monkeypatch.setattr(journal, "write_page", fail)
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 0
    assert (workshop / "runs/a/log.txt").read_text().count("report.html could not be written") == 1


def test_a_failed_run_has_a_page_that_says_so(workshop, monkeypatch) -> None:
    def fail(self) -> None:
        raise DataError("the corpus is gone")

    monkeypatch.setattr(session.Session, "validate", fail)
    assert run(["pretrain", "decoder.yaml", "--name", "a"]) == 4
    page = Page((workshop / "runs/a/report.html").read_text(encoding="utf-8"))
    assert "failed" in page.texts
    assert any(text.startswith("the corpus is gone; the corpus, after step 3; ") for text in page.texts)
