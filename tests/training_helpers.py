"""A tiny prepared folder and a tiny run, shared by the training tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minilm.config import GPTConfig, TrainConfig
from minilm.text.shard_format import Meta, write_meta
from minilm.text.shard_writer import ShardWriter
from minilm.text.tokenizer import get_tokenizer
from minilm.training.loop import Result, train

MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=0)


def sums(first: int, n: int) -> list[str]:
    """Documents that never change, so that the golden trace stands on nothing but numerics."""
    return [
        " ".join(f"{a} and {b} make {a + b}." for b in range(a % 7, 99, 12 + a % 5)) for a in range(first, first + n)
    ]


def prepared(folder: Path, n_train: int = 30) -> Path:
    """Sums as bytes, in two splits of 4,220 and 1,879 tokens."""
    folder.mkdir(parents=True)
    tokenizer = get_tokenizer("bytes")
    tokenizer.save(folder)
    splits = {}
    for split, texts in (("train", sums(10, n_train)), ("val", sums(100, 12))):
        writer = ShardWriter(folder, split, tokenizer=tokenizer)
        writer.add_many(tokenizer.encode_batch(texts))
        splits[split] = writer.close(n_bytes=sum(map(len, texts)), n_words=sum(len(t.split()) for t in texts))
    name, mark = tokenizer.name, tokenizer.fingerprint
    write_meta(folder, Meta("sums", name, mark, tokenizer.vocab_size, tokenizer.eot, splits, command="(a test)"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sums, once for a module that imports this fixture."""
    return prepared(tmp_path_factory.mktemp("data") / "sums")


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Weights to finetune: five steps from scratch, two blocks."""
    return train(tiny_config(data, tmp_path_factory.mktemp("first") / "run", max_steps=5))


def tiny_config(data: Path, out_dir: Path, **changes: Any) -> TrainConfig:
    """Ten fp32 steps of a model of 26 k parameters."""
    model = {k: changes.pop(k) for k in list(changes) if hasattr(MODEL, k)}
    base = TrainConfig(
        model=replace(MODEL, **model),
        data=str(data),
        out_dir=str(out_dir),
        max_steps=10,
        batch_size=8,
        lr=1e-2,
        warmup_steps=3,
        precision="fp32",
        compile="off",
        device="cpu",
        eval_every_steps=5,
        eval_tokens=500,
        save_every_steps=5,
        log_every_steps=1,
    )
    return replace(base, **changes)
