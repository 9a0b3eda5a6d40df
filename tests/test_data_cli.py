"""`minilm data` and the console command around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_helpers import prepared

from minilm import cli
from minilm.cli import run_door
from minilm.text.look import document_lengths, overlap
from minilm.text.scripts import known_datasets, load_dataset
from minilm.text.shards import open_shards
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
        (["prepare"], "name what to prepare: ag_news, "),
        (["prepare", "tale"], "(did you mean tales?)"),
        (["prepare", "tales", "--megabyte", "3"], "no option '--megabyte' (did you mean --megabytes?)"),
        (["show"], "the following arguments are required: folder"),
        (["show", "nowhere"], "nowhere is not prepared: make it with `minilm data prepare nowhere`"),
        (["check", "nowhere"], "nowhere is not prepared"),
        (["overlap", "nowhere"], "the following arguments are required: probe"),
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


def test_show_check_and_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "books.jsonl"
    shared = "the quick brown fox jumps over the lazy dog and sleeps"
    other = "something else that nobody has said before in these lines"
    texts = [f"{i} {shared if i % 2 else other} {i}" for i in range(40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    assert run_door("data", ["prepare", str(path), "--tokenizer", "bytes"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert run_door("data", ["show", "books", "--documents", "2", "--chars", "20", "--split", "train"]) == 0
    shown = capsys.readouterr().out
    lengths = document_lengths(open_shards(folder).splits["train"])
    first = open_shards(folder).tokenizer().decode(open_shards(folder).splits["train"].document(0))
    assert f"<|endoftext|> document 0 of train, {len(first.encode())} tokens\n{first[:20]} [" in shown
    assert f"       32–63       {((lengths >= 32) & (lengths < 64)).sum():13,}" in shown
    assert f"longest {lengths.max()}" in shown
    assert run_door("data", ["check", "books"]) == 0
    assert "2 shards with" in capsys.readouterr().out
    assert run_door("data", ["show", "books", "--split", "tset"]) == 2
    assert "has no split 'tset': it has train, val" in capsys.readouterr().err
    assert run_door("data", ["overlap", str(folder), "books", "--n", "5", "--probe-split", "train"]) == 0
    assert capsys.readouterr().out.startswith("100.00% of ")
    shard = folder / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-3] + b"\x07\x00\x00")
    assert run_door("data", ["check", str(folder)]) == 2
    assert "has changed: rebuild it with `minilm data prepare" in capsys.readouterr().err


@given(st.lists(st.text("abc ", max_size=30), max_size=6), st.lists(st.text("abc ", max_size=30), max_size=6),
       st.integers(1, 4))  # fmt: skip
def test_overlap_counts_as_sets_of_words_do(corpus: list[str], probe: list[str], n: int) -> None:
    def grams(text: str) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    there = {gram for text in corpus for gram in grams(text)}
    found = [[gram in there for gram in grams(text)] for text in probe]
    result = overlap(corpus, probe, n)
    assert (result.ngrams, result.found) == (sum(map(len, found)), sum(map(sum, found)))
    assert (result.documents, result.touched) == (sum(map(bool, found)), sum(map(any, found)))
    assert result.mostly == sum(2 * sum(one) >= len(one) for one in found if one)


def test_overlap_is_of_words_not_of_letters() -> None:
    result = overlap(["He said: a b, C d e-f g!"], ["(a B c D e f g)", "nothing here", ""], 7)
    assert (result.found, result.documents) == (1, 1)
    assert result.examples == ("'a B c D e f g'",)


def test_readme_lists_every_data_set() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for name in known_datasets():
        dataset = load_dataset(name)
        assert f"| `{name}` | {dataset.size()} | {dataset.in_gpt2} | {dataset.licence} |" in readme, name
