"""Which documents validate, where the data does not say.

By the hash of the text: the choice depends on nothing else, not on names, order or machine, and two equal documents
never end up on both sides. One tenth of the text, and of a large corpus as much less as leaves 5 MB, but never less
than 0.5 %. A corpus of one document is cut inside, at the paragraph border nearest to nine tenths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from minilm.errors import UsageError
from minilm.text.long_text import LongText, text_key

SHARE, ENOUGH_BYTES, LEAST_SHARE = 0.1, 5e6, 0.005
EXACT_DOCUMENTS = 100_000  # up to here the documents are chosen one by one; beyond, chance is exact enough


@dataclass(frozen=True)
class Holdout:
    """The choice for one corpus. `chosen` None: by threshold. `cut`: all documents are the same text."""

    text_bytes: int
    n_documents: int
    chosen: frozenset[int] | None
    threshold: float
    cut: bool

    def split(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(split, document) for each document, or for both parts of one that is cut."""
        for text in texts:
            if self.cut and isinstance(text, LongText):
                tail = text.cut(len(text) * 9 // 10)[1]
                window = "".join(islice(tail.parts(), 2))
                before, after = text.cut(len(text) - len(tail) + paragraph_border(window, len(window) // 2))
                yield "train", before
                yield "val", after
            elif self.cut:
                border = paragraph_border(text)
                yield "train", text[:border]
                yield "val", text[border:]
            else:
                key = _hash(text)
                held = key in self.chosen if self.chosen is not None else key < self.threshold
                yield ("val" if held else "train"), text


def choose(texts: Iterable[str]) -> Holdout:
    """Reads the corpus once."""
    sizes: dict[int, int] = {}
    n_documents = text_bytes = 0
    for text in texts:
        size = text.n_bytes if isinstance(text, LongText) else len(text) if text.isascii() else len(text.encode())
        n_documents += 1
        text_bytes += size
        if len(sizes) <= EXACT_DOCUMENTS:
            key = _hash(text)
            sizes[key] = sizes.get(key, 0) + size
    share = min(SHARE, max(LEAST_SHARE, ENOUGH_BYTES / max(text_bytes, 1)))
    exact = len(sizes) <= EXACT_DOCUMENTS
    chosen = _smallest_hashes(sizes, share * text_bytes) if exact else None
    return Holdout(text_bytes, n_documents, chosen, share * 2**64, cut=len(sizes) == 1)


def _smallest_hashes(sizes: dict[int, int], wanted_bytes: float) -> frozenset[int]:
    """Documents in the order of their hashes until there is enough, passing over those that are much too long."""
    chosen, have = set(), 0
    for key in sorted(sizes):
        if have + sizes[key] <= 1.5 * wanted_bytes:
            chosen.add(key)
            have += sizes[key]
        if have >= wanted_bytes:
            break
    return frozenset(chosen or sorted(sizes, key=lambda key: (sizes[key], key))[:1])


def paragraph_border(text: str, aim: int = 0) -> int:
    """Where the last tenth begins: after the blank line nearest to nine tenths (to `aim`), else the line, the sentence,
    the word. Raises UsageError where the text is too short to have two parts."""
    slack = len(text) // (2 if aim else 10)
    aim = aim or len(text) * 9 // 10
    for mark in ("\n\n", "\n", ". ", " "):
        before, after = text.rfind(mark, aim - slack, aim), text.find(mark, aim, aim + slack)
        borders = [place + len(mark) for place in (before, after) if place >= 0]
        borders = [place for place in borders if text[:place].strip() and text[place:].strip()]
        if borders:
            return min(borders, key=lambda place: abs(place - aim))
    if len(text) >= 20:  # a script without spaces
        return aim
    raise UsageError(f"the only document ({len(text)} characters) is too short to be split: add text")


def _hash(text: str) -> int:
    return text.key if isinstance(text, LongText) else text_key([text.encode()])
