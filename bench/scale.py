"""What each step from Reddit's links to shards costs on one core, and from it the plan for a full set.

    python bench/scale.py FOLDER_OF_TEST_DATA [GIGABYTES_OF_TEXT ...]

Seconds are of the processor (what else the machine does counts less), over 150 real pages; downloads are from another
process on loopback. The plan scales them: no step's cost grows faster than its input.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig

from minilm.text.articles import article_text
from minilm.text.clean import SHINGLE_WORDS, make_cleaner
from minilm.text.encode import encode_documents
from minilm.text.openwebtext import BLOCKED, BUCKETS, ROWS, Words, link
from minilm.text.shard_writer import ShardWriter
from minilm.text.tokenizer import get_tokenizer
from minilm.text.webpages import Fetcher, Limits, decoded

GB = 1e9
CORES = 64  # of the plan: one large machine
PAGES_PER_GB = 8_013_769 / 38.0  # of OpenWebText's text


def timed(work: Callable[[Any], Any], items: Iterable[Any]) -> tuple[list[Any], float]:
    start = time.process_time()
    found = [work(item) for item in items]
    return found, time.process_time() - start


def main() -> None:
    folder, wanted = Path(sys.argv[1]), [float(word) for word in sys.argv[2:]] or [38.0, 174.0]
    pages = [path.read_bytes() for path in sorted((folder / "html_readability").glob("*/source.html"))]
    pages += [gzip.decompress(path.read_bytes()) for path in sorted((folder / "html_article_benchmark/html").iterdir())]
    seconds: dict[str, float] = {}
    dumps = [lzma.decompress(path.read_bytes()).decode() for path in sorted((folder / "openwebtext").iterdir())]
    lines = [line for dump in dumps for line in dump.splitlines()]
    blocked = frozenset(BLOCKED.read_text().split())
    found, took = timed(lambda line: link(line, 3, blocked), lines)
    kept_links = sum(not reason for _, reason in found)
    seconds["links (JSON, karma, blocklist)"] = took / kept_links * len(pages)
    seconds["pages (HTTP)"], served = fetched(pages)
    texts, seconds["decoding"] = timed(decoded, pages)
    articles, seconds["article (trafilatura)"] = timed(article_text, [text for text in texts if text])
    articles = [text for text in articles if text]
    cleaner = make_cleaner("repair,language:en")
    cleaned = [text for text in map(cleaner.clean, articles) if text is not None]
    for name, count in cleaner.counts.items():
        seconds[name] = count.seconds
    tokenizer = get_tokenizer(folder / "gpt2_files")
    lengths, seconds["min_tokens:128"] = timed(lambda text: len(tokenizer.encode(text)), cleaned)
    documents = [text for text, n in zip(cleaned, lengths, strict=True) if n >= 128]
    with tempfile.TemporaryDirectory() as out:
        config = MinhashConfig(SHINGLE_WORDS, BUCKETS, ROWS, hash_config=HashConfig(hash_fc="sha1"))
        hashes = MinhashDedupSignature(out, config, Words())
        _, seconds["hashes (MinHash)"] = timed(lambda text: hashes.get_signature(hashes.get_shingles(text)), documents)
        writer = ShardWriter(out, "train", tokenizer=tokenizer)
        start = time.process_time()
        encode_documents((("train", text) for text in documents * 20), tokenizer, {"train": writer}.__getitem__)
        writer.close(n_bytes=0, n_words=0)
        seconds["shards (encoding, hashing, writing)"] = (time.process_time() - start) / 20
    n_html, n_text = sum(map(len, pages)), sum(len(text.encode()) for text in documents)
    packed = sum(len(gzip.compress(json.dumps({"text": text}).encode())) for text in texts if text)
    packed_text = sum(len(gzip.compress(text.encode())) for text in documents)
    print(
        f"{len(pages)} pages, {n_html / 1e6:.1f} MB of HTML; {len(documents)} documents, {n_text / 1e6:.2f} MB of text"
    )
    print(f"a page downloaded is {served / len(pages) / 1e3:.0f} kB\n")
    print("| step | core-seconds a GB of HTML | core-hours a GB of text left | MB of text left/s on a core |")
    print("|---|---|---|---|")
    for name, took in seconds.items():
        left = n_text / 1e6 / max(took, 1e-9)
        print(f"| {name} | {took / n_html * GB:,.0f} | {took / n_text * GB / 3600:.2f} | {left:.2f} |")
    total = sum(seconds.values())
    print(f"| all | {total / n_html * GB:,.0f} | {total / n_text * GB / 3600:.2f} | {n_text / 1e6 / total:.2f} |")
    print(f"\nslowest: {max(seconds, key=lambda name: seconds[name])}\n")
    print(f"| for | {' | '.join(f'{size:g} GB of text' for size in wanted)} |\n|---|{'---|' * len(wanted)}")
    ratio = n_html / n_text
    rows: list[tuple[str, Callable[[float], str]]] = [
        ("documents", lambda size: f"{size * PAGES_PER_GB / 1e6:.1f} million"),
        ("addresses to ask for (the share that is left here)",
         lambda size: f"{size * PAGES_PER_GB * len(pages) / len(documents) / 1e6:.1f} million"),
        ("HTML to download", lambda size: f"{size * ratio / 1e3:.2f} TB"),
        ("disk: pages, gzipped", lambda size: f"{size * packed / n_text:,.0f} GB"),
        ("disk: articles and documents, gzipped", lambda size: f"{2 * size * packed_text / n_text:,.0f} GB"),
        ("disk: signatures",
         lambda size: f"{size * PAGES_PER_GB * (BUCKETS * (ROWS * 8 + 4)) / GB:,.0f} GB"),
        ("disk: shards", lambda size: f"{size * 2 * sum(lengths) / n_text:,.0f} GB"),
        ("core-hours", lambda size: f"{total / n_text * size * GB / 3600:,.0f}"),
        (f"hours on {CORES} cores", lambda size: f"{total / n_text * size * GB / 3600 / CORES:,.1f}"),
        ("hours of download at 1 Gbit/s", lambda size: f"{size * ratio * 8 / 3600:,.0f}"),
        ("hosts at a time for that, a page a second each", lambda size: f"{1e9 / 8 / (served / len(pages)):,.0f}"),
        ("memory of the clusters task, if a tenth of the documents has a pair",
         lambda size: f"{size * PAGES_PER_GB * 0.1 * 300 / GB:.1f} GB"),
    ]  # fmt: skip
    for name, scaled in rows:
        print(f"| {name} | {' | '.join(scaled(size) for size in wanted)} |")


def fetched(pages: list[bytes]) -> tuple[float, int]:
    """Seconds of this process to fetch the pages from another one, and their bytes."""
    with tempfile.TemporaryDirectory() as site:
        for i, page in enumerate(pages):
            (Path(site) / f"{i}.html").write_bytes(page)
        (Path(site) / "robots.txt").write_text("User-agent: *\n")
        words = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", site]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            port = re.search(r"port (\d+)", server.stdout.readline())
            assert port is not None
            fetcher = Fetcher(Limits(pause_seconds=0, timeout_seconds=60, page_seconds=120))
            start = time.process_time()
            found = fetcher.fetch([f"http://127.0.0.1:{port[1]}/{i}.html" for i in range(len(pages))])
            took = time.process_time() - start
        finally:
            server.kill()
    assert sum(one.outcome == "page" for one in found) > 0.9 * len(pages)
    return took, sum(map(len, pages))


if __name__ == "__main__":
    main()
