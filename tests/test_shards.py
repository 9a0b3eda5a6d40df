"""The shard format: byte for byte, against other programs' loaders restated, by properties, and its faults."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import prepared

from minilm.errors import UsageError
from minilm.text import shard_format
from minilm.text.shard_format import Meta, read_meta, write_meta
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import Shard, Split, open_shards, open_tokens
from minilm.text.tokenizer import get_tokenizer


class Vocabulary(NamedTuple):
    vocab_size: int
    eot: int


SMALL, GPT2, WIDE = Vocabulary(10, 9), Vocabulary(50257, 50256), Vocabulary(70_000, 69_999)


def written(folder: Path, documents: list[list[int]], vocabulary: Vocabulary, shard_tokens: int = 1000) -> Split:
    writer = ShardWriter(folder, "train", tokenizer=vocabulary, shard_tokens=shard_tokens)
    writer.add_many(documents)
    meta = writer.close(n_bytes=0, n_words=0)
    return Split([Shard(folder / shard.file) for shard in meta.shards], vocabulary.vocab_size)


# --- the bytes, and other programs' loaders


def test_the_bytes(tmp_path: Path) -> None:
    written(tmp_path, [[1, 2], [], [3]], SMALL)
    body = struct.pack("<7H", 9, 1, 2, 9, 9, 3, 9)
    header = struct.pack("<6i", 20240520, 1, 7, 3, 10, 9).ljust(1024, b"\0")
    assert (tmp_path / "train_000000.bin").read_bytes() == header + body
    assert (tmp_path / "train_000000.bin.idx").read_bytes() == struct.pack("<3I", 0, 3, 4)
    assert {p.name for p in tmp_path.iterdir()} == {"train_000000.bin", "train_000000.bin.idx"}


def test_the_bytes_of_a_large_vocabulary(tmp_path: Path) -> None:
    written(tmp_path, [[65_536]], WIDE)
    raw = (tmp_path / "train_000000.bin").read_bytes()
    assert struct.unpack_from("<3i", raw) == (20240801, 7, 3)
    assert raw[1024:] == struct.pack("<3I", 69_999, 65_536, 69_999)
    edge = Vocabulary(65_536, 0)
    split = written(tmp_path, [[65_535]], edge)
    assert split.shards[0].dtype == np.dtype("<u2")
    assert split.document(0).tolist() == [65_535]


def llmc_batches(path: Path, B: int, T: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """llm.c's C loader: header of 256 ints, magic 20240520, version 1, size = 1024 + 2 n; step s reads B T + 1 tokens
    from byte 1024 + 2 s B T."""
    raw = path.read_bytes()
    magic, version, n_tokens = struct.unpack_from("<3i", raw)
    assert (magic, version) == (20240520, 1)
    assert len(raw) == 256 * 4 + n_tokens * 2
    batches = []
    for step in range((n_tokens * 2 - 2) // (B * T * 2)):
        buffer = np.frombuffer(raw, "<u2", B * T + 1, 1024 + step * B * T * 2).astype(np.int64)
        batches.append((buffer[:-1].reshape(B, T), buffer[1:].reshape(B, T)))
    return batches


def modded_nanogpt_tokens(path: Path) -> np.ndarray:
    """modded-nanogpt's loader: int32 header, magic 20240520, version 1, header[2] uint16 tokens behind it; documents
    begin with 50256."""
    header = np.fromfile(path, "<i4", 256)
    assert (header[0], header[1]) == (20240520, 1)
    with path.open("rb") as file:
        file.seek(1024)
        tokens = np.frombuffer(file.read(), "<u2")
    assert len(tokens) == header[2]
    return tokens


def test_other_loaders_read_the_same_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 50256, n).tolist() for n in rng.integers(1, 90, 40)]
    split = written(tmp_path, documents, GPT2, shard_tokens=10_000)
    path = tmp_path / "train_000000.bin"
    tokens = modded_nanogpt_tokens(path)
    assert np.array_equal(tokens, split.read(0, split.n_tokens))
    assert np.array_equal(np.flatnonzero(tokens == 50256)[:-1], split.shards[0].starts)
    B, T = 3, 16
    batches = llmc_batches(path, B, T)
    assert len(batches) == (split.n_tokens - 1) // (B * T)
    for step, (inputs, targets) in enumerate(batches):
        stream = split.read(step * B * T, B * T + 1)
        assert np.array_equal(inputs.ravel(), stream[:-1])
        assert np.array_equal(targets.ravel(), stream[1:])


def test_foreign_files_open(tmp_path: Path) -> None:
    ids = np.array([50256, 5, 6, 7, 50256, 8], "<u2")
    ids.tofile(tmp_path / "nano.bin")  # nanoGPT: no header
    fineweb = np.zeros(256, "<i4")
    fineweb[:3] = 20240520, 1, len(ids)
    (tmp_path / "fine.bin").write_bytes(fineweb.tobytes() + ids.tobytes())
    for name in ("nano.bin", "fine.bin"):
        split = open_tokens(tmp_path / name, GPT2)
        assert split.read(0, 99).tolist() == ids.tolist()
        assert [split.document(i).tolist() for i in range(split.n_documents)] == [[5, 6, 7], [8]]
    both = open_tokens(tmp_path, GPT2)
    assert both.read(4, 4).tolist() == [50256, 8, 50256, 5]
    with pytest.raises(UsageError, match="token 50256, outside the tokenizer's 10: name the one that made it"):
        open_tokens(tmp_path / "nano.bin", SMALL)
    (tmp_path / "odd.bin").write_bytes(b"abc")
    with pytest.raises(UsageError, match="odd number of bytes"):
        open_tokens(tmp_path / "odd.bin", GPT2)
    with pytest.raises(UsageError, match=r"holds no \.bin file"):
        open_tokens(tmp_path / "none", GPT2)


# --- properties


DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=25), min_size=1, max_size=12)


@settings(max_examples=150)
@given(DOCUMENTS, st.integers(3, 40), st.data())
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    split = written(folder, documents, SMALL, shard_tokens)
    assert all(shard.n_tokens <= shard_tokens for shard in split.shards)
    assert all(shard.read(shard.n_tokens - 1, 1)[0] == SMALL.eot for shard in split.shards)
    stream = np.concatenate([shard.read(0, shard.n_tokens) for shard in split.shards]).tolist()
    start = data.draw(st.integers(0, len(stream)))
    assert split.read(start, 17).tolist() == stream[start : start + 17]
    # A document longer than a shard goes on as a document of the next; all others come back as they were.
    back = [split.document(i).tolist() for i in range(split.n_documents)]
    assert [*chain(*back)] == [*chain(*documents)]
    if all(len(d) + 2 <= shard_tokens for d in documents):
        assert back == documents
        assert stream.count(SMALL.eot) == len(documents) + len(split.shards)
    without_index = [Shard(shard.path) for shard in split.shards]
    for shard, fresh in zip(split.shards, without_index, strict=True):
        shard.path.with_name(shard.path.name + ".idx").unlink()
        assert np.array_equal(shard.starts, fresh.starts)


@given(DOCUMENTS, st.integers(3, 40))
def test_ways_to_add_are_equal(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int
) -> None:
    tokens = []
    for way in range(3):
        writer = ShardWriter(
            tmp_path_factory.mktemp("shards"), "train", tokenizer=SMALL, shard_tokens=shard_tokens if way < 2 else 10**6
        )
        if way == 0:
            writer.add_many(documents)
        for document in documents if way else []:
            if way == 1:
                writer.add(np.array(document, np.uint16))
            else:
                writer.add_pieces([document[:3], np.array(document[3:], np.int64)])
        meta = writer.close(n_bytes=1, n_words=2)
        assert (meta.bytes, meta.words) == (1, 2)
        tokens.append([Shard(writer.folder / s.file).read(0, s.tokens).tolist() for s in meta.shards])
    assert tokens[0] == tokens[1]
    assert tokens[2] == [[*chain(*([SMALL.eot, *d] for d in documents)), SMALL.eot]]


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", tokenizer=SMALL)
    for ids in ([1, 10], [-1]):
        with pytest.raises(UsageError, match=r"token id (10|-1) lies outside the tokenizer's 10 tokens"):
            writer.add(ids)
    with pytest.raises(UsageError, match="shard_tokens must lie between"):
        ShardWriter(tmp_path, "train", tokenizer=SMALL, shard_tokens=2)


# --- prepared folders and their faults


def test_a_prepared_folder_opens(tmp_path: Path) -> None:
    shards = open_shards(prepared(tmp_path / "data"))
    assert (shards.meta.name, shards.meta.command, sorted(shards.splits)) == ("sums", "(a test)", ["train", "val"])
    tokenizer = shards.tokenizer()
    assert tokenizer.decode(shards.splits["train"].document(0)).startswith("10 and 3 make 13.")
    assert shards.splits["train"].n_documents == shards.meta.splits["train"].documents == 30
    shard = shards.meta.splits["val"].shards[0]
    assert hashlib.sha256((shards.folder / shard.file).read_bytes()).hexdigest() == shard.sha256
    shards.check()


def test_meta_survives_a_round_trip_and_later_keys(tmp_path: Path) -> None:
    meta = open_shards(prepared(tmp_path / "data")).meta
    write_meta(tmp_path, meta)
    raw = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(raw | {"invented later": 1}))
    assert read_meta(tmp_path) == meta


def damage_cases() -> list[tuple[str, str]]:
    return [
        ("cut one byte", "is truncated: its header promises 4220 tokens; rebuild it with `(a test)`"),
        ("add one byte", "is too long"),
        ("cut to half a header", "is truncated"),
        ("foreign magic", "its header is foreign"),
        ("remove", "cannot be read (No such file or directory): rebuild it with `(a test)`"),
        ("swap splits", "is not the file that meta.json tells of: rebuild with `(a test)`"),
        ("no meta", "is no prepared folder (it has no meta.json)"),
        ("meta cut", "is damaged"),
        ("meta of another format", "has format 99 and this minilm reads 1: rebuild it with `(a test)`"),
        ("meta without tokens", "is damaged"),
        ("meta with words for tokens", "is damaged"),
    ]


@pytest.mark.parametrize(("damage", "message"), damage_cases(), ids=[name for name, _ in damage_cases()])
def test_damage_is_told_in_one_sentence(tmp_path: Path, damage: str, message: str) -> None:
    folder = prepared(tmp_path / "data")
    path, meta = folder / "train_000000.bin", folder / "meta.json"
    raw, told = path.read_bytes(), json.loads(meta.read_text())
    if damage == "remove":
        path.unlink()
    elif damage == "swap splits":
        path.write_bytes((folder / "val_000000.bin").read_bytes())
    elif damage == "no meta":
        meta.unlink()
    elif damage == "meta cut":
        meta.write_text(meta.read_text()[:-20])
    elif damage == "meta of another format":
        meta.write_text(json.dumps(told | {"format": 99}))
    elif damage.startswith("meta with"):
        value = {} if damage.endswith("out tokens") else {"tokens": "many"}
        split = {k: v for k, v in told["splits"]["val"].items() if k != "tokens"} | value
        meta.write_text(json.dumps(told | {"splits": {"val": split}}))
    else:
        new = {"cut one byte": raw[:-1], "add one byte": raw + b"x", "cut to half a header": raw[:500]}
        path.write_bytes(new.get(damage, b"\1" + raw[1:]))
    with pytest.raises(UsageError) as caught:
        open_shards(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_tokens_and_a_foreign_tokenizer_are_found(tmp_path: Path) -> None:
    shards = open_shards(prepared(tmp_path / "data"))
    path = shards.folder / "train_000000.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
    with pytest.raises(UsageError, match=r"train_000000.bin has changed: rebuild it with `\(a test\)`"):
        shards.check()
    write_meta(shards.folder, Meta(**{**vars(shards.meta), "fingerprint": "0123456789abcdef"}))
    with pytest.raises(UsageError, match=r"0123456789abcdef"):
        open_shards(shards.folder).tokenizer()


def test_a_stale_index_is_found(tmp_path: Path) -> None:
    shards = open_shards(prepared(tmp_path / "data"))
    (shards.folder / "train_000000.bin.idx").write_bytes(bytes(8))
    with pytest.raises(UsageError, match=r"does not belong to train_000000\.bin"):
        shards.splits["train"].document(0)


def test_a_failed_meta_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = open_shards(prepared(tmp_path / "data")).meta
    before = (tmp_path / "data" / "meta.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_format.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_meta(tmp_path / "data", meta)
    assert (tmp_path / "data" / "meta.json").read_bytes() == before
    assert not list((tmp_path / "data").glob("*.partial"))


def test_reading_keeps_memory_flat(tmp_path: Path) -> None:
    """Every token of 8 and of 64 MB, read in windows: the larger costs no more than the smaller."""
    program = (
        "import sys\n"
        "from minilm.runtime import peak_resident_bytes\n"
        "from minilm.text.shards import open_tokens\n"
        "from minilm.text.tokenizer import get_tokenizer\n"
        "split = open_tokens(sys.argv[1], get_tokenizer('bytes'))\n"
        "assert sum(int(split.read(i, 4097).sum()) for i in range(0, split.n_tokens, 4096)) >= 0\n"
        "print(peak_resident_bytes())"
    )
    peaks = []
    for megabytes in (8, 64):
        np.zeros(megabytes * 500_000, "<u2").tofile(tmp_path / "tokens.bin")
        words = [sys.executable, "-c", program, str(tmp_path / "tokens.bin")]
        peaks.append(int(subprocess.run(words, check=True, capture_output=True).stdout) / 2**20)
    assert peaks[1] - peaks[0] < 6  # MB


def test_the_example_in_the_docs(tmp_path: Path) -> None:
    """docs/shards.md lists the keys of meta.json."""
    raw = json.loads((prepared(tmp_path / "data") / "meta.json").read_text())
    page = (Path(__file__).resolve().parent.parent / "docs" / "shards.md").read_text(encoding="utf-8")
    for key in (*raw, *raw["splits"]["train"], *raw["splits"]["train"]["shards"][0]):
        assert f"`{key}`" in page, key
    assert get_tokenizer(tmp_path / "data").fingerprint == raw["fingerprint"]
