"""A document too large for memory: a str by its type, its characters read from the file whenever they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

PART_CHARS = 1 << 20
LONG_BYTES = 1 << 28  # of a plain file; up to here a document is read whole


class LongText(str):
    """Characters `begin` to `end` of what `read` gives in parts. Only `len`, `parts` and `cut` know of them."""

    def __new__(cls, read: Callable[[], Iterator[str]], begin: int, end: int) -> LongText:
        made = super().__new__(cls)
        made._read, made._begin, made._end = read, begin, end
        return made

    _read: Callable[[], Iterator[str]]
    _begin: int
    _end: int
    n_bytes = n_broken = key = 0
    """Of a whole text: bytes of UTF-8, characters that did not decode, `text_key`."""

    def __len__(self) -> int:
        return self._end - self._begin

    def parts(self) -> Iterator[str]:
        place = 0
        for part in self._read():
            inside = part[max(self._begin - place, 0) : max(self._end - place, 0)]
            place += len(part)
            if inside:
                yield inside
            if place >= self._end:
                return

    def cut(self, place: int) -> tuple[LongText, LongText]:
        """What stands before and behind that place."""
        border = self._begin + place
        return LongText(self._read, self._begin, border), LongText(self._read, border, self._end)


def parts_of(text: str) -> Iterator[str]:
    """The text in parts of PART_CHARS characters or fewer, without a second copy of a long one."""
    if isinstance(text, LongText):
        yield from text.parts()
    else:
        yield from (text[i : i + PART_CHARS] for i in range(0, len(text), PART_CHARS))


def text_key(parts: Iterable[bytes]) -> int:
    """64 bits that tell texts apart, from their UTF-8."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")


def long_text(read: Callable[[], Iterator[str]]) -> LongText | None:
    """The whole text; None where there is nothing but blanks. Reads it once, for all that is to be known of it."""
    n_chars = n_bytes = n_broken = 0
    is_blank = True

    def encoded() -> Iterator[bytes]:
        nonlocal n_chars, n_bytes, n_broken, is_blank
        for part in read():
            data = part.encode()
            n_chars, n_bytes = n_chars + len(part), n_bytes + len(data)
            n_broken += part.count("\ufffd")
            is_blank = is_blank and part.isspace()
            yield data

    key = text_key(encoded())
    made = LongText(read, 0, n_chars)
    made.n_bytes, made.n_broken, made.key = n_bytes, n_broken, key
    return None if is_blank else made
