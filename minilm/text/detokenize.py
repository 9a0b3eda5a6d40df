"""Tokenised text back to plain spacing: WikiText's, Penn Treebank's, One Billion Word's, WritingPrompts' and reviews'.

Each style is what its makers' tokenizer split off, said as tokens that stick to their left, to their right or to both
neighbours. Straight quotes stick by turns. bench/detokenize.py measures how much of real text comes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

CLOSING = frozenset({",", ".", ";", ":", "!", "?", ")", "]", "}", "%", "...", "…", "’", "”"})
OPENING = frozenset({"(", "[", "{", "$", "£", "€", "#", "“", "‘"})
ENDINGS = re.compile(r"(?:n['’]t|['’](?:s|m|d|re|ve|ll))", re.IGNORECASE)
ELISION = re.compile(r"['’][A-Z]\w*")  # O 'Shea
BEFORE_ELISION = frozenset({"O", "D", "L", "M"})
NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Style:
    """joiners: tokens that become other text without blanks around. renamed: tokens that stand for others."""

    joiners: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    opening: frozenset[str] = OPENING
    closing: frozenset[str] = CLOSING
    opening_quotes: dict[str, str] = field(default_factory=dict)
    closing_quotes: dict[str, str] = field(default_factory=dict)
    ranges: bool = False
    """A dash between two numbers has no blanks."""


PTB_QUOTES, PTB_END_QUOTES = {"``": '"', "`": "'"}, {"''": '"'}
BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "\\/": "/", "\\*": "*"}
STYLES = {
    "wikitext": Style(
        joiners={"@-@": "-", "@,@": ",", "@.@": ".", "/": "/"}, ranges=True, opening=OPENING - {"#"} | {"£", "US$", "$"}
    ),
    "ptb": Style(
        renamed=BRACKETS,
        opening_quotes=PTB_QUOTES,
        closing_quotes=PTB_END_QUOTES,
        opening=OPENING | {"US$", "C$", "A$"},
    ),
    "lm1b": Style(opening_quotes=PTB_QUOTES, closing_quotes=PTB_END_QUOTES),
    "reviews": Style(opening_quotes=PTB_QUOTES, closing_quotes=PTB_END_QUOTES),
}


def detokenize(line: str, style: Style) -> str:
    """One line; blanks at its ends go."""
    out: list[str] = []
    glued = True  # no blank before the next token
    open_double = open_single = False
    tokens = [style.renamed.get(token, token) for token in line.split()]
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        after = tokens[i + 1] if i + 1 < len(tokens) else ""
        left = right = False
        if token in style.joiners:
            token, left, right = style.joiners[token], True, True
        elif token in style.opening_quotes:
            token, right = style.opening_quotes[token], True
        elif token in style.closing_quotes:
            token, left, open_double = style.closing_quotes[token], True, False
        elif token == '"':
            left, right, open_double = open_double, not open_double, not open_double
        elif token == "'":
            left = open_single or before.endswith("s") or "'" not in tokens[i + 1 :]
            right = not left
            open_single = right
        elif token in style.closing or ENDINGS.fullmatch(token):
            left = True
        elif token in style.opening:
            right = True
        elif ELISION.fullmatch(token) and before in BEFORE_ELISION:
            left = True
        elif style.ranges and token in "–-" and NUMBER.fullmatch(before) and NUMBER.fullmatch(after):
            left = right = True
        if not (glued or left):
            out.append(" ")
        out.append(token)
        glued = right
    return "".join(out)


def _by_lines(style: Style) -> Callable[[str], str]:
    return lambda text: "\n".join(detokenize(line, style) for line in text.split("\n"))


DETOKENIZERS: dict[str, Callable[[str], str]] = {name: _by_lines(style) for name, style in STYLES.items()}
"""From the name of a style to a function of a whole text, whose lines stay lines."""
