"""MB of text a second on one core, of every stage between a download and the tokenizer; the slowest is named.

    python bench/cleaning.py FOLDER_OF_TEST_DATA [--write]

Seconds are the processor's, so that what else the machine does counts little. --write: into docs/data.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from pages import ROOT, put, told, where

from minilm.text.articles import article_text
from minilm.text.clean import make_cleaner
from minilm.text.detokenize import DETOKENIZERS
from minilm.text.gutenberg import strip_boilerplate
from minilm.text.sources import Files
from minilm.text.wikipedia import _pages, markup_to_text


def main() -> None:
    folder = Path(sys.argv[1])
    wiki = (folder / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8")
    pages = [path.read_text(encoding="utf-8") for path in sorted((folder / "html_readability").glob("*/source.html"))]
    books = [path.read_text(encoding="utf-8-sig") for path in sorted((folder / "gutenberg").glob("*.txt"))]
    texts = [book[i : i + 4000] for book in books for i in range(0, len(book), 4000)]  # as long as web pages
    stages: dict[str, tuple[Callable[[str], object], list[str]]] = {
        "HTML to article (trafilatura)": (article_text, pages),
        "Gutenberg's boilerplate": (strip_boilerplate, books),
        "detokenizing (wikitext)": (DETOKENIZERS["wikitext"], wiki.splitlines()),
    }
    for step in ("repair", "language:en:0.5", "duplicates", "near_duplicates:0.7"):
        stages[step] = make_cleaner(step).clean, texts
    speeds: dict[str, float] = {}
    for name, (stage, inputs) in stages.items():
        start = time.process_time()
        for text in inputs:
            stage(text)
        speeds[name] = sum(len(text.encode()) for text in inputs) / 1e6 / (time.process_time() - start)
    (dump,) = Files.at(folder / "wikipedia").find("*")
    start = time.process_time()
    n_bytes = sum(len(markup_to_text(markup).encode()) for markup, _ in islice(_pages(dump), 30))
    speeds["Wikipedia dump to text (MB of text)"] = n_bytes / 1e6 / (time.process_time() - start)
    lines = [
        f"`python bench/cleaning.py`, {told(where())}; seconds are the processor's, and up to a third more "
        f"beside other work.\n"
    ]
    lines += ["| stage | MB/s on one core |", "|---|---|"]
    lines += [f"| {name} | {speed:.2f} |" for name, speed in sorted(speeds.items(), key=lambda item: item[1])]
    first, second = sorted(speeds, key=lambda name: speeds[name])[:2]
    lines += [f"\nThe slowest is {first}, then {second}; each runs once, when the folder is prepared, on all cores."]
    text = "\n".join(lines)
    print(text)
    if "--write" in sys.argv[2:]:
        put(ROOT / "docs" / "data.md", "How fast cleaning is", text)


if __name__ == "__main__":
    main()
