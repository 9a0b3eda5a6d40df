"""OpenWebText as its makers describe it (Gokaslan and Cohen 2019): from dumps of Reddit's submissions to documents.

Links with 3 karma or more -> blocklist, repeats out -> pages -> article text -> ftfy -> English -> 128 GPT-2 tokens or
more -> MinHash LSH over 5 words at a Jaccard similarity of 0.7. Every step is a block of datatrove or wraps one: the
same stages run on one machine, on Slurm and on Ray. A task of `pages` owns all addresses of its hosts: repeats and
pauses need no other task. Its pages are kept in files of CHUNK addresses, which a run that was killed does not ask for
again. Counts are of datatrove's own statistics.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors.base import BaseExtractor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WhitespaceTokenizer

from minilm.text.articles import article_text
from minilm.text.clean import SHINGLE_WORDS, WORD, make_cleaner
from minilm.text.sources import Files
from minilm.text.tokenizer import get_tokenizer
from minilm.text.webpages import PAGE, Fetcher, Limits, host_of

CHUNK = 500  # addresses: at most so many are asked for again after a kill
ARTICLE_SECONDS = 60.0
BUCKETS, ROWS = 17, 8
"""LSH: two documents of similarity s meet with probability 1 - (1 - s^8)^17, whose threshold (1/17)^(1/8) is 0.70."""
BLOCKED = Path(__file__).with_name("openwebtext_blocklist.txt")
TRACKING = re.compile(r"utm_|fbclid$|gclid$|ref$")
DROPPED = "dropped: "

Stage = tuple[str, list[Any], int]
"""Name, blocks, tasks."""


def stages(
    dumps: Path, folder: Path, tasks: int, tokenizer: str, limits: Limits, min_score: int, blocklist: Path | None = None
) -> list[Stage]:
    """All stages in order; the last one writes `documents` in the folder."""
    at = {
        name: str(folder / name) for name in ("links", "pages", "articles", "hashes", "pairs", "clusters", "documents")
    }
    minhash = MinhashConfig(SHINGLE_WORDS, BUCKETS, ROWS, hash_config=HashConfig(hash_fc="sha1"))
    blocked = [line for path in (BLOCKED, blocklist) if path for line in path.read_text(encoding="utf-8").split()]
    found = JsonlReader(at["articles"])
    links = Links(str(dumps), tasks, min_score, frozenset(blocked))
    article = [
        ReadPages(at["pages"]),
        Article(),
        Clean("repair"),
        Clean("language:en"),
        Clean("min_tokens:128", tokenizer),
    ]
    once = MinhashDedupFilter(at["clusters"])
    n_dumps = len(Files.at(dumps).found)
    return [
        ("links", [links, JsonlWriter(at["links"], "${bucket}/${rank}.jsonl.gz")], n_dumps),
        ("pages", [Pages(at["links"], at["pages"], limits)], tasks),
        ("articles", [*article, JsonlWriter(at["articles"], "${rank}.jsonl.gz")], tasks),
        ("hashes", [found, MinhashDedupSignature(at["hashes"], minhash, Words())], tasks),
        ("pairs", [MinhashDedupBuckets(at["hashes"], at["pairs"], config=minhash)], BUCKETS),
        ("clusters", [MinhashDedupCluster(at["pairs"], at["clusters"], config=minhash)], 1),
        ("documents", [found, once, JsonlWriter(at["documents"], "${rank}.jsonl.gz")], tasks),
    ]


class Links(PipelineStep):
    """Links worth fetching, out of dumps: a JSON object or an address a line, in any compression."""

    type, name = "minilm", "links"

    def __init__(self, dumps: str, buckets: int, min_score: int, blocked: frozenset[str]) -> None:
        super().__init__()
        self.dumps, self.buckets, self.min_score, self.blocked = dumps, buckets, min_score, blocked

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        files = Files.at(Path(self.dumps))
        mine = Files(files.given, dict(list(files.found.items())[rank::world_size]))
        for member in mine.find("*"):
            for number, line in enumerate(member.lines(errors="replace")):
                with self.track_time("line"):
                    url, reason = link(line, self.min_score, self.blocked)
                self.stat_update("seen", *([DROPPED + reason] if reason else []))
                if not reason:
                    bucket = zlib.crc32(host_of(url).encode()) % self.buckets
                    yield Document(text=url, id=f"{member.name}/{number}", metadata={"bucket": f"{bucket:05d}"})


def link(line: str, min_score: int, blocked: frozenset[str]) -> tuple[str, str]:
    """The address on a line of a dump, and why it is left out ("" where it is not)."""
    if line.lstrip().startswith("{"):
        try:
            row = json.loads(line)
            url, score, is_self = str(row.get("url") or ""), int(row.get("score") or 0), bool(row.get("is_self"))
        except (ValueError, TypeError):
            return "", "broken line"
    else:
        url, score, is_self = line, min_score, False
    url = html.unescape(url).strip()
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "", "no link to a page"
    # A name with letters at its end: an IP address is nobody's page, and may be a machine of one's own.
    if is_self or parts.scheme not in ("http", "https") or not re.search(r"\.[a-z][a-z0-9-]+$", host):
        return "", "no link to a page"
    if score < min_score:
        return "", "karma too low"
    names = host.split(".")
    ending = parts.path.rpartition(".")[2].lower() if "." in parts.path.rpartition("/")[2] else ""
    if f".{ending}" in blocked or any(".".join(names[i:]) in blocked for i in range(len(names))):
        return "", "on the blocklist"
    return parts._replace(fragment="").geturl(), ""


def same_page(url: str) -> str:
    """What two addresses of one page have in common: no scheme, no www., no tracking, no closing slash."""
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not TRACKING.match(pair[0])]
    return f"{host_of(url)}{parts.path.rstrip('/')}?{urlencode(sorted(query))}"


class Pages(PipelineStep):
    """Fetches the addresses of this task's hosts."""

    type, name = "minilm", "pages"

    def __init__(self, links: str, pages: str, limits: Limits) -> None:
        super().__init__()
        self.links, self.pages, self.limits = get_datafolder(links), get_datafolder(pages), limits

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        seen: set[str] = set()
        turns: Counter[str] = Counter()
        urls: list[tuple[int, str]] = []
        for row in rows(self.links, f"{rank:05d}"):
            if (key := same_page(row["text"])) in seen:
                self.stat_update(DROPPED + "seen before")
                continue
            seen.add(key)
            urls.append((turns[host_of(key)], row["text"]))
            turns[host_of(key)] += 1
        urls.sort(key=lambda turn: turn[0])  # hosts by turns: many at once, and no chunk waits for one of them
        fetcher = Fetcher(self.limits)
        for begin in range(0, len(urls), CHUNK):
            name = f"{rank:05d}/{begin // CHUNK:06d}.jsonl.gz"
            if self.pages.exists(name):
                continue
            with self.track_time("chunk"):
                fetched = fetcher.fetch([url for _, url in urls[begin : begin + CHUNK]])
            lines = "".join(json.dumps(vars(one)) + "\n" for one in fetched)
            with self.pages.open(f"{name}.partial", "wb") as file:
                file.write(gzip.compress(lines.encode(), mtime=0))
            self.pages.mv(f"{name}.partial", name)
        yield from ()


