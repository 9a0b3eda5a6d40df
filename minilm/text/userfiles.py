"""A user's own text: any folder, file or archive of txt, md, html, jsonl, csv (each also .gz), in whatever encoding.

One plain file is one document, or as many as a separator makes of it, the article of one html page is one; so is one
line of jsonl, one row of csv.
Line ends become "\n". What is left out (binary, empty, of another kind) is counted in `Files.notes`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from minilm.errors import UsageError
from minilm.text.articles import article_text, has_articles
from minilm.text.encodings import open_text
from minilm.text.long_text import LONG_BYTES, LongText, long_text
from minilm.text.sources import OPENERS, Files, Member

PLAIN = {"", "txt", "text", "md", "markdown", "rst", "tex", "org", "adoc"}
LINES = {"jsonl", "ndjson"}
TABLES = {"csv": ",", "tsv": "\t"}
KNOWN = {*PLAIN, *LINES, *TABLES}
PAGES = {"html", "htm", "xhtml"}
WAYS = dict.fromkeys(("doc", "docx", "epub", "mobi", "odt", "pdf", "rtf"), ": turn them into .txt first") | {
    "json": ": name one itself, or turn them into .jsonl"
}
READ_CHARS = 1 << 20
LONGEST_FIELD = 1 << 30  # characters of one csv field; Python's own limit, 131,072, is shorter than a story


def text_of(files: Files) -> Files:
    """The same without what `read_documents` skips by its ending; archives count."""
    read = {*KNOWN, *(PAGES if has_articles() else ()), *(e[1:] for e in (".zip", ".tar", ".tgz", *OPENERS))}
    kept = {name: file for name, file in files.found.items() if Path(name).suffix[1:].lower() in read}
    return files if files.given.is_file() else replace(files, found=kept)


def read_documents(files: Files, *, field: str = "", separator: str = "", encoding: str = "") -> Iterator[str]:
    """Every document, in the order of the paths. `field` names the jsonl key or csv column that holds the text (several
    with commas: of each file the first that it has), `separator` what stands between two documents of a plain file
    (backslash-n and backslash-t are understood). Raises UsageError for a line or a table that has no such field."""
    separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise UsageError(f"there is no encoding {encoding!r}: name one of Python's, such as cp1252") from error
    is_named = files.given.is_file()
    for member in files.find("*"):
        folder, _, name = member.name.rpartition("/")
        if name.startswith(".") or "__MACOSX" in folder:
            continue
        ending = name.rpartition(".")[2].lower() if "." in name else ""
        known = ending in KNOWN or (ending in PAGES and has_articles())
        as_named = is_named and "/" not in member.name and (ending not in WAYS or ending == "json")
        if not known and (ending in PAGES or not as_named):
            way = ' (pip install "minilm[data]" to have their articles)' if ending in PAGES else WAYS.get(ending, "")
            files.notes[f"files skipped, ending in .{ending}{way}"] += 1
            continue
        on_disk = files.found.get(member.name)
        is_long = ending in PLAIN and not separator and on_disk is not None and on_disk.size > LONG_BYTES
        with member.open() as stream:
            text = open_text(stream, encoding, newline="" if ending in TABLES else None)
            if text is None:
                files.notes["files skipped, binary"] += 1
                continue
            found = 0
            if is_long:
                documents = _long(files, member, encoding)
            else:
                documents = map(_sound, _documents(text, member.name, ending, field, separator))
            for document in documents:
                if isinstance(document, LongText) or (document and not document.isspace()):
                    found += 1
                    broken = document.n_broken if isinstance(document, LongText) else document.count("\ufffd")
                    if broken:
                        files.notes["characters that did not decode, read as U+FFFD"] += broken
                    yield document
            if not found:
                files.notes["files skipped, without text"] += 1
            elif not encoding and text.encoding not in ("utf-8", "utf-8-sig"):
                files.notes[f"files read as {text.encoding}"] += 1


def _long(files: Files, member: Member, encoding: str) -> Iterator[str]:
    if member.name not in files.long_texts:
        files.long_texts[member.name] = long_text(partial(_read, member, encoding))
    if found := files.long_texts[member.name]:
        yield found


def _read(member: Member, encoding: str) -> Iterator[str]:
    """The text of a file in parts."""
    with member.open() as stream:
        text = open_text(stream, encoding)
        while text and (part := text.read(READ_CHARS)):
            yield _sound(part)


def _documents(text: io.TextIOWrapper, name: str, ending: str, field: str, separator: str) -> Iterator[str]:
    if ending in LINES:
        return _jsonl(text, name, field)
    if ending == "json":
        return _json(text.read(), name, field)
    if ending in TABLES:
        return _table(text, name, field, TABLES[ending])
    if ending in PAGES:
        return iter([article_text(text.read())])
    return between_separators(text, separator) if separator else iter([text.read()])


def between_separators(text: io.TextIOWrapper, separator: str) -> Iterator[str]:
    """What stands between separators, line ends around it dropped; memory holds one document and a little more."""
    rest = ""
    while piece := text.read(max(READ_CHARS, len(rest))):  # doubling: a file without separators costs linear time
        *whole, rest = (rest + piece).split(separator)
        yield from (document.strip("\n") for document in whole)
    yield rest.strip("\n")


def _json(text: str, name: str, field: str) -> Iterator[str]:
    """An array of what jsonl has on its lines; else jsonl."""
    try:
        found = json.loads(text)
    except ValueError:
        return _jsonl(io.StringIO(text), name, field)
    return _jsonl(map(json.dumps, found if isinstance(found, list) else [found]), name, field)


def _jsonl(text: Iterable[str], name: str, field: str) -> Iterator[str]:
    chosen = ""
    for number, line in enumerate(text, 1):
        if line.isspace():
            continue
        where = f"{name} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where} is not JSON ({error}): mend or delete it") from error
        if isinstance(record, str):
            yield record
            continue
        if not isinstance(record, dict):
            raise UsageError(f'{where} is neither an object nor a string: write {{"text": "..."}}')
        chosen = chosen or _named(field, record)
        chosen = chosen or _choose(where, {key: value for key, value in record.items() if isinstance(value, str)})
        if not isinstance(value := record.get(chosen, 0), str | None):
            raise UsageError(f"{where} has no text in a field {chosen!r}: it has {_listed(record)}")
        yield (value or "").replace("\r\n", "\n")


def _table(text: io.TextIOWrapper, name: str, field: str, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(LONGEST_FIELD)
    first = text.readline()
    if ";" in first and "," not in first and delimiter == ",":
        delimiter = ";"
    rows = csv.reader(chain([first], text), delimiter=delimiter)
    columns, chosen = next(rows, []), -1
    named = _named(field, columns)
    if named and named not in columns:
        raise UsageError(
            f"{name} has no column {named!r}: its first line names {_listed(columns)} (is that text? "
            f"then put a line of column names before it)"
        )
    try:
        for row in rows:
            where = f"{name} line {rows.line_num}"
            if chosen < 0 and row:
                texts = {key: value for key, value in zip(columns, row, strict=False) if not _is_number(value)}
                chosen = columns.index(named or _choose(where, texts))
            if row and len(row) <= chosen:
                raise UsageError(f"{where} has {len(row)} columns instead of {len(columns)}: mend or delete it")
            if row:
                yield row[chosen].replace("\r\n", "\n")
    except csv.Error as error:
        raise UsageError(f"{name} line {rows.line_num} is not csv ({error}): mend or delete it") from error


def _named(field: str, known: Collection[str]) -> str:
    """The name that was given, or of several the first that is known."""
    return field if field in known else next((name for name in field.split(",") if name in known), field)


def _choose(where: str, texts: dict[str, str]) -> str:
    """The field that holds the text: `text`, or the only one."""
    if "text" in texts:
        return "text"
    if len(texts) != 1:
        known = f"its text fields: {_listed(texts)}" if texts else "no other field holds text"
        raise UsageError(f"{where} has no field 'text' ({known}): name the right one with --field")
    return next(iter(texts))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name[:40] for name in names) or "none"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return not value
    return True


def _sound(text: str) -> str:
    """Lone halves of UTF-16 pairs (JSON can spell them) become U+FFFD: no tokenizer can encode them."""
    if text.isascii():
        return text
    try:
        text.encode()  # twice as fast as a search
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
