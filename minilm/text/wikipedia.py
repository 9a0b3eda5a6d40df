"""Wikipedia's dumps: articles out of a `pages-articles` XML file, MediaWiki's markup to plain text.

The XML is streamed, so memory holds one page. Markup is parsed by mwparserfromhell; what no reader of an article sees
or reads as text (references, tables, templates, galleries, files, categories, other languages) goes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from minilm.errors import MinilmError
from minilm.text.clean import chunks
from minilm.text.parallel import in_order, n_cores
from minilm.text.sources import Member, needed

DROPPED_TAGS = {"ref", "references", "table", "gallery", "timeline", "math", "chem", "score", "imagemap", "graph",
                "syntaxhighlight", "source", "mapframe", "templatestyles", "indicator"}  # fmt: skip
UNREAD = re.compile(r"^\s*:?(?:file|image|media|category|[a-z]{2,3}(?:-[a-z-]+)?|simple)\s*:", re.IGNORECASE)
LAST_SECTIONS = {"see also", "references", "external links", "further reading", "notes", "bibliography", "sources",
                 "footnotes", "citations", "notes and references", "works cited"}  # fmt: skip


def dump_articles(member: Member) -> Iterator[tuple[str, str]]:
    """(title, text) of every article: namespace 0, no redirect, not empty; the markup read by a process for each core.
    Raises MinilmError where the XML breaks."""
    groups = chunks(_pages(member))
    first = list(islice(groups, 2))
    if len(first) > 1 and n_cores() > 1:
        found = in_order("minilm.text.wikipedia:converter", None, chain(first, groups), n_cores())
    else:
        found = ((group, converter(None)(group)) for group in chain(first, groups))
    for (_, titles), texts in found:
        yield from ((title, text) for title, text in zip(titles, texts, strict=True) if text)


def converter(argument: None) -> Callable[[tuple[list[str], Any]], list[str]]:
    """The work of `dump_articles`' processes."""
    return lambda group: [markup_to_text(markup) for markup in group[0]]


def _pages(member: Member) -> Iterator[tuple[str, str]]:
    """(markup, title) of the articles."""
    from xml.etree.ElementTree import ParseError, iterparse

    with member.open() as stream:
        try:
            events = iterparse(stream, events=("start", "end"))
            _, root = next(events)
            for event, element in events:
                if event == "end" and _name(element) == "page":
                    page = {_name(child): child for child in element.iter()}
                    text = page["text"].text if "text" in page else None
                    if page["ns"].text == "0" and "redirect" not in page and text:
                        yield text, page["title"].text or ""
                    root.clear()
        except (ParseError, StopIteration) as error:
            raise MinilmError(f"{member.name} is damaged or cut short ({error}): fetch it again") from error


def markup_to_text(markup: str) -> str:
    """What a reader reads: paragraphs and headings (a line each), blank lines between, lists as lines."""
    parser = needed("mwparserfromhell")
    code = parser.parse(markup)
    # Emptied where they stand: removing a node searches the whole tree for it.
    for tag in code.ifilter_tags():
        if str(tag.tag).strip().lower() in DROPPED_TAGS:
            tag.contents = ""
    for link in code.ifilter_wikilinks():
        if UNREAD.match(str(link.title)):
            link.title, link.text = "", None
    text = code.strip_code(normalize=True, collapse=True)
    text = html.unescape(str(text)).replace("\xa0", " ")
    text = re.sub(r"'{2,}|__[A-Z]+__", "", text)
    text = re.sub(r"\(\s*[;,\s]*\)", "", text)  # brackets whose template went
    text = re.sub(r"^[ \t*#:;|!{}-]+(?=\S)|[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r" {2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", _without_last_sections(text)).strip()


def _without_last_sections(text: str) -> str:
    """Cut at the first of the closing sections, which are lists of sources and links."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if line.strip().lower() in LAST_SECTIONS and i > len(lines) // 3:
            return "\n".join(lines[:i])
    return text


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