class ReadPages(PipelineStep):
    """The pages that were fetched."""

    type, name = "minilm", "fetched"

    def __init__(self, pages: str) -> None:
        super().__init__()
        self.pages = get_datafolder(pages)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for row in rows(self.pages, f"{rank:05d}"):
            if row["outcome"] == PAGE:
                self.stat_update("bytes", value=len(row["text"].encode("utf-8", "replace")))
                yield Document(text=row["text"], id=row["url"], metadata={"url": row["url"]})
            else:
                self.stat_update(DROPPED + row["outcome"])


class Article(BaseExtractor):
    """A page's article, found in a process of its own: a page can cost no more than ARTICLE_SECONDS."""

    type, name = "minilm", "article"

    def __init__(self) -> None:
        super().__init__(timeout=ARTICLE_SECONDS)

    def extract(self, text: str) -> str:
        return article_text(text)


class Clean(PipelineStep):
    """A step of `clean.py` that needs one document at a time, or min_tokens."""

    type = "minilm"

    def __init__(self, step: str, tokenizer: str = "") -> None:
        self.name, self.tokenizer = step, tokenizer
        super().__init__()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        cleaner = make_cleaner(self.name)
        encode = get_tokenizer(self.tokenizer).encode if cleaner.min_tokens else None
        for document in data:
            self.stat_update("bytes", value=len(document.text.encode("utf-8", "replace")))
            with self.track_time():
                text = cleaner.clean(document.text)
                is_short = text is not None and encode is not None and len(encode(text)) < cleaner.min_tokens
            if text is None or is_short:
                self.stat_update(DROPPED + self.name)
            else:
                document.text = text
                yield document


class Words(WhitespaceTokenizer):
    """As `clean.py` cuts words: datatrove's own way needs spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(WORD.findall(text))


def rows(folder: Any, below: str) -> Iterator[dict[str, Any]]:
    """Objects of the gzipped jsonl files in a folder of a datatrove folder, in the order of their names."""
    names: Iterable[str] = folder.list_files(below, glob_pattern="*.jsonl.gz") if folder.exists(below) else ()
    for name in sorted(names):
        with folder.open(name, "rt", compression="gzip", encoding="utf-8") as file:
            yield from map(json.loads, file)
