"""Upstream's file formats turned into documents, character for character."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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
