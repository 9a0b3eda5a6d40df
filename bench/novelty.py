"""Longest copied spans and new n-grams against a corpus of 100 MB and more: seconds and memory.

python bench/novelty.py DATA [MB]; DATA has text files, any number, whose sentences are drawn until the corpus is that
large (120 MB). Texts to look up: 200 of 200 tokens, every other one with a span copied from the corpus, which must be
found whole. Needs GPT-2's vocabulary. Prints processor seconds and the process's peak memory over what it held before.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from minilm import runtime
from minilm.evaluation.novelty import BLOCK_TOKENS, blocks, copied_share, longest_matches, new_ngrams
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import Shard, Split
from minilm.text.tokenizer import get_tokenizer

TEXTS, LENGTH, SPAN = 200, 200, 60
READ_BYTES = 20_000_000


def write_corpus(data: Path, folder: Path, n_bytes: int) -> int:
    """Documents of real sentences in random order, at least so many bytes of text; how many."""
    tokenizer = get_tokenizer("gpt2")
    text, read = [], 0
    for file in sorted(data.rglob("*.txt")):
        text.append(file.read_text(encoding="utf-8", errors="ignore"))
        if (read := read + len(text[-1])) > READ_BYTES:
            break
    sentences = [one for one in re.split(r"(?<=[.!?])\s+", "\n".join(text)) if 20 < len(one) < 600]
    ids = tokenizer.encode_batch(sentences)
    sizes = np.array([len(one.encode()) for one in sentences])
    random, done = np.random.default_rng(0), 0
    writer = ShardWriter(folder, "train", tokenizer=tokenizer)
    while done < n_bytes:
        drawn = random.integers(len(ids), size=(1000, 20))
        writer.add_many([[token for i in row for token in ids[i]] for row in drawn.tolist()])
        done += int(sizes[drawn].sum())
    writer.close(n_bytes=done, n_words=0)
    return done


def main(data: str, megabytes: int = 120) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as aside:  # whose memory is not measured
            n_bytes = aside.submit(write_corpus, Path(data), Path(folder), megabytes * 1_000_000).result()
        split = Split([Shard(file) for file in sorted(Path(folder).glob("*.bin"))], 50257)
        random = np.random.default_rng(1)
        texts = [random.integers(50256, size=LENGTH) for _ in range(TEXTS)]
        for i, text in enumerate(texts[::2]):
            start = int(random.integers(split.n_tokens - SPAN)) if i else split.n_tokens - SPAN - 1
            text[70 : 70 + SPAN] = split.read(start, SPAN)
        held = runtime.resident_bytes()
        start_s = time.process_time()
        matches = longest_matches(texts, blocks(split, LENGTH))
        seconds = time.process_time() - start_s
        after = runtime.peak_resident_bytes()
    found = [int(match[70]) for match in matches[::2]]
    assert min(found) >= SPAN, "a copied span was missed"
    print(f"corpus: {n_bytes / 1e6:,.0f} MB, {split.n_tokens:,} tokens; blocks of {BLOCK_TOKENS:,}")
    print(f"{TEXTS} texts of {LENGTH} tokens: {seconds:.1f} s of one core, {n_bytes / 1e6 / seconds:.1f} MB/s")
    print(f"peak memory over the {held / 1e6:,.0f} MB held before: {(after - held) / 1e6:,.0f} MB")
    shares = [copied_share(match) for match in matches]
    print(f"all {len(found)} copied spans of {SPAN} tokens found; {np.mean(shares[::2]):.3f} of those texts")
    new = np.concatenate([new_ngrams(match, 4) for match in matches[1::2]])
    print(f"texts without: {np.mean(shares[1::2]):.3f}, new 4-grams {new.mean():.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
