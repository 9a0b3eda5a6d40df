"""HTML to the text of its article, by trafilatura: better and faster than newspaper4k on both sets of pages with known
articles that bench/articles.py measures (docs/data.md has the figures)."""

from __future__ import annotations

from importlib.util import find_spec

from minilm.text.sources import needed


def has_articles() -> bool:
    """Whether trafilatura is installed."""
    return find_spec("trafilatura") is not None


def article_text(page: str) -> str:
    """The article of a page, a line a paragraph, without comments, tables and navigation; "" where there is none
    (Barbaresi 2021, Trafilatura)."""
    settings = {"include_comments": False, "include_tables": False, "deduplicate": False}
    return needed("trafilatura").extract(page, **settings) or ""
