"""Readers that many data scripts share: rows of parquet, jsonl and csv, lines, documents between separators.

Bytes that do not decode read as U+FFFD, which `Files.notes` counts. Nothing but one row group of a parquet file, one
line, one row or one document is in memory at a time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from minilm.errors import MinilmError, UsageError
from minilm.text.sources import Files, Member, needed
from minilm.text.userfiles import LONGEST_FIELD, between_separators

BROKEN = "\ufffd"
PARQUET_ROWS = 1024


class Row(dict[str, Any]):
    """Fields by name; null is "". Raises UsageError for a field that the row lacks."""

    def __init__(self, found: dict[str, Any], file: str) -> None:
        super().__init__((name, "" if value is None else value) for name, value in found.items())
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise UsageError(
            f"a row of {self.file} has no field {name!r}, it has {', '.join(self) or 'none'}: give the data set in its "
            f"original form"
        )


def records(files: Files, *patterns: str, columns: Sequence[str] = (), has_header: bool = True) -> Iterator[Row]:
    """Rows of every file that matches, as dicts. `columns`: those of a parquet file to read (all), or the names of a
    csv's columns where it has no header. Raises UsageError for a file of another kind or a row that is broken."""
    for member in files.find(*patterns):
        yield from rows(files, member, columns=columns, has_header=has_header)


def rows(files: Files, member: Member, *, columns: Sequence[str] = (), has_header: bool = True) -> Iterator[Row]:
    """Rows of one file: as `records`."""
    ending = member.name.rpartition(".")[2].lower()
    if ending not in READERS:
        raise UsageError(f"{member.name} is none of {', '.join(READERS)}: name another file")
    for row in READERS[ending](files, member, columns, has_header):
        yield Row(row, member.name)


def lines(files: Files, *patterns: str) -> Iterator[str]:
    """Lines of every file that matches, without their ends."""
    for member in files.find(*patterns):
        for line in member.lines(errors="replace"):
            yield counted(files, line.rstrip("\r\n"))


def whole(files: Files, member: Member) -> str:
    """The file as one text, line ends as they are."""
    return counted(files, "".join(member.lines(errors="replace")))


def separated(files: Files, member: Member, separator: str) -> Iterator[str]:
    """What stands between separators, line ends around it dropped."""
    for document in between_separators(_text(member), separator):
        yield counted(files, document)


def joined(texts: Iterator[str], n: int) -> Iterator[str]:
    """Every n texts as the lines of one."""
    while some := list(islice(texts, n)):
        yield "\n".join(some)


def counted(files: Files, text: str) -> str:
    if broken := text.count(BROKEN):
        files.notes["characters that did not decode, read as U+FFFD"] += broken
    return text


def _text(member: Member, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(member.open(), "utf-8-sig", "replace", newline=newline)


def _jsonl(files: Files, member: Member, columns: Sequence[str], has_header: bool) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(member), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(counted(files, line))
        except ValueError as error:
            raise UsageError(f"{member.name} line {number} is not JSON ({error}): fetch the file again") from error
        if not isinstance(row, dict):
            raise UsageError(f"{member.name} line {number} is no JSON object: fetch the file again")
        yield row


def _csv(files: Files, member: Member, columns: Sequence[str], has_header: bool) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(_text(member, newline=""))
    try:
        names = next(reader, []) if has_header else list(columns)
        for row in reader:
            if len(row) != len(names):
                if row:
                    files.notes[f"rows of {member.name} dropped, not of {len(names)} columns"] += 1
                continue
            yield dict(zip(names, (counted(files, value) for value in row), strict=True))
    except csv.Error as error:
        raise UsageError(f"{member.name} line {reader.line_num} is not csv ({error}): fetch the file again") from error


def _parquet(files: Files, member: Member, columns: Sequence[str], has_header: bool) -> Iterator[dict[str, Any]]:
    """A parquet file's directory stands at its end: one on disk is read in place, one in an archive through memory."""
    arrow = needed("pyarrow")
    parquet = needed("pyarrow.parquet")
    stream: Any = member.open()
    try:
        file = parquet.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()), memory_map=False)
        known = set(file.schema_arrow.names)
        if missing := [name for name in columns if name not in known]:
            raise UsageError(f"{member.name} has no column {missing[0]!r}: it has {', '.join(sorted(known))}")
        groups = None if files.row_groups is None else list(files.row_groups)
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups, columns=list(columns) or None):
            yield from batch.to_pylist()
    except (arrow.ArrowInvalid, OSError) as error:
        raise MinilmError(f"{member.name} is damaged or cut short ({error}): fetch it again") from error


READERS: dict[str, Callable[[Files, Member, Sequence[str], bool], Iterator[dict[str, Any]]]] = {
    "jsonl": _jsonl,
    "json": _jsonl,  # McAuley's .json.gz has one object on a line
    "csv": _csv,
    "parquet": _parquet,
}
