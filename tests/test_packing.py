"""Packings against a plain reading of the stream: each token is a target once, or counted as truncated; mixing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm.errors import UsageError
from minilm.text.batches import IGNORE, Batches, apportion
from minilm.text.packing import PACKINGS, PackingOptions, best_fit_decreasing, line_end_ids
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import Split, open_tokens
from minilm.text.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
EOT = BYTES.eot
LINE = PackingOptions(line_ends=(10,))


def write(folder: Path, documents: list[bytes], shard_tokens: int = 10**6) -> Split:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    writer = ShardWriter(folder, "train", tokenizer=BYTES, shard_tokens=shard_tokens)
    for document in documents:
        writer.add(list(document))
    writer.close(n_bytes=0, n_words=0)
    return open_tokens(folder, BYTES)


DOCUMENTS = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\x05", b"\n")), min_size=1, max_size=8)


@given(
    DOCUMENTS, st.integers(1, 24), st.sampled_from(sorted(PACKINGS)), st.integers(1, 30), st.sampled_from([25, 10**6])
)
@settings(max_examples=150, deadline=None)
def test_each_token_is_a_target_once_or_counted(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], T: int, name: str, stride: int, cut: bool
) -> None:
    split = write(tmp_path_factory.getbasetemp() / "packing", texts, 25 if cut else 10**6)
    if split.n_tokens - 1 < T and name in ("chunks", "sliding"):
        with pytest.raises(UsageError, match="a context needs"):
            PACKINGS[name](split, T, LINE)
        return
    packing = PACKINGS[name](split, T, PackingOptions(stride=stride, line_ends=(10,)))
    stream = split.read(0, split.n_tokens)
    targets: Counter[int] = Counter()
    scored = padding = 0
    for i in range(packing.n_rows):
        ids, wanted, documents = packing.row(i)
        assert ids.shape == wanted.shape == (T,)
        scored += int((wanted != IGNORE).sum())
        targets.update(wanted[wanted != IGNORE].tolist())
        if name in ("chunks", "sliding"):
            continue
        assert documents is not None
        padding += int((wanted == IGNORE).sum())
        for k in np.unique(documents[wanted != IGNORE]):  # within a segment the next input is the target
            inside = np.flatnonzero((documents == k) & (wanted != IGNORE))
            assert np.array_equal(ids[inside[1:]], wanted[inside[:-1]])
    assert (scored, padding) == (packing.n_targets, packing.n_padding)
    inner = stream.copy()
    if name not in ("chunks", "sliding"):
        starts = np.cumsum([0] + [shard.n_tokens for shard in split.shards[:-1]])
        inner[starts] = IGNORE  # the end-of-text that opens a shard follows the one that closed the last: no target
    else:
        inner[0] = IGNORE
    assert packing.n_targets + packing.n_truncated == int((inner != IGNORE).sum())
    missing = Counter(inner[inner != IGNORE].tolist()) - targets
    assert not targets - Counter(inner[inner != IGNORE].tolist())  # nothing twice
    assert missing.total() == packing.n_truncated
    if name == "best_fit":
        assert packing.n_truncated == 0


def test_rows_of_each_packing(tmp_path: Path) -> None:
    split = write(tmp_path, [b"ab\ncd\n", b"e"])  # E a b / c d / E e E
    pad, no = EOT, IGNORE

    def rows(name: str, T: int, **options: int) -> list[tuple[list[int], list[int]]]:
        packing = PACKINGS[name](split, T, PackingOptions(line_ends=(10,), **options))
        return [(row.ids.tolist(), row.targets.tolist()) for row in map(packing.row, range(packing.n_rows))]

    a, b, c, d, e, line = b"abcde\n"
    assert rows("documents", 5) == [
        ([EOT, a, b, line, c], [a, b, line, c, d]),
        ([EOT, e, pad, pad, pad], [e, EOT, no, no, no]),
    ]
    assert rows("lines", 4) == [
        ([EOT, a, b, pad], [a, b, line, no]),
        ([line, c, d, line], [c, d, line, EOT]),
        ([EOT, e, pad, pad], [e, EOT, no, no]),
    ]
    assert rows("best_fit", 6) == [
        ([EOT, a, b, line, c, d], [a, b, line, c, d, line]),
        ([line, EOT, e, pad, pad, pad], [EOT, e, EOT, no, no, no]),
    ]
    assert rows("sliding", 4, stride=3) == [
        ([EOT, a, b, line], [a, b, line, c]),
        ([line, c, d, line], [no, d, line, EOT]),
    ]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 25))
def test_best_fit_packs_as_the_plain_algorithm_does(sizes: list[int], capacity: int) -> None:
    rows = best_fit_decreasing(np.array(sizes), capacity)
    room: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, left in enumerate(room) if left >= size]
        if fitting:
            room[min(fitting, key=lambda i: room[i])] -= size
        else:
            room.append(capacity - size)
    assert len(room) == rows.max() + 1
    filled = np.bincount(rows, weights=sizes)
    assert sorted(capacity - filled) == sorted(room)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_of_batches_has_every_row_once(packing: str, world: int, tmp_path: Path) -> None:
    split = write(tmp_path, [bytes([65 + i]) * (7 * i % 23 + 1) + b"\n" for i in range(26)])
    batches = Batches(split, block_size=10, batch_size=3, seed=5, packing=packing, options=PackingOptions(7, (10,)))
    made = PACKINGS[packing](split, 10, PackingOptions(7, (10,)))
    expected = Counter(row.ids.tobytes() + row.targets.tobytes() for row in map(made.row, range(made.n_rows)))
    found: Counter[bytes] = Counter()
    for step in range(made.n_rows):  # three epochs
        for rank in range(world):
            batch = batches.batch(step, rank, world)
            for ids, targets in zip(batch.ids, batch.targets, strict=True):
                found[ids.tobytes() + targets.tobytes()] += 1
    assert found == Counter({key: 3 * n for key, n in expected.items()})
    assert f"{made.n_rows:,} rows an epoch; {made.n_padding:,} of" in batches.report()


def test_orders(tmp_path: Path) -> None:
    split = write(tmp_path, [bytes(range(100))])
    plain = Batches(split, block_size=10, batch_size=2, seed=0, order="sequential")
    stream = split.read(0, split.n_tokens)
    assert np.array_equal(np.concatenate([plain.batch(i).ids.ravel() for i in range(5)]), stream[:100])
    assert np.array_equal(plain.batch(5).ids, plain.batch(0).ids)
    anywhere = Batches(split, block_size=10, batch_size=50, seed=0, order="random")
    starts = np.concatenate([anywhere.batch(i).ids[:, 1] for i in range(40)]) - 1  # byte k stands at place k + 1
    assert len(set(starts.tolist())) > 80
    assert 0.8 < np.bincount(starts + 1, minlength=92)[:92].std() / np.sqrt(2000 / 92) < 1.3  # as chance has it
    assert np.array_equal(anywhere.batch(3).ids, anywhere.batch(3).ids)
    again = np.concatenate([anywhere.batch(2, rank, 5).ids for rank in range(5)])
    assert np.array_equal(again, anywhere.batch(2).ids)
    with pytest.raises(UsageError, match="leave out --packing documents or --order random"):
        Batches(split, block_size=10, batch_size=2, seed=0, order="random", packing="documents")
    with pytest.raises(UsageError, match="order is 'sorted': choose shuffled"):
        Batches(split, block_size=10, batch_size=2, seed=0, order="sorted")


def test_document_ids_of_packed_rows(tmp_path: Path) -> None:
    split = write(tmp_path, [b"a" * 12, b"b" * 3, b"c" * 4])
    batches = Batches(split, block_size=10, batch_size=3, seed=0, packing="best_fit", with_documents=True)
    batch = batches.batch(0)
    assert batch.documents is not None
    for ids, targets, documents in zip(batch.ids, batch.targets, batch.documents, strict=True):
        letters = {chr(t) for t in targets if t not in (IGNORE, EOT)}
        assert len({*documents[targets != IGNORE].tolist()}) >= len(letters)
        assert documents[0] == 0
        assert (np.diff(documents) >= 0).all()
        assert ids.shape == documents.shape


def test_mixing_keeps_every_sources_epochs_whole(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [b"a%03d" % i for i in range(100)])
    second = write(tmp_path / "b", [b"b%03d" % i for i in range(37)])
    mixed = Batches([first, second], block_size=5, batch_size=8, seed=9, packing="documents", weights=(3, 1))
    texts = [bytes(row[1:]) for step in range(1024) for row in mixed.batch(step).ids.astype(np.int64)]
    counts = Counter(text[:1] for text in texts)
    assert counts == {b"a": 6144, b"b": 2048}  # two blocks of 4,096 places, 3 to 1 in each
    for letter, n in ((b"a", 100), (b"b", 37)):
        mine = [text for text in texts if text[:1] == letter]
        epochs = [mine[i : i + n] for i in range(0, len(mine) - n + 1, n)]
        assert all(len(set(epoch)) == n for epoch in epochs)
        assert epochs[0] != epochs[1]
    alone = Batches(first, block_size=5, batch_size=8, seed=9, packing="documents")
    assert [text for text in texts if text[:1] == b"a"][:8] == [bytes(row[1:]) for row in alone.batch(0).ids]
    by_rank = np.concatenate([mixed.batch(600, rank, 4).ids for rank in range(4)])
    assert np.array_equal(by_rank, mixed.batch(600).ids)
    by_size = Batches([first, second], block_size=5, batch_size=8, seed=9)
    assert by_size.weights == (first.n_tokens, second.n_tokens)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9), st.integers(9, 5000))
def test_apportioning_is_whole_and_near(weights: list[float], n: int) -> None:
    counts = apportion(weights, n)
    assert counts.sum() == n
    assert counts.min() >= 1
    shares = np.array(weights) / sum(weights) * n
    if shares.min() >= 1:
        assert np.abs(counts - shares).max() < 1


def test_line_ends() -> None:
    assert line_end_ids(BYTES.decode, BYTES.vocab_size) == [10]
    with pytest.raises(UsageError, match="no token that ends a line"):
        PACKINGS["lines"](Split([], 257), 4, PackingOptions())


@pytest.mark.parametrize("n_sources", [1, 2, 3])
@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_batches_are_a_function_of_seed_step_and_rank(packing: str, n_sources: int, tmp_path: Path) -> None:
    T, options, weights = 8, PackingOptions(5, (10,)), (3, 1, 2)[:n_sources]
    letters = [set(range(40 + 30 * i, 60 + 30 * i)) for i in range(n_sources)]
    splits = [
        write(tmp_path / str(i), [bytes([k]) * (5 * k * (i + 2) % 19 + 1) + b"\n" for k in sorted(own)])
        for i, own in enumerate(letters)
    ]

    def batches(seed: int) -> Batches:
        return Batches(splits, block_size=T, batch_size=6, seed=seed, packing=packing, options=options, weights=weights)

    in_turn, anyhow, n_steps = batches(4), batches(4), 400
    expected = {(step, rank): in_turn.batch(step, rank, 3) for step in range(n_steps) for rank in range(3)}
    for step, rank in random.Random(0).sample(sorted(expected), len(expected)):
        batch = anyhow.batch(step, rank, 3)
        assert np.array_equal(batch.ids, expected[step, rank].ids)
        assert np.array_equal(batch.targets, expected[step, rank].targets)
    whole = [anyhow.batch(step) for step in range(n_steps)]
    for step, batch in enumerate(whole):
        assert np.array_equal(batch.ids, np.concatenate([expected[step, rank].ids for rank in range(3)]))
    assert any(not np.array_equal(batches(5).batch(step).ids, whole[step].ids) for step in range(3))
    rows: list[list[bytes]] = [[] for _ in splits]
    for batch in whole:
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            (source,) = (i for i, own in enumerate(letters) if own & {*ids.tolist(), *targets.tolist()})
            rows[source].append(ids.astype("<i8").tobytes() + targets.astype("<i8").tobytes())
    for split, mine in zip(splits, rows, strict=True):
        made = PACKINGS[packing](split, T, options)
        once = Counter(
            row.ids.astype("<i8").tobytes() + row.targets.astype("<i8").tobytes()
            for row in map(made.row, range(made.n_rows))
        )
        epochs = [mine[i : i + made.n_rows] for i in range(0, len(mine) - made.n_rows + 1, made.n_rows)]
        assert len(epochs) > 2
        assert all(Counter(epoch) == once for epoch in epochs)
