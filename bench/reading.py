"""How fast documents are read, by form: the reason why several processes read.

    python bench/reading.py FOLDER_OF_TEST_DATA [MEGABYTES] [--write]

MB of text a second and processor second: of one process that reads, and of the one that writes the shards where others
read for it, which is as fast as that can get on many cores. Beside them what encoding, counting, writing and hashing
take of all cores. --write: into docs/data.md. The ratio in wall time is told too, for an idle machine.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pages import ROOT, put, told, where

from minilm.text.encode import encode_documents
from minilm.text.parallel import n_cores
from minilm.text.reading import read
from minilm.text.scripts import load_dataset
from minilm.text.shard_writer import ShardWriter
from minilm.text.sources import Files
from minilm.text.tokenizer import get_tokenizer

FILES = 16


def write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path.with_suffix(".parquet"), row_group_size=1000)


def pack(ending: str, compress: Callable[[bytes], bytes]) -> Callable[[Path, list[str]], object]:
    return lambda path, texts: path.with_suffix(f".jsonl{ending}").write_bytes(compress(rows(texts)))


def write_csv(path: Path, texts: list[str]) -> None:
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_files(path: Path, texts: list[str]) -> None:
    path.mkdir()
    for i, text in enumerate(texts):
        (path / f"{i:06d}.txt").write_text(text, encoding="utf-8")


FORMS: dict[str, tuple[str, Callable[[Path, list[str]], object]]] = {
    "parquet": ("fineweb", write_parquet),
    "jsonl": ("textfiles", pack("", bytes)),
    "jsonl.gz": ("textfiles", pack(".gz", gzip.compress)),
    "jsonl.xz": ("textfiles", pack(".xz", partial(lzma.compress, preset=1))),
    "csv": ("textfiles", write_csv),
    "txt of 4 kB": ("textfiles", write_files),
}


def main() -> None:
    folder, megabytes = Path(sys.argv[1]), float((*sys.argv[2:], "200")[0].replace("--write", "200"))
    books = [path.read_text(encoding="utf-8-sig") for path in sorted((folder / "gutenberg").glob("*.txt"))]
    texts = [book[i : i + 4000] for book in books for i in range(0, len(book), 4000)]  # as long as web pages
    texts *= max(1, round(megabytes * 1e6 / sum(len(text.encode()) for text in texts)))
    size = sum(len(text.encode()) for text in texts) / 1e6
    lines = ["| form | MB/s read by one process | taken from others by the one that writes |", "|---|---|---|"]
    for form, (script, write) in FORMS.items():
        with tempfile.TemporaryDirectory() as out:
            for i in range(FILES):
                write(Path(out) / f"{i:02d}", texts[i::FILES])
            dataset = load_dataset(script)
            list(
                dataset.documents(Files.at(Path(out) / sorted(os.listdir(out))[0]), "train", **dataset.options)
            )  # warm
            spent: list[tuple[float, float]] = []
            for workers in (1, max(2, n_cores())):
                start = time.process_time(), time.perf_counter()
                found = sum(len(one) for one in read(dataset, Files.at(Path(out)), "train", dataset.options, workers))
                assert found >= 0.99 * sum(map(len, texts))  # blanks at a file's ends aside
                spent.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        (one, wall_one), (others, wall_others) = spent
        lines.append(f"| {form} | {size / one:.0f} | {size / others:.0f} |")
        print(f"{lines[-1]} {wall_one / wall_others:.1f} times as fast in wall time", flush=True)
    tokenizer = get_tokenizer(folder / "gpt2_files")
    tokenizer.encode_flat(texts[:50])
    with tempfile.TemporaryDirectory() as out:
        writer = ShardWriter(out, "train", tokenizer=tokenizer)
        begun = time.process_time()
        encode_documents((("train", text) for text in texts), tokenizer, {"train": writer}.__getitem__)
        writer.close(n_bytes=0, n_words=0)
        speed = size / (time.process_time() - begun)
    lines[:0] = [
        f"`python bench/reading.py`, {told(where())}; {size:.0f} MB of text in {FILES} files; seconds are the "
        f"processor's. GPT-2 tokens from text to finished shards take a core a second for {speed:.0f} MB.\n"
    ]
    if "--write" in sys.argv[2:]:
        put(ROOT / "docs" / "data.md", "How fast reading is", "\n".join(lines))


if __name__ == "__main__":
    main()
