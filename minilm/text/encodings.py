"""Which encoding a text file is in. Its first 4 MB decide, by this rule, in order:

1. A byte order mark decides.
2. Zero bytes: UTF-16 where nearly all sit at even or nearly all at odd places and it reads as text with blanks and
   without control characters; otherwise the file is binary, as it is where more than one byte in 50 is a control.
3. Valid UTF-8 is UTF-8, and so is a file where nine of ten characters beyond ASCII are valid.
4. charset-normalizer guesses from up to 64 kB of the lines concerned. Where it hears a Western European language, or
   nothing, or has too little to go by, the answer is Windows-1252 (Latin-1 where a byte has no meaning there): between
   Western code pages it tosses a coin, and Windows-1252 is by far the most frequent.

What then does not decode reads as U+FFFD, which `prepare` counts and reports. A test holds the rule against real text
in 17 encodings.
"""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

WINDOW_BYTES = 1 << 22
SAMPLE_BYTES = 1 << 16
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))
WESTERN = {"Danish", "Dutch", "English", "Estonian", "Finnish", "French", "German", "Italian", "Norwegian",
           "Portuguese", "Spanish", "Swedish", "Unknown"}  # fmt: skip


def open_text(stream: BinaryIO, encoding: str = "", newline: str | None = None) -> io.TextIOWrapper | None:
    """The stream as text in the given encoding or the detected one; None where it is binary. `newline` as in open()."""
    head = stream.read(WINDOW_BYTES)
    found = encoding or detect(head)
    if found is None:
        return None
    raw = io.BytesIO(head) if len(head) < WINDOW_BYTES else io.BufferedReader(_Joined(head, stream), SAMPLE_BYTES)
    return io.TextIOWrapper(raw, found, errors="replace", newline=newline)


class _Joined(io.RawIOBase):
    """What was read already, then the rest of its stream."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = io.BytesIO(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        return self._head.readinto(buffer) or cast(io.BufferedIOBase, self._rest).readinto(buffer)


def detect(window: bytes) -> str | None:
    """The encoding's name for Python, or None for a binary file, from its first bytes (all, or WINDOW_BYTES)."""
    for mark, name in MARKS:
        if window.startswith(mark):
            return name
    if b"\0" in window:
        return _utf16(window)
    if len(window) - len(window.translate(None, CONTROLS)) > len(window) / 50:
        return None
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(window, final=len(window) < WINDOW_BYTES)
    bad = text.count("\ufffd") - window.count("\ufffd".encode())
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return "utf-8" if bad * 10 <= beyond_ascii else guess(window)


def guess(window: bytes) -> str:
    """Rule 4, for bytes that are not UTF-8."""
    from charset_normalizer import from_bytes

    lines = [line for line in window.splitlines(keepends=True) if not line.isascii()]
    sample = b"".join(lines)[:SAMPLE_BYTES]
    beyond_ascii = len(sample) - len(sample.decode("ascii", "ignore"))
    too_little = beyond_ascii < 32 and beyond_ascii < len(sample) / 2
    best = None if too_little else from_bytes(sample).best()
    if best is None or best.language in WESTERN:
        try:
            window.decode("cp1252")
        except UnicodeDecodeError:
            return "latin-1"
        return "cp1252"
    return best.encoding


def _utf16(window: bytes) -> str | None:
    even, odd = window[0::2].count(0), window[1::2].count(0)
    if min(even, odd) > max(even, odd) / 20:
        return None
    name = "utf-16-le" if odd > even else "utf-16-be"
    text = codecs.getincrementaldecoder(name)("replace").decode(window)
    blanks = sum(map(text.count, " \n\u3000"))
    strange = text.count("\ufffd") + len(text) - len(text.translate(dict.fromkeys(CONTROLS)))
    return name if blanks > len(text) / 100 > 5 * strange else None
