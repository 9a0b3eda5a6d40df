"""`minilm data` and the console command around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import prepared

from minilm import cli
from minilm.cli import run_door
from minilm.text.tokenizer import get_tokenizer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("the cat sat on the mat. the cat sat on the hat. " * 40, encoding="utf-8")
    return path


def test_a_trained_bpe_is_used_for_preparing(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tk"
    assert run_door("data", ["train-tokenizer", str(text), "--vocab-size", "265", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: bpe of 265 tokens, fingerprint ")
    tokenizer = get_tokenizer(out)
    assert tokenizer.vocab_size == 265
    sentence = "the cat sat on the mat."
    assert len(tokenizer.encode(sentence)) < len(sentence)
    assert run_door("data", ["prepare", str(text), "--tokenizer", str(out)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert run_door("data", ["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert tokenizer.decode(tokenizer.encode("the cat sat")) in shown
    assert f"made by: minilm data prepare textfiles --tokenizer {out}" in shown
    assert run_door("data", ["list"]) == 0
    listed = capsys.readouterr().out
    assert folder.name in listed
    assert "tinyshakespeare" in listed


@pytest.mark.parametrize("kind", ["words", "chars"])
def test_other_kinds(kind: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door("data", ["train-tokenizer", str(text), "--kind", kind, "--out", str(tmp_path / "tk")]) == 0
    tokenizer = get_tokenizer(tmp_path / "tk")
    assert (tokenizer.name, tokenizer.decode(tokenizer.encode("the hat sat."))) == (kind, "the hat sat.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepar"], "minilm data has no 'prepar' (did you mean prepare?)"),
        (["prepare"], "name what to prepare: tales, textfiles"),
        (["prepare", "tale"], "(did you mean tales?)"),
        (["prepare", "tales", "--megabyte", "3"], "no option '--megabyte' (did you mean --megabytes?)"),
        (["show"], "name one prepared folder"),
        (["show", "nowhere"], "nowhere is not prepared: make it with `minilm data prepare nowhere`"),
        (["train-tokenizer"], "the following arguments are required: path"),
        (["train-tokenizer", "nowhere", "--vocab_size", "300"], "nowhere does not exist"),
        (["train-tokenizer", "TEXT"], "a bpe needs its size: add --vocab_size"),
        (["train-tokenizer", "TEXT", "--vocab_size", "100"], "vocab_size must be 257 or more"),
        (["train-tokenizer", "TEXT", "--kind", "byte"], "invalid choice: 'byte'"),
    ],
)
def test_misuse(words: list[str], message: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door("data", [str(text) if word == "TEXT" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door("data", []) == 2
    assert "minilm data train-tokenizer" in capsys.readouterr().out


def test_console_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared(tmp_path / "sums")
    for words, code, message in (
        (["data", "show", str(folder)], 0, "10 and 3 make 13."),
        (["--help"], 0, "data    prepare data sets"),
        ([], 2, "usage: minilm COMMAND"),
        (["trian"], 2, "no command 'trian' (did you mean train?)"),
        (["data", "show", "nowhere"], 2, "error: nowhere is not prepared"),
    ):
        monkeypatch.setattr("sys.argv", ["minilm", *words])
        assert cli.main() == code
        printed = capsys.readouterr()
        assert message in printed.out + printed.err
