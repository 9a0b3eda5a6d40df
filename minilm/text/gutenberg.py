"""Project Gutenberg: choosing books from its catalogue, fetching them politely, stripping what is not the book."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from minilm.errors import UsageError
from minilm.text.download import Source, download
from minilm.text.folders import data_folder
from minilm.text.records import records
from minilm.text.sources import Files, Member

CATALOGUE = "pg_catalog.csv"
CATALOGUE_URL = f"https://www.gutenberg.org/cache/epub/feeds/{CATALOGUE}"
BOOK_URL = "https://www.gutenberg.org/cache/epub/{id}/pg{id}.txt"
PAUSE_SECONDS = 2.0  # what gutenberg.org asks of programs
BOOK_NAMES = ("pg*.txt", "[0-9]*.txt")
BOOK_NUMBER = re.compile(r"(?:pg)?(\d+)(?:-\d+)?\.txt")


@dataclass(frozen=True)
class Book:
    id: int
    title: str = ""
    author: str = ""
    language: str = ""


def book_sources(author: str, language: str, ids: str) -> list[Source]:
    """The catalogue and every chosen book; the catalogue is fetched first. Raises UsageError where none is chosen."""
    folder = data_folder() / "downloads" / "gutenberg"
    catalogue = Source(CATALOGUE_URL, pause_seconds=PAUSE_SECONDS)
    found = download(catalogue, folder)
    books = choose(read_catalogue(Files(folder, {CATALOGUE: found})), author, language, ids)
    if not books:
        raise UsageError(f"the catalogue has no book of author {author!r}, language {language!r}, ids {ids!r}")
    return [catalogue, *(Source(BOOK_URL.format(id=book.id), pause_seconds=PAUSE_SECONDS) for book in books)]


def chosen_books(files: Files, author: str, language: str, ids: str) -> Iterator[tuple[Member, Book]]:
    """The files of the chosen books. Without a catalogue all languages are taken; then a choice by author raises
    UsageError."""
    catalogue = read_catalogue(files)
    if author and not catalogue:
        raise UsageError(f"{files.given} has no {CATALOGUE}: put it there to choose by author, or name --ids")
    books = {book.id: book for book in choose(catalogue, author, language, ids)}
    wanted = set(_numbers(ids))
    for member in files.find(*BOOK_NAMES):
        number = BOOK_NUMBER.fullmatch(member.name.rpartition("/")[2])
        if number is None:
            continue
        book = books.get(int(number[1]), None if catalogue else Book(int(number[1])))
        if book and (not wanted or book.id in wanted):
            yield member, book


def read_catalogue(files: Files) -> list[Book]:
    """Its texts (Text#, Type, Issued, Title, Language, Authors, ...); empty where there is no catalogue."""
    return [
        Book(int(row["Text#"]), row["Title"], row["Authors"], row["Language"])
        for row in records(files, CATALOGUE)
        if row["Type"] == "Text"
    ]


def choose(books: list[Book], author: str, language: str, ids: str) -> list[Book]:
    """Those whose author holds the given words ("austen", "Austen, Jane"), in the language ("en"; "" for all), or of
    the given numbers, whatever their language."""
    wanted, words = set(_numbers(ids)), author.lower().split()
    return [
        book
        for book in books
        if (book.id in wanted if wanted else not language or language in book.language.split("; "))
        and all(word in book.author.lower() for word in words)
    ]


def _numbers(ids: str) -> list[int]:
    try:
        return [int(number) for number in ids.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"ids are numbers with commas, such as 84,1342, not {ids!r}") from error


# What is not the book. Wordings since 1971: "***START OF THE PROJECT GUTENBERG EBOOK X***", "*** START OF THIS ...",
# "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*" (until about 2004), French and German headers in
# some; at the end "*** END OF ...", "End of (the) Project Gutenberg('s) (EBook of) ...", "End of this Etext".
START = re.compile(
    r"^[ \t]*(?:\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*(?:\n(?!\s*\n)[^\n]*)*?\*\*\*"
    r"|\*END\*? ?THE SMALL PRINT!?[^\n]*"
    r")[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
END = re.compile(
    r"^[ \t]*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|(?:\*{3} ?)?(?:This is the )?End of (?:the |this )?(?:Project Gutenberg(?:'s|’s)?|PG)\b"
    r"|End of (?:the|this) (?:Etext|E-text|EBook)\b"
    r"|\*\*\* ?START: FULL LICENSE)",
    re.MULTILINE | re.IGNORECASE,
)
CREDIT = re.compile(
    r"\A\s*(?:(?:This )?(?:E-?text|E-?book|Html|Text) (?:was )?(?:prepared|produced|created|transcribed|typed)|"
    r"Produced|Transcribed|Prepared|Scanned|Proofed|Digitized|Credits:)\b[^\n]*(?:\n(?!\s*\n)[^\n]*)*\n",
    re.IGNORECASE,
)
HEADER_CHARS = 40_000  # the longest small print
HEADER_SHARE = 0.75  # a mark further down belongs to the book


def strip_boilerplate(text: str) -> str:
    """The book alone, its lines ending in "\\n", without byte order mark, header, credits, licence and footer. A text
    without any known mark is returned whole."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    starts = [mark.end() for mark in START.finditer(text, 0, HEADER_CHARS)]
    begin = starts[-1] if starts and starts[-1] < HEADER_SHARE * len(text) else 0
    end = next((mark.start() for mark in END.finditer(text, begin)), len(text))
    body = text[begin:end]
    while begin and (credit := CREDIT.match(body)):
        body = body[credit.end() :]
    return body.strip("\n").rstrip()
