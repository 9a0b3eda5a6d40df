"""A build that is stopped goes on where it stopped, and gives the same bytes as one that was not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minilm.errors import MinilmError
from minilm.text import encode, resume, shard_writer
from minilm.text.prepare import prepare
from minilm.text.resume import Progress
from minilm.text.shards import open_shards
from minilm.text.tokenizer import Tokenizer

SMALL = {"BATCH_CHARS": 3000, "PIECE_CHARS": 400, "BATCH_DOCUMENTS": 8}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = random.Random(3)
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "it",
        "rains",
        "in",
        "Spain",
        "and",
        "nobody",
        "minds",
    ]
    path = tmp_path / "corpus.jsonl"
    with path.open("w") as file:
        for i in range(400):
            n = 3000 if i == 170 else rng.randrange(1, 40)  # one comes in pieces
            file.write(json.dumps({"text": f"{i} " + " ".join(rng.choices(words, k=n))}) + "\n")
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(encode, name, value)
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 3000)
    monkeypatch.setattr(shard_writer.ShardWriter.__init__, "__kwdefaults__", {"shard_tokens": 3000})
    monkeypatch.setattr(resume, "EVERY_SECONDS", 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "meta.json"}


def left(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f".{folder.name}.*"))


@pytest.mark.parametrize(
    "settings", [{"tokenizer": "bytes"}, {"tokenizer": "words", "clean": "duplicates,min_tokens:9"}]
)
def test_stopped_anywhere_and_again(
    corpus: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(corpus, out=tmp_path / "whole", **settings)
    assert len(open_shards(whole).splits["train"].shards) > 3
    done, encode_flat = Progress.done, Tokenizer.encode_flat
    saved, encoded = [0], [0]

    def counted(self: Tokenizer, texts: list[str]) -> Any:
        encoded[0] += sum(map(len, texts))
        return encode_flat(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_flat", counted)
    again = prepare(corpus, out=tmp_path / "again", **settings)
    in_one_go, encoded[0] = encoded[0], 0
    assert contents(again) == contents(whole)
    out = tmp_path / "out"
    n_stops = 0
    for stop_after in (1, 2, 7, 1, 11, 5):

        def stopping(self: Progress, n: int, *rest: Any, after: int = stop_after) -> None:
            saved[0] += 1
            if saved[0] > after:
                raise KeyboardInterrupt  # with this batch in the writers and not in the state
            done(self, n, *rest)

        saved[0] = 0
        monkeypatch.setattr(Progress, "done", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, out=out, **settings)
        n_stops += 1
        assert not out.exists()
        assert len(left(out)) == 1
    monkeypatch.setattr(Progress, "done", done)
    prepare(corpus, out=out, **settings)
    assert contents(out) == contents(whole)
    assert open_shards(out).meta.splits == open_shards(whole).meta.splits
    assert left(out) == []
    assert in_one_go < encoded[0] <= in_one_go + n_stops * (SMALL["BATCH_CHARS"] + 20_000)


def test_killed_and_gone_on(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = prepare(corpus, tokenizer="bytes", out=tmp_path / "whole")
    program = (
        "import os, signal, sys\n"
        "from minilm.text import encode, prepare, resume, shard_writer\n"
        f"for name, value in {SMALL}.items(): setattr(encode, name, value)\n"
        "shard_writer.ShardWriter.__init__.__kwdefaults__['shard_tokens'] = 3000\n"
        "resume.EVERY_SECONDS, calls, done = 0, [], resume.Progress.done\n"
        "def killing(self, n, *rest):\n"
        "    calls.append(n)\n"
        "    if len(calls) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done(self, n, *rest)\n"
        "resume.Progress.done = killing\n"
        "prepare.prepare(sys.argv[1], tokenizer='bytes', out=sys.argv[2])\n"
    )
    out = tmp_path / "out"
    for expected in (-signal.SIGKILL, -signal.SIGKILL):
        assert subprocess.run([sys.executable, "-c", program, corpus, out], check=False).returncode == expected
    assert "going on after" in capfd.readouterr().err
    prepare(corpus, tokenizer="bytes", out=out)
    assert "going on after" in capfd.readouterr().err
    assert contents(out) == contents(whole)


def test_another_source_or_recipe_begins_anew(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Progress.done

    def full(self: Progress, n: int, *rest: Any) -> None:
        done(self, n, *rest)
        if self.n_documents > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stopped() -> None:
        monkeypatch.setattr(Progress, "done", full)
        with pytest.raises(MinilmError, match="no space is left"):
            prepare(corpus, tokenizer="bytes", out=tmp_path / "out")
        monkeypatch.setattr(Progress, "done", done)
        assert len(left(tmp_path / "out")) == 1

    stopped()
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join(lines[1:]))
    stopped()
    corpus.write_text("".join(lines))
    folder = prepare(corpus, tokenizer="chars", out=tmp_path / "out")
    assert "going on" not in capsys.readouterr().err
    assert left(folder) == []
    assert contents(folder) == contents(prepare(corpus, tokenizer="chars", out=tmp_path / "whole"))
    state = tmp_path / "damaged"
    state.mkdir()
    (state / resume.STATE).write_text('{"key": ')
    assert Progress(state, "x").n_documents == 0
