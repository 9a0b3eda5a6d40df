"""Batches are a pure function of (seed, step, rank): against a plain reading of the stream, and by properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm.errors import UsageError
from minilm.text.batches import IGNORE, Batches, documents_of, eval_batches, permute
from minilm.text.shards import Split, open_tokens
from minilm.text.tokenizer import get_tokenizer


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """1,003 random bytes, every 50th an end-of-text."""
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens.bin"
    ids = np.random.default_rng(0).integers(0, 256, 1003)
    ids[::50] = 256
    ids.astype("<u2").tofile(path)
    return open_tokens(path, get_tokenizer("bytes"))


def stream(split: Split) -> np.ndarray:
    return split.read(0, split.n_tokens)


def test_an_epoch_holds_every_window_once(split: Split) -> None:
    T, B = 16, 7
    batches = Batches(split, block_size=T, batch_size=B, seed=3)
    assert batches.windows_per_epoch == (1003 - 1) // T == 62
    rows = np.concatenate([batches.batch(step).ids for step in range(62)])  # seven epochs, whose borders cut batches
    text = stream(split)
    windows = {text[i * T : (i + 1) * T].tobytes(): i for i in range(62)}
    order = [windows[row.tobytes()] for row in rows]
    epochs = [order[i : i + 62] for i in range(0, len(order), 62)]
    assert len(epochs) == 7
    assert all(sorted(epoch) == list(range(62)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 7


def test_targets_are_the_next_tokens(split: Split) -> None:
    batch = Batches(split, block_size=10, batch_size=4, seed=0).batch(2)
    assert batch.ids.shape == batch.targets.shape == (4, 10)
    assert batch.ids.dtype == batch.targets.dtype == np.int64
    text = stream(split)
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        at = next(i for i in range(0, 1000, 10) if np.array_equal(text[i : i + 10], ids))
        assert np.array_equal(text[at + 1 : at + 11], targets)
    assert batch.documents is None


@given(st.integers(0, 10**9), st.integers(0, 2**40), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_share_the_batch_of_one(split: Split, step: int, seed: int, world: int) -> None:
    batches = Batches(split, block_size=8, batch_size=12, seed=seed)
    whole = batches.batch(step)
    parts = [batches.batch(step, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
    again = Batches(split, block_size=8, batch_size=12, seed=seed).batch(step)
    assert np.array_equal(again.ids, whole.ids)


def test_seeds_and_epochs_differ(split: Split) -> None:
    orders = {tuple(Batches(split, block_size=8, batch_size=1, seed=seed).order(0, 125)) for seed in range(40)}
    assert len(orders) == 40


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n: int, key: int) -> None:
    out = permute(np.arange(n), n, np.full(n, key, np.uint64))
    assert sorted(out.tolist()) == list(range(n))


def test_order_across_blocks_and_far_away(split: Split) -> None:
    batches = Batches(split, block_size=8, batch_size=1, seed=5)
    far = 10**12 * batches.windows_per_epoch
    assert sorted(batches.order(far, 125).tolist()) == list(range(125))
    pieces = np.concatenate([batches.order(i, 100) for i in range(4000, 4400, 100)])
    assert np.array_equal(batches.order(4000, 400), pieces)


def test_places_are_drawn_evenly() -> None:
    """Over 20,000 keys: where window 0 of 1,000 stands, and how far behind it window 1, in 50 bins each; chi-square
    below the 99.99 % point of 49 degrees of freedom."""
    n, n_keys, bins = 1000, 20_000, 50
    keys = np.arange(n_keys, dtype=np.uint64)
    first, second = (permute(np.full(n_keys, i), n, keys) for i in (0, 1))
    for places in (first, (second - first) % n):
        counts = np.bincount(places * bins // n, minlength=bins)
        assert ((counts - n_keys / bins) ** 2 / (n_keys / bins)).sum() < 94


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("max_tokens", [1, 16, 100, 1002, 10**6])
def test_validation_scores_each_token_once(split: Split, batch_size: int, max_tokens: int) -> None:
    found = list(eval_batches(split, block_size=16, batch_size=batch_size, max_tokens=max_tokens))
    text = stream(split)
    n = min(max_tokens, 1002)
    targets = np.concatenate([batch.targets.ravel() for batch in found])
    assert np.array_equal(targets[targets != IGNORE], text[1 : n + 1])
    ids = np.concatenate([batch.ids.ravel() for batch in found])
    assert np.array_equal(ids[targets != IGNORE], text[:n])
    assert all(len(batch.ids) <= batch_size for batch in found)


def test_documents_count_ends_of_text(split: Split) -> None:
    ids = np.array([[9, 1, 9, 2], [1, 2, 9, 9]])
    assert documents_of(ids, 9).tolist() == [[1, 1, 2, 2], [0, 0, 1, 2]]
    batch = Batches(split, block_size=64, batch_size=2, seed=0, with_documents=True).batch(0)
    assert batch.documents is not None
    assert batch.documents.dtype == np.int32
    assert np.array_equal(np.diff(batch.documents) == 1, batch.ids[:, 1:] == 256)


def test_misuse(split: Split) -> None:
    with pytest.raises(UsageError, match=r"has 1003 tokens and a context needs 1004: .*--block_size 1002 or less"):
        Batches(split, block_size=1003, batch_size=1, seed=0)
    assert Batches(split, block_size=1002, batch_size=1, seed=0).windows_per_epoch == 1
    with pytest.raises(UsageError, match="5 ranks do not divide batch_size 12"):
        Batches(split, block_size=8, batch_size=12, seed=0).batch(0, 0, 5)
    with pytest.raises(UsageError, match="packing is 'tight': choose chunks"):
        Batches(split, block_size=8, batch_size=12, seed=0, packing="tight")


def test_tokens_outside_the_vocabulary_are_told(tmp_path: Path, split: Split) -> None:
    narrow = Split(split.shards, 200)
    with pytest.raises(UsageError, match=r"token \d+, outside their vocabulary of 200"):
        Batches(narrow, block_size=1000, batch_size=1, seed=0).batch(0)
