"""Works of bench/run.py that read text: to shards, scored, loaded."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from works import SMALL, Values, gpt2, test_data

KINDS = ("gutenberg/*.txt", "tinystories/*.txt", "writingPrompts/*", "ag_news_csv/*.csv", "langid/sentences/*",
         "wikitext-2-raw/*", "lambada/*.txt", "cnn_dailymail/*.csv", "style_fables/*", "tinyshakespeare/*")  # fmt: skip
CONTEXT, STRIDE = 1024, 512
SCORED_TOKENS = 1100 if SMALL else 6144  # memory that is touched for the first time is a small part
LOADER_ROWS, LOADER_TOKENS, LOADER_BATCHES = 32, 128, 1000 if SMALL else 100_000


def documents(megabytes: float = 100.0) -> list[str]:
    """All plain text of the test data (books, news, reviews, stories, sentences in 15 languages) as documents of up to
    4,000 characters in an order drawn once; of more than there is, the same again."""
    paths = [path for kind in KINDS for path in sorted(test_data().glob(kind))]
    texts = [path.read_text(encoding="utf-8-sig", errors="replace") for path in paths]
    cut = [text[i : i + 4000] for text in texts for i in range(0, len(text), 4000)]
    random.Random(0).shuffle(cut)
    if SMALL:
        return cut[:200]
    return cut * max(1, round(megabytes * 1e6 / sum(len(text.encode()) for text in cut)))


def shards(contender: str, _: str) -> Values:
    """Megabytes a second. minilm: encoding, checking a sample, counting bytes and words, writing and hashing shards.
    datasets: tiktoken in a process per core, its files, then tokens in one file. tiktoken: ids thrown away."""
    from minilm.text.tokenizer import get_tokenizer

    texts = documents()
    n_bytes, cores = sum(len(text.encode()) for text in texts), os.cpu_count() or 1
    tokenizer = get_tokenizer(test_data() / "gpt2_files")
    values: Values = {}
    with tempfile.TemporaryDirectory() as out:
        if contender == "minilm":
            from minilm.text.encode import encode_documents
            from minilm.text.shard_writer import ShardWriter

            tokenizer.encode_flat(texts[:50])
            start = time.perf_counter()
            writer = ShardWriter(out, "train", tokenizer=tokenizer)
            counts = encode_documents((("train", text) for text in texts), tokenizer, {"train": writer}.__getitem__)
            writer.close(n_bytes=counts["train"].bytes, n_words=counts["train"].words)
            values["as"] = type(tokenizer._engine).__name__
        else:
            encoding = _tiktoken(tokenizer)
            encoding.encode_ordinary_batch(texts[:50])
            mapped = _dataset(texts, out) if contender == "datasets" else None
            start = time.perf_counter()
            if mapped is None:
                encoding.encode_ordinary_batch(texts, num_threads=cores)
            else:
                _mapped(mapped, encoding, cores, Path(out) / "train.bin")
        return {"MB/s": n_bytes / 1e6 / (time.perf_counter() - start), "MB": n_bytes / 1e6, **values}


def _tiktoken(tokenizer: Any) -> Any:
    import tiktoken

    from minilm.text.tokenizer_engines import GPT2_SPLIT
    from minilm.text.vocabulary import ranks

    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_SPLIT, mergeable_ranks=ranks(tokenizer.spec), special_tokens={"<|endoftext|>": 50256}
    )


def _dataset(texts: list[str], folder: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(f"{folder}/text")
    return datasets.load_from_disk(f"{folder}/text")


def _mapped(texts: Any, encoding: Any, cores: int, file: Path) -> None:
    def encode(row: dict[str, str]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(row["text"]), 50256]
        return {"ids": ids, "n": len(ids)}

    found = texts.map(encode, remove_columns=["text"], num_proc=cores)
    tokens = np.memmap(file, np.uint16, "w+", shape=(sum(found["n"]),))
    at = 0
    for part in found.with_format("numpy").iter(1024):
        ids = np.concatenate(part["ids"])
        tokens[at : at + len(ids)] = ids
        at += len(ids)
    tokens.flush()


def score(contender: str, _: str) -> Values:
    """Scored tokens a second, and nats per token, of one model with random weights."""
    from minilm import runtime
    from minilm.evaluation.perplexity import perplexity
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import get_tokenizer

    torch.manual_seed(0)
    model = GPT(gpt2()).eval()
    tokenizer = get_tokenizer(test_data() / "gpt2_files")
    text = next(iter(sorted((test_data() / "wikitext-2-raw").iterdir()))).read_text(encoding="utf-8")
    text = tokenizer.decode(tokenizer.encode(text[: 8 * SCORED_TOKENS])[:SCORED_TOKENS])
    ids = torch.tensor([tokenizer.encode(text)])
    half = "bf16" in contender
    if contender.startswith("minilm"):
        runtime.tune_allocator()
        short = tokenizer.decode(ids[0, :64].tolist())
        options: dict[str, Any] = {"tokenizer": tokenizer, "text": "as_is", "precision": "bf16" if half else "fp32"}
        perplexity(model, short, "hf-stride-512", **options)
        start = time.perf_counter()
        found = perplexity(model, text, "hf-stride-512", **options)
        seconds = time.perf_counter() - start
        return {"tokens/s": found.n_tokens / seconds, "nats per token": found.nats_per_token, "tokens": found.n_tokens}
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if half else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    theirs(ids[:, :64])
    start = time.perf_counter()
    nats, n = documented_loop(theirs, ids)
    return {"tokens/s": n / (time.perf_counter() - start), "nats per token": nats / n, "tokens": n}


def documented_loop(model: Any, ids: torch.Tensor) -> tuple[float, int]:
    """(sum of nats, tokens scored) of transformers' model, window by window, with labels, as its documentation does."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], STRIDE):
        end = min(begin + CONTEXT, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(ids[:, begin:end], labels=labels).loss
        n = int((labels[:, 1:] != -100).sum())
        total, count, before = total + loss.item() * n, count + n, end
        if end == ids.shape[1]:
            break
    return total, count


def loader(_: str, __: str) -> Values:
    """Processor seconds of a batch as a share of those of a step, by packing; memory's growth over 100,000 batches."""
    from minilm import runtime
    from minilm.text.batches import Batches
    from minilm.text.packing import PackingOptions

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        split = _random_split(Path(folder), 200_000 if SMALL else 20_000_000)
        step, shares = _step_of_tiny(), {}
        options: dict[str, Any] = {"block_size": LOADER_TOKENS, "batch_size": LOADER_ROWS, "seed": 0}
        for packing in ("chunks", "documents", "lines", "best_fit", "sliding"):
            batches = Batches(split, packing=packing, options=PackingOptions(LOADER_TOKENS // 2, (10,)), **options)
            start = time.process_time()
            for i in range(300):
                batches.batch(i)
            shares[packing] = (time.process_time() - start) / 300 / step
        batches = Batches(split, **options)
        for i in range(1000):
            batches.batch(i)
        before = runtime.peak_resident_bytes()
        for i in range(LOADER_BATCHES):
            batches.batch(i)
        grew = (runtime.peak_resident_bytes() - before) / 2**20
    slowest = max(shares, key=lambda packing: shares[packing])
    values: Values = {"of a step": shares["chunks"], "slowest of a step": shares[slowest], "slowest": slowest}
    return values | {"step s": step, "grew MiB": grew}


def _random_split(folder: Path, n_tokens: int) -> Any:
    from minilm.text.shard_writer import ShardWriter
    from minilm.text.shards import open_tokens
    from minilm.text.tokenizer import get_tokenizer

    rng = np.random.default_rng(0)
    writer = ShardWriter(folder, "train", tokenizer=get_tokenizer("bytes"))
    while n_tokens > 0:
        lengths = rng.geometric(1 / 300, 4096)
        writer.add_flat(rng.integers(0, 256, int(lengths.sum())), lengths)
        n_tokens -= int(lengths.sum())
    writer.close(n_bytes=0, n_words=0)
    return open_tokens(folder, get_tokenizer("bytes"))


def _step_of_tiny() -> float:
    """Processor seconds of forward and backward of the preset, eager."""
    from dataclasses import replace

    from minilm.model.gpt import GPT
    from minilm.options import parse

    config = parse(["--config", "tiny"], "cpu").config.model
    model = GPT(replace(config, vocab_size=512, block_size=LOADER_TOKENS))
    ids = torch.randint(0, 512, (LOADER_ROWS, LOADER_TOKENS))
    seconds = []
    for _ in range(4):
        start = time.process_time()
        model.loss(ids, ids).backward()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])
