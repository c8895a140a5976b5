"""`txtgen tokenizer train | show`, without the printing."""

import gzip
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from txtgen.commands import tokenizer as command
from txtgen.config.tokenizer import SentencePieceConfig
from txtgen.errors import CheckpointError, DataError, ResourceError, UsageError
from txtgen.tokenizer import SentencePieceTokenizer, load_tokenizer, train_sentencepiece

TEXT = "The quick brown fox jumps over the lazy dog.\nréponse 漢字 \u2581\n" * 30
CONFIG = SentencePieceConfig(vocab_size=320)


def write(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_train_writes_what_training_on_the_text_gives(tmp_path: Path, name: str) -> None:
    out = tmp_path / "new" / "folder" / "tokenizer.model"
    result = command.train(CONFIG, [write(tmp_path / name, TEXT)], out)
    expected, sample = train_sentencepiece(CONFIG, [TEXT])
    assert out.read_bytes() == expected.files()["tokenizer.model"]
    assert (result.path, result.vocab_size, result.fingerprint) == (
        out,
        len(expected),
        expected.fingerprint(),
    )
    assert result.sample == sample
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer.model"]


def test_large_files_give_their_share(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", "a" * 3000), write(tmp_path / "b.txt", "b" * 1000)]
    config = SentencePieceConfig(algorithm="char", sample_bytes=400)
    result = command.train(config, files, tmp_path / "out.model")
    assert (result.sample.bytes_used, result.sample.complete) == (400, False)
    assert result.sample.num_characters == 2  # something of both
    whole = command.train(SentencePieceConfig(algorithm="char"), files, tmp_path / "out.model")
    assert (whole.sample.bytes_used, whole.sample.complete) == (4000, True)


def test_nothing_is_left_behind_or_overwritten_when_training_fails(tmp_path: Path) -> None:
    out = write(tmp_path / "out.model", "an older model")
    for files in ([tmp_path / "none.txt"], [write(tmp_path / "empty.txt", "")], [tmp_path]):
        with pytest.raises(DataError):
            command.train(CONFIG, files, out)
    assert out.read_text() == "an older model"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "out.model"]


def test_wrong_arguments(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", TEXT)
    with pytest.raises(UsageError, match="no text file"):
        command.train(CONFIG, [], tmp_path / "out.model")
    with pytest.raises(UsageError, match="folder"):
        command.train(CONFIG, [text], tmp_path)
    with pytest.raises(UsageError, match="one of the text files"):
        command.train(CONFIG, [text], tmp_path / "." / "a.txt")
    with pytest.raises(ResourceError):
        command.train(CONFIG, [text], text / "out.model")
    assert text.read_text() == TEXT


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"abc\xffdef", "byte 3"),
        ("a.txt", "abc漢".encode()[:-1], "byte 3"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.txt.gz", b"not compressed", "gzip"),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-20], "is cut off"),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:10] + b"\xff" * 40, "is damaged"),
        ("a.txt.gz", gzip.compress("text".encode("utf-16"), mtime=0), "UTF-16"),
        ("a.txt.gz", gzip.compress(b"\xef\xbb\xbfabc\xffdef", mtime=0), "byte 6"),
        ("a.txt", gzip.compress(TEXT.encode(), mtime=0), "is gzip, but is not named so"),
        ("a.txt", b"PK\x03\x04 in a zip archive", "zip archive"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        command.train(CONFIG, [path], tmp_path / "out.model")
    assert str(path) in str(caught.value)


@given(text=st.text(), chunk=st.integers(1, 9), compressed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_file_is_read_whole_however_it_is_cut(
    text: str, chunk: int, compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = text.removeprefix("\ufeff")
    path = write(tmp_path_factory.mktemp("text") / ("a.gz" if compressed else "a.txt"), "\ufeff" + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_CHUNK_BYTES", chunk)
        assert "".join(command._read_text(path)) == text


def test_show_counts_what_it_says(tmp_path: Path) -> None:
    tokenizer, _ = train_sentencepiece(CONFIG, [TEXT.replace("漢字", "")])
    (tmp_path / "t.model").write_bytes(tokenizer.files()["tokenizer.model"])
    files = [write(tmp_path / "a.txt", TEXT), write(tmp_path / "empty.txt", "")]
    summary = command.show(tmp_path / "t.model", text="fox 漢", files=files)
    assert summary == command.show(tokenizer, text="fox 漢", files=files)
    assert summary.lossless
    assert summary.losses == ()
    assert (summary.kind, summary.vocab_size, summary.num_byte_pieces) == (
        "sentencepiece",
        len(tokenizer),
        256,
    )
    assert b"".join("fox 漢".encode()[token.start : token.end] for token in summary.tokens) == "fox 漢".encode()
    assert [token.id for token in summary.tokens] == tokenizer.encode("fox 漢")
    assert [token.piece for token in summary.tokens][-3:] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    report, empty = summary.files
    ids = tokenizer.encode(TEXT)
    assert report.num_bytes == len(TEXT.encode())
    assert report.bytes_per_token == len(TEXT.encode()) / len(ids)
    assert report.num_byte_pieces == 30 * (3 * 3)  # two Chinese characters and U+2581 in each repetition
    assert report.byte_fallback_rate == 270 / len(ids)
    assert (report.num_unknown, empty.num_tokens, empty.bytes_per_token) == (0, 0, 0.0)


def test_show_says_what_a_lossy_tokenizer_loses(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    summary = command.show(tmp_path / "lossy.model", files=[write(tmp_path / "b.txt", "fox \U0001f9ff\n")])
    assert not summary.lossless
    for word in ("several spaces", "line ends", "compatibility", "rare characters", "U+2581"):
        assert any(word in loss for loss in summary.losses)
    assert summary.files[0].num_unknown == 1
    assert summary.files[0].unknown_rate > 0
    folding, _ = train_sentencepiece(SentencePieceConfig(vocab_size=320, normalization="nfkc"), [TEXT])
    losses = command.show(folding).losses
    assert losses
    assert not any("space" in loss and "U+2581" not in loss for loss in losses)


def test_show_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        command.show(write(tmp_path / "a.txt", TEXT))
    tokenizer, _ = train_sentencepiece(CONFIG, [TEXT])
    with pytest.raises(DataError, match="surrogate"):
        command.show(tokenizer, text="\ud800")


def test_what_train_wrote_can_be_loaded(tmp_path: Path) -> None:
    command.train(CONFIG, [write(tmp_path / "a.txt", TEXT)], tmp_path / "t.model")
    tokenizer = load_tokenizer(tmp_path / "t.model")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
