"""`minilm eval --text`: the table, what each part of it needs, and every mistake in one sentence."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import prepared, sums

from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.errors import UsageError
from minilm.eval_text import read_samples
from minilm.evaluation.generated import Sample, quality
from minilm.evaluation.intervals import Estimate, bootstrap, jackknife, wilson
from minilm.evaluation.likeness import document_nats
from minilm.evaluation.ngram import words
from minilm.evaluation.repetition import distinct_n, seq_rep_n
from minilm.model.gpt import GPT
from minilm.text.prepare import prepare
from minilm.text.shards import open_shards
from minilm.text.tales import stories
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


@pytest.fixture
def judge(tmp_path: Path) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=257, init_std=0.2)).eval()
    model.save_pretrained(tmp_path / "judge", BYTES)
    return model


def written(path: Path, samples: list[Sample]) -> Path:
    lines = [json.dumps({k: v for k, v in sample._asdict().items() if v not in ("", None)}) for sample in samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_table(judge: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ("sacrebleu", "sklearn", "mauve"):
        pytest.importorskip(extra)
    folder = prepared(tmp_path / "sums")
    copy = sums(10, 1)[0]
    told = [Sample(text, "a", i % 4 > 0) for i, text in enumerate([copy, *(sums(200 + i, 1)[0] for i in range(11))])]
    real = [Sample(text, label) for i in range(12) for text, label in ((sums(300 + i, 1)[0], "a"), ("so " * 60, "b"))]
    texts, reference = written(tmp_path / "told.jsonl", told), written(tmp_path / "real.jsonl", real)
    arguments = [str(tmp_path / "judge"), "--text", str(texts), "--reference", str(reference), "--data", str(folder)]
    assert run_door("eval", [*arguments, "--json", "--device=cpu"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ended by end-of-text"]["generated"] == [9 / 12, *wilson(9, 12)]
    assert rows["label obeyed"]["generated"] == [1.0, *wilson(12, 12)]
    assert "classifier right on 100.0 % of real texts, 2 labels" in rows["label obeyed"]["note"]
    assert rows["length in words"]["generated"][0] == pytest.approx(np.mean([len(words(s.text)) for s in told]))
    assert rows["seq-rep-4"]["real"][0] == pytest.approx(np.mean([seq_rep_n(words(s.text), 4) for s in real[:12]]))
    shares = rows["its share of the text"]
    assert 1 / 12 < shares["generated"][0] < 1
    nats, tokens = document_nats(judge, BYTES, [sample.text for sample in told])
    assert rows["perplexity under the judge"]["generated"][0] == pytest.approx(math.exp(nats.sum() / tokens.sum()))
    real_nats, real_tokens = document_nats(judge, BYTES, [sample.text for sample in real])
    gap = nats.sum() / tokens.sum() - real_nats.sum() / real_tokens.sum()
    assert rows["gap, nats per token"]["generated"][0] == pytest.approx(gap)
    assert 0 < rows["MAUVE"]["generated"][0] <= 1
    assert "12 texts of each, cut to 64 tokens of the judge" in rows["MAUVE"]["note"]
    for row in rows.values():
        value, low, high = row["generated"]
        assert low is None or low <= value <= high, row
    assert run_door("eval", [*arguments, "--device=cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["95", "%", "intervals", "12", "generated", "texts", "12", "real", "ones"]
    assert [line[:28].strip() for line in shown[1:]] == list(rows)


def test_tales_are_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = list(stories(n=6, level=1, split="fresh"))
    told = [Sample(real[0]), Sample("Tom had a boat. Tom gave Tom."), Sample("No tale."), Sample(real[1])]
    texts = written(tmp_path / "told.jsonl", told)
    reference = written(tmp_path / "real.jsonl", [Sample(text) for text in real])
    assert run_door("eval", ["--text", str(texts), "--reference", str(reference), "--level=1", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["coherent tales"]["generated"] == [0.5, *wilson(2, 4)]
    assert rows["coherent tales"]["real"][0] == 1.0
    assert run_door("eval", ["--text", str(texts), "--json"]) == 0
    assert "coherent tales" not in capsys.readouterr().out


def test_texts_alone(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    names = [row.name for row in quality([Sample(text) for text in sums(10, 3)])]
    assert names == [
        "length in words", "seq-rep-1", "seq-rep-2", "seq-rep-3", "seq-rep-4", "rep-r",
        "distinct-1", "distinct-2", "distinct-3", "Zipf coefficient", "self-BLEU",
    ]  # fmt: skip
    rows = {row.name: row for row in quality([Sample("a a a a a a"), Sample("a a a a a a")])}
    assert rows["seq-rep-1"].generated == (5 / 6, 5 / 6, 5 / 6)
    assert rows["distinct-1"].generated.value == 1 / 12
    assert rows["self-BLEU"].generated.value == pytest.approx(100)


def test_a_copy_is_found_and_new_text_is_new(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    shards = open_shards(prepared(tmp_path / "sums"))
    told = [Sample(sums(12, 1)[0]), Sample("Zürich ~ {x} ~ |y|")]
    rows = {r.name: r for r in quality(told, train=shards.splits["train"], train_tokenizer=BYTES)}
    assert rows["its share of the text"].generated.high == 1.0
    assert rows["new 4-grams"].generated.low == 0.0
    assert rows["new 4-grams"].generated.high == 1.0
    n = [len(BYTES.encode(sample.text)) - 3 for sample in told]
    assert rows["new 4-grams"].generated.value == pytest.approx(n[1] / sum(n))


def test_samples_are_read_from_anywhere(tmp_path: Path) -> None:
    told = list(stories(n=3, style="fable"))
    bare = [text.removeprefix("fable: ") for text in told]
    (tmp_path / "told.txt").write_text("\n".join(told))
    assert read_samples(str(tmp_path / "told.txt")) == [Sample(text, "fable") for text in bare]
    path = written(tmp_path / "told.jsonl", [Sample(told[0], "fable", True), Sample(bare[1], "fable"), Sample(bare[2])])
    assert read_samples(str(path)) == [Sample(bare[0], "fable", True), Sample(bare[1], "fable"), Sample(bare[2])]
    folder = prepared(tmp_path / "sums")
    assert read_samples(str(folder)) == [Sample(text) for text in sums(100, 12)]
    assert read_samples(str(folder), "train") == [Sample(text) for text in sums(10, 30)]


def test_what_cannot_be_had_is_left_out(judge: GPT, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The rest of the table stays; what is asked for by name is an error."""
    told, real = [Sample("x" * 40, "z"), Sample("y" * 30), Sample("z")], [Sample("u v w" * 9, "a")] * 3
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    rows = quality(told, real, judge=judge, tokenizer=BYTES, mauve_tokens=35)
    assert {"rep-r", "gap, nats per token"} <= {row.name for row in rows}
    assert not {"self-BLEU", "MAUVE", "label obeyed"} & {row.name for row in rows}
    said = capsys.readouterr().err
    assert [said.count(f"without {name}: ") for name in ("self-BLEU", "MAUVE", "label obeyed")] == [1, 1, 1]
    with pytest.raises(UsageError, match=r"MAUVE needs|package mauve"):
        quality(told, real, judge=judge, tokenizer=BYTES, mauve_tokens=35, only=["mauve"])
    pytest.importorskip("mauve")
    value, low, high = quality(told[:2], real[:2], judge=judge, tokenizer=BYTES, only=["mauve"])[0].generated
    assert 0 < value <= 1
    assert math.isnan(low)
    assert math.isnan(high)  # of two texts none can be left out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no text: write one object with a text on every line"),
        ("[1]", 'line 1 is no object with a "text"'),
        ('{"texts": "a"}', 'line 1 is no object with a "text"'),
        ('{"text": 5}', "line 1: text and label are strings"),
        ('{"text": "a", "ended": "yes"}', "line 1: text and label are strings, ended is true or false"),
        ("\xff", "cannot be read"),
        ("[" * 100_000, 'line 1 is no object with a "text"'),
        ('{"text": ""}', "holds no text: write one object with a text on every line"),
    ],
)
def test_mistakes(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "told.jsonl"
    path.write_bytes(line.encode("latin-1"))
    real = written(tmp_path / "real.jsonl", [Sample("x y z", "a"), Sample("u v w", "b")])
    assert run_door("eval", ["--text", str(path), "--reference", str(real)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark=lambada", "--coherence"], "leave out --benchmark, --coherence"),
        (["--format=csv", "--picture=x.svg"], "leave out --format, --picture"),
        (["--form=rows"], "leave out --form"),
        (["--split=test"], "leave out --split"),
        (["--source=x"], "leave out --source"),
        (["--data=FOLDER"], "has no train split to look for copies in: name other data"),
        (["--out=nowhere/x.json"], "--out nowhere/x.json cannot be written (it is in a folder that does not exist)"),
        (["--level=5"], "tales have the levels 1, 2, 3, 4, not 5"),
        (["--level=1", "--reference=REAL"], "tales have the styles plain, fable"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sums"
    if words == ["--data=FOLDER"]:
        prepared(folder)
        meta = json.loads((folder / "meta.json").read_text())
        del meta["splits"]["train"]
        (folder / "meta.json").write_text(json.dumps(meta))
    real = written(tmp_path / "real.jsonl", [Sample("x y z", "haiku")])
    path = written(tmp_path / "told.jsonl", [Sample("x y z"), Sample("u v w")])
    words = [word.replace("FOLDER", str(folder)).replace("REAL", str(real)) for word in words]
    assert run_door("eval", ["--text", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_the_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "told.jsonl", [Sample("x y z"), Sample("u v w")])
    assert run_door("eval", ["--text", str(path), f"--out={tmp_path / 'table.json'}"]) == 0
    assert capsys.readouterr().out.startswith("95 % intervals")
    assert run_door("eval", ["--text", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "table.json").read_text())


def test_tales_are_graded_where_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By --level, or data that is tales: never for a file's name. A control code that was cut off counts."""
    told = [*stories(n=2, style="fable", split="fresh"), *stories(n=2, split="fresh")]
    path = tmp_path / "told.txt"
    path.write_text("\n\n".join(text.replace(". ", ".\n") for text in told))

    def coherent(*words: str) -> list[float] | None:
        assert run_door("eval", ["--text", str(path), "--json", *words]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        return rows["coherent tales"]["generated"] if "coherent tales" in rows else None

    fairy = written(tmp_path / "fairytales.jsonl", [Sample("x y z", "happy"), Sample("u v w", "sad")])
    assert coherent("--reference", str(fairy)) is None
    folder = prepare("tales", max_docs=50)
    for asked in (["--level=1"], ["--data", str(folder)], ["--reference", str(folder)]):
        assert coherent(*asked) == [1.0, *wilson(4, 4)]
    path = written(tmp_path / "coded.jsonl", [Sample(text) for text in told])
    assert coherent("--level=1") == [1.0, *wilson(4, 4)]
    odd = written(tmp_path / "odd.jsonl", [Sample("x y z", "happy")])
    assert run_door("eval", ["--text", str(odd), "--data", str(folder)]) == 0
    assert "without coherent tales: tales have the styles" in capsys.readouterr().err


def test_every_character_of_a_text_stays(tmp_path: Path) -> None:
    """Unicode's own line ends are no ends of lines; blanks and indents are text."""
    path = tmp_path / "told.jsonl"
    texts = ["a\u2028b\x85c", "d  e\n\n f "]
    path.write_text("\ufeff" + "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")
    assert [one.text for one in read_samples(str(path))] == texts
    plain = tmp_path / "told.txt"
    for written_, read in (
        ("a  b\tc\n d\u2028e \n", ["a  b\tc", "d\u2028e"]),
        ("if x:\r\n    y  = 1\r\n\r\nz\r\n", ["if x:\n    y  = 1", "z"]),
        ("a\n\n  b<|endoftext|>\nc", ["a\n\n  b", "c"]),
    ):
        plain.write_bytes(written_.encode())
        assert [one.text for one in read_samples(str(plain))] == read


def test_texts_without_a_label_are_left_out_of_obedience() -> None:
    pytest.importorskip("sklearn")
    real = [Sample(f"{word} " * 9, label) for label, word in (("a", "ah"), ("b", "bee")) for _ in range(6)]
    told = [Sample("ah ah", "a"), Sample("bee bee", "b"), Sample("who")]
    (row,) = quality(told, [*real, Sample("x"), Sample("y")], only=["obeyed"])
    assert row.generated.value == 1.0
    assert "2 labels; left out: 1 generated and 2 real texts without a label" in row.note


def test_intervals_lie_where_the_measure_can(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [["a"] * 9, ["b"], ["c"], ["d"]]
    free, cut = (jackknife(lambda kept: distinct_n(kept, 1), texts, share=share) for share in (False, True))
    assert (free.low < 0.0 or free.high > 1.0, cut.value) == (True, free.value)
    assert 0.0 <= cut.low <= cut.value <= cut.high <= 1.0
    rows = {row.name: row for row in quality([Sample(" ".join(text)) for text in texts])}
    assert rows["distinct-1"].generated == cut
    for one in (bootstrap([4.0]), bootstrap([8.0], [2.0])):
        assert math.isnan(one.low)
        assert math.isnan(one.high)
        assert str(one) == "4"
    assert str(Estimate(4.0, 3.0, 5.0)) == "4 [3, 5]"
