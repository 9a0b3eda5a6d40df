"""Several processes read what one reads: documents, notes, errors, shards, also after a stop."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from minilm.errors import MinilmError, UsageError
from minilm.text import jobs, reading, resume
from minilm.text.parallel import n_cores
from minilm.text.prepare import prepare
from minilm.text.reading import cut, read
from minilm.text.resume import Progress
from minilm.text.scripts import Document, known_datasets, load_dataset
from minilm.text.sources import Files

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it", "rains", "in", "Spain"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PART_BYTES": 4000, "FILE_BYTES": 100, "WORTH_BYTES": 1, "HELD_BYTES": 12_000}.items():
        monkeypatch.setattr(reading, name, value)


def prose(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=n_words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Own text in many files, some larger than a process hands over, in several forms and encodings."""
    rng = random.Random(5)
    text = tmp_path / "text"
    for i in range(40):
        path = text / f"{i // 10}" / f"{i:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, body = i % 8, f"{i} {prose(rng, rng.randrange(20, 400))}"
        rows = [json.dumps({"text": f"{i}.{j} {prose(rng, 30)}"}) + "\n" for j in range(200 if i == 14 else 9)]
        if kind < 3:
            path.with_suffix(".txt").write_text(body)
        elif kind == 3:
            path.with_suffix(".md").write_bytes(f"{body} café crème brûlée über naïve façade {body}".encode("cp1252"))
        elif kind == 4:
            path.with_suffix(".csv").write_text("n,text\n" + "".join(f'{j},"{prose(rng, 9)}\n{j}"\n' for j in range(9)))
        elif kind == 5:
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress("".join(rows).encode(), mtime=0))
        elif kind == 6:
            path.with_suffix(".jsonl").write_text("".join(rows))
        else:
            path.with_suffix(".pdf").write_bytes(b"%PDF")
    return text


def both(name: str, source: Path, split: str = "train", **options: Any) -> tuple[list[Document], Counter[str]]:
    """What one process reads, after three have read the same; and the notes."""
    dataset = load_dataset(name)
    given = dataset.check_options(options)
    found = []
    for workers in (1, 3):
        files = Files.at(source)
        found.append((list(read(dataset, files, split, given, workers)), files.notes))
    assert found[0] == found[1]
    plain = Files.at(source)
    assert list(dataset.documents(plain, split, **given)) == found[0][0]
    assert plain.notes == found[0][1]
    return found[0]


def test_own_text(folder: Path) -> None:
    parts = list(cut(Files.at(folder), False))
    assert [name for part in parts for name in part.files.found] == list(Files.at(folder).found)
    assert 5 < len(parts) < 40
    assert any(part.n_bytes > reading.HELD_BYTES for part in parts)
    documents, notes = both("textfiles", folder)
    assert len(documents) == 15 + 5 + 5 * 9 + 5 * 9 + 4 * 9 + 200
    assert notes == {"files skipped, ending in .pdf: turn them into .txt first": 5, "files read as cp1252": 5}


def test_row_groups(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = random.Random(7)
    for i, size in enumerate((7, 1, 500)):
        texts = [f"{i} {j} {prose(rng, 60)}" for j in range(200)]
        parquet.write_table(
            arrow.table({"text": texts, "title": texts}), tmp_path / f"{i}.parquet", row_group_size=size
        )
    groups = [part.files.row_groups for part in cut(Files.at(tmp_path), True)]
    assert sum(group is not None for group in groups) > 20
    for name in ("fineweb", "wikipedia"):
        assert len(both(name, tmp_path)[0]) == 600
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-9])
    for workers in (1, 3):
        with pytest.raises(MinilmError, match=r"1\.parquet is damaged or cut short"):
            list(read(load_dataset("fineweb"), Files.at(tmp_path), "train", {}, workers))


def test_every_script_in_parts_on_its_archive(shared_data: Path) -> None:
    assert {name for name in known_datasets() if load_dataset(name).parts != "one"} >= {"imdb", "openwebtext", "pg19"}
    both("imdb", shared_data / "hf_dummy" / "imdb__plain_text.zip")
    both("imdb", shared_data / "imdb", unlabelled=True)
    both("textfiles", shared_data / "style_recipes")
    both("openwebtext", shared_data / "hf_dummy" / "openwebtext__plain_text.zip")


def test_an_error_is_the_same(folder: Path) -> None:
    (folder / "2" / "29.jsonl").write_text('{"text": "a"}\n{"text": \n')
    for workers in (1, 3):
        with pytest.raises(UsageError, match=r"2/29\.jsonl line 2 is not JSON"):
            list(read(load_dataset("textfiles"), Files.at(folder), "train", {}, workers))
    some = read(load_dataset("textfiles"), Files.at(folder), "train", {}, 3)
    assert len(list(islice(some, 5))) == 5
    some.close()  # type: ignore[attr-defined]


def test_shards_are_the_same_and_a_stop_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resume, "EVERY_SECONDS", 0)
    monkeypatch.setattr("minilm.text.encode.BATCH_CHARS", 5000)
    contents, told = [], []
    for workers in (1, 3):
        monkeypatch.setattr(jobs, "n_cores", lambda workers=workers: workers)
        made = prepare(folder, tokenizer="words", out=tmp_path / f"out{workers}")
        contents.append({path.name: path.read_bytes() for path in made.iterdir() if path.name != "meta.json"})
        told.append(capsys.readouterr().err.replace(f"out{workers}", "out"))
    done = Progress.done

    def stopping(self: Progress, n: int, *rest: Any) -> None:
        done(self, n, *rest)
        if self.n_documents > 150:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "done", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, tokenizer="words", out=tmp_path / "again")
    monkeypatch.setattr(Progress, "done", done)
    made = prepare(folder, tokenizer="words", out=tmp_path / "again")
    assert "going on after" in capsys.readouterr().err
    contents.append({path.name: path.read_bytes() for path in made.iterdir() if path.name != "meta.json"})
    assert contents[0] == contents[1] == contents[2]
    assert told[0] == told[1]
    assert "5 files skipped, ending in .pdf" in told[0]


def test_a_worker_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILM_IN_WORKER", "1")
    assert n_cores() == 1
