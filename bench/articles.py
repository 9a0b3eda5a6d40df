"""HTML to article text: trafilatura against newspaper4k on pages with a known article.

    python bench/articles.py FOLDER_OF_TEST_DATA

Two sets: `html_article_benchmark` (91 pages with their articles typed off) and `html_readability` (Mozilla's test pages
with Readability's own output as the answer, which favours what resembles Readability). The measure is the benchmark's:
precision and recall of 4-word shingles, averaged over pages, and their F1. Beside it MB of HTML a second on one core. A
page on which an extractor raises counts as empty.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from minilm.text.articles import article_text

WORD = re.compile(r"\w+")
TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]+>", re.DOTALL)


def newspaper(page: str) -> str:
    import newspaper

    article = newspaper.Article("http://localhost/", fetch_images=False)
    article.download(input_html=page)
    article.parse()
    return str(article.text)


EXTRACTORS: dict[str, Callable[[str], str]] = {"trafilatura": article_text, "newspaper4k": newspaper}


def shingles(text: str, n: int = 4) -> Counter[tuple[str, ...]]:
    words = WORD.findall(text)
    return Counter(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))) if words else Counter()


def score(found: str, truth: str) -> tuple[float, float]:
    """Precision and recall of one page; 1 where there is nothing to be wrong about."""
    mine, right = shingles(found), shingles(truth)
    both = (mine & right).total()
    return (both / mine.total() if mine else float(not right), both / right.total() if right else float(not mine))


def pages(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """(html, article) of each page of each set."""
    truth = json.loads((folder / "html_article_benchmark" / "ground-truth.json").read_text(encoding="utf-8"))
    zyte = folder / "html_article_benchmark" / "html"
    typed = [
        (gzip.decompress((zyte / f"{key}.html.gz").read_bytes()).decode(), page["articleBody"])
        for key, page in truth.items()
        if (zyte / f"{key}.html.gz").is_file()
    ]
    return {"html_article_benchmark": typed, "html_readability": list(readability(folder / "html_readability"))}


def readability(folder: Path) -> Iterator[tuple[str, str]]:
    import html

    for page in sorted(folder.iterdir()):
        expected = (page / "expected.html").read_text(encoding="utf-8")
        yield (page / "source.html").read_text(encoding="utf-8"), html.unescape(TAG.sub(" ", expected))


def measure(extract: Callable[[str], str], known: list[tuple[str, str]]) -> tuple[float, float, float, int]:
    """Mean precision, mean recall, MB/s, pages that gave nothing."""
    scores, empty, seconds = [], 0, 0.0
    for page, truth in known:
        start = time.process_time()
        try:
            found = extract(page)
        except Exception:
            found = ""
        seconds += time.process_time() - start
        empty += not found
        scores.append(score(found, truth))
    n_bytes = sum(len(page.encode()) for page, _ in known)
    precision, recall = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    return precision, recall, n_bytes / 1e6 / seconds, empty


def main() -> None:
    print("| set | pages | extractor | precision | recall | F1 | MB/s | empty |\n|---|---|---|---|---|---|---|---|")
    for name, known in pages(Path(sys.argv[1])).items():
        for extractor, extract in EXTRACTORS.items():
            p, r, speed, empty = measure(extract, known)
            row = (
                name,
                len(known),
                extractor,
                f"{p:.3f}",
                f"{r:.3f}",
                f"{2 * p * r / (p + r):.3f}",
                f"{speed:.1f}",
                empty,
            )
            print("|", *(f"{cell} |" for cell in row), flush=True)


if __name__ == "__main__":
    main()
