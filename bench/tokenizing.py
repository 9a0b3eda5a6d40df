"""GPT-2 tokens from text to finished shards, as a ratio to tiktoken's encoding alone, in one run on all cores.

    python bench/tokenizing.py FOLDER_OF_TEST_DATA [MEGABYTES]

The text is all plain text of the test data (books, news, reviews, stories, sentences in 15 languages), as documents of
up to 4,000 characters in an order drawn once; of more than there is, the same again. tiktoken: `encode_ordinary_batch`
with all cores as threads, its ids thrown away. minilm: encoding, checking a sample, counting bytes and words, writing
and hashing shards.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from minilm.text.encode import encode_documents
from minilm.text.shard_writer import ShardWriter
from minilm.text.tokenizer import get_tokenizer
from minilm.text.tokenizer_engines import GPT2_SPLIT
from minilm.text.vocabulary import ranks

KINDS = ("gutenberg/*.txt", "tinystories/*.txt", "writingPrompts/*", "ag_news_csv/*.csv", "langid/sentences/*",
         "wikitext-2-raw/*", "lambada/*.txt", "cnn_dailymail/*.csv", "style_fables/*", "tinyshakespeare/*")  # fmt: skip


def main() -> None:
    import tiktoken

    folder, megabytes = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    texts = [
        path.read_text(encoding="utf-8-sig", errors="replace") for kind in KINDS for path in sorted(folder.glob(kind))
    ]
    documents = [text[i : i + 4000] for text in texts for i in range(0, len(text), 4000)]
    random.Random(0).shuffle(documents)
    n_bytes = sum(len(text.encode()) for text in documents)
    unique = n_bytes / 1e6
    documents *= max(1, round(megabytes * 1e6 / n_bytes))
    n_bytes = sum(len(text.encode()) for text in documents)
    tokenizer = get_tokenizer(folder / "gpt2_files")
    plain = tiktoken.Encoding("gpt2", pat_str=GPT2_SPLIT, mergeable_ranks=ranks(tokenizer.spec), special_tokens={})
    for warm in (tokenizer.encode_flat, plain.encode_ordinary_batch):
        warm(documents[:50])
    best: dict[str, float] = {}
    for _ in range(3):
        start = time.perf_counter()
        plain.encode_ordinary_batch(documents, num_threads=os.cpu_count() or 1)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            writer = ShardWriter(out, "train", tokenizer=tokenizer)
            counts = encode_documents((("train", text) for text in documents), tokenizer, {"train": writer}.__getitem__)
            writer.close(n_bytes=counts["train"].bytes, n_words=counts["train"].words)
        end = time.perf_counter()
        for name, seconds in (("tiktoken", middle - start), ("minilm", end - middle)):
            best[name] = min(seconds, best.get(name, seconds))
    engine = type(tokenizer._engine).__name__
    print(f"{n_bytes / 1e6:.0f} MB of text ({unique:.0f} MB of it different), {os.cpu_count()} cores, best of 3")
    print(f"tiktoken, encoding alone:     {n_bytes / 1e6 / best['tiktoken']:7.1f} MB/s")
    print(f"minilm ({engine}), to shards: {n_bytes / 1e6 / best['minilm']:7.1f} MB/s")
    print(f"ratio {best['tiktoken'] / best['minilm']:.1f}")


if __name__ == "__main__":
    main()
