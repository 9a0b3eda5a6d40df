"""Upstream's file formats turned into documents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from minilm.text.records import lines, records
from minilm.text.sources import Files, Member

HEADING = re.compile(r"\s*= (?!=)\S.*(?<!=) =\s*")


def wikitext_articles(lines: Iterable[str]) -> Iterator[str]:
    """Articles of a WikiText file (Merity 2016), each from its heading ` = Title = ` to the next one. Together they are
    the file, its blank first line included. A heading stands alone between blank lines; ` = = Name = = ` is not one.
    """
    article: list[str] = []
    started = False  # a heading was seen
    before, heading = "", ""  # the line above; a line that will be a heading if a blank one follows
    for line in lines:
        if heading:
            if not line.strip():
                if started:
                    yield "".join(article)
                    article = []
                started = True
            article.append(heading)
            heading = ""
        if HEADING.fullmatch(line) and not before.strip():
            heading = line
        else:
            article.append(line)
        before = line
    article.append(heading)
    if any(article):
        yield "".join(article)


def wikitext_files(files: Files, split: str, form: str) -> Iterator[str]:
    """Articles of a split, from WikiText's own files (`form` raw or tokenized) or the Hub's parquet of their lines, in
    which a blank line is an empty row."""
    name = "valid" if split == "val" else split
    for file in files.find(f"wiki.{name}.{'raw' if form == 'raw' else 'tokens'}"):
        yield from wikitext_articles(file.lines())
    hub = f"wikitext-*-{'raw-' if form == 'raw' else ''}v1/{'validation' if split == 'val' else split}-*.parquet"
    yield from wikitext_articles(row["text"] or " \n" for row in records(files, hub, columns=("text",)))


def portion(stream: BinaryIO, split: str, sizes: tuple[int, int, int]) -> str:
    """The split's part of one long file, cut by bytes into train, val and test: `sizes`, or the same shares of a file
    that is shorter. A character that a border would cut belongs to the later part."""
    with stream:
        data = stream.read(sum(sizes))
    shares = [sum(sizes[:i]) * len(data) // sum(sizes) for i in range(4)]
    i = ("train", "val", "test").index(split)
    begin, end = (_character_start(data, place) for place in shares[i : i + 2])
    return data[begin:end].decode(errors="replace")


def _character_start(data: bytes, place: int) -> int:
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def news_story(text: str, highlights: bool) -> str:
    """A .story file of CNN/DailyMail: the article, then its highlights behind "TL;DR:", a line each."""
    article, *points = re.split(r"\n\s*@highlight\s*\n", text.replace("\r\n", "\n"))
    summary = "\n".join(point.strip() for point in points if point.strip())
    return f"{article.strip()}\n\nTL;DR:\n{summary}" if highlights and summary else article.strip()


def listed_files(files: Files, listing: str, ending: str) -> Iterator[Member]:
    """CNN/DailyMail's files of a split: each is named after the SHA-1 of its address; `listing` has the addresses."""
    names = {hashlib.sha1(line.encode()).hexdigest() for line in lines(files, listing) if line}
    for file in files.find(f"*{ending}"):
        if file.name.rpartition("/")[2].removesuffix(ending) in names:
            yield file


PROMPT_TAG = re.compile(r"\[ ?(\w+) ?\]")


def prompt_tag(prompt: str) -> str:
    """The first tag of a WritingPrompts prompt: "[ WP ] A dragon ..." -> "wp"; "" where there is none."""
    found = PROMPT_TAG.match(prompt)
    return found[1].lower() if found else ""


SMALL_WORDS = "and|or|of|the|a|an|in|on|to|his|her|who|with|from|for|at|by"
TITLE = re.compile(rf"[A-Z][\w'’-]*(?:,? (?:[A-Z][\w'’-]*|{SMALL_WORDS}))*")
SECTION = re.compile(r"SECTION \d+")


def titled_sections(text: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(title, text) of a file in which a title is a line of capitalised words that follows the end of a sentence.
    Wrapped lines are joined; a line "SECTION n" is left out."""
    title, ended = "", True
    body: list[str] = []
    for line in (line.strip() for line in text):
        if SECTION.fullmatch(line) or not line:
            continue
        if ended and TITLE.fullmatch(line) and len(line) < 60:
            if title and body:
                yield title, " ".join(body)
            title, body = line, []
        else:
            body.append(line)
        ended = line[-1] in ".!?\"'”’"
    if title and body:
        yield title, " ".join(body)


FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
IMAGE = re.compile(r"^!\[[^\]]*\]\([^)]*\)[ \t]*\n?", re.MULTILINE)


def markdown_page(text: str) -> str:
    """A page of a static site: its front matter's title as a heading, the rest without pictures."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    front = FRONT_MATTER.match(text)
    title = re.search(r"^title:\s*[\"']?(.*?)[\"']?\s*$", front[1], re.MULTILINE) if front else None
    body = IMAGE.sub("", text[front.end() :] if front else text)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return f"# {title[1]}\n\n{body}" if title else body
