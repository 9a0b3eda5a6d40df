"""The loader's share of a step, and its memory: batches of every packing from a split of random documents.

    python bench/loader.py [MILLIONS_OF_TOKENS]

Time of a batch of 32 rows of 128 tokens against a step of the preset `tiny` on the same machine (forward and backward,
one thread); resident memory before and after 100,000 batches.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from minilm import runtime
from minilm.model.gpt import GPT
from minilm.options import parse
from minilm.text.batches import Batches
from minilm.text.packing import PackingOptions
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import Split, open_tokens
from minilm.text.tokenizer import get_tokenizer

ROWS, N_BATCHES = 32, 100_000


def split_of(folder: Path, n_tokens: int) -> Split:
    rng = np.random.default_rng(0)
    writer = ShardWriter(folder, "train", tokenizer=get_tokenizer("bytes"))
    left = n_tokens
    while left > 0:
        lengths = rng.geometric(1 / 300, 4096)
        writer.add_flat(rng.integers(0, 256, int(lengths.sum())), lengths)
        left -= int(lengths.sum())
    writer.close(n_bytes=0, n_words=0)
    return open_tokens(folder, get_tokenizer("bytes"))


def step_seconds(block_size: int) -> float:
    config = parse(["--config", "tiny"], "cpu").config.model
    model = GPT(type(config)(**{**vars(config), "vocab_size": 512, "block_size": block_size}))
    ids = torch.randint(0, 512, (ROWS, block_size))
    for _ in range(2):
        start = time.process_time()
        model.loss(ids, ids).backward()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    T = 128
    with tempfile.TemporaryDirectory() as folder:
        split = split_of(Path(folder), int(float(sys.argv[1]) if len(sys.argv) > 1 else 20) * 1_000_000)
        step = step_seconds(T)
        print(f"{split.n_tokens:,} tokens; a step of tiny takes {1000 * step:.0f} ms")
        print("| packing | ms a batch | of a step |\n|---|---|---|")
        for packing in ("chunks", "documents", "lines", "best_fit", "sliding"):
            options = PackingOptions(T // 2, (10,))
            batches = Batches(split, block_size=T, batch_size=ROWS, seed=0, packing=packing, options=options)
            start = time.process_time()
            for i in range(300):
                batches.batch(i)
            took = (time.process_time() - start) / 300
            print(f"| {packing} | {1000 * took:.2f} | {took / step:.2%} |", flush=True)
        batches = Batches(split, block_size=T, batch_size=ROWS, seed=0)
        for i in range(1000):
            batches.batch(i)
        before = runtime.peak_resident_bytes()
        for i in range(N_BATCHES):
            batches.batch(i)
        after = runtime.peak_resident_bytes()
        print(f"\npeak memory grew by {(after - before) / 2**20:.1f} MB over {N_BATCHES:,} batches")


if __name__ == "__main__":
    main()
