"""The documents of a data set that has many files, read by a process for each core.

The files are cut into parts: some files in a row, or some row groups of a parquet file. Where parts begin follows from
the files alone, and documents come in the order of the parts: how many processes there are changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from minilm.text.parallel import in_order
from minilm.text.scripts import Dataset, Document, load_dataset
from minilm.text.sources import Files, Found, needed

PART_BYTES = 1 << 23  # of text in a part of several files or row groups
HELD_BYTES = 1 << 26  # of text that a process hands over whole; a part with more is read here, streaming
FILE_BYTES = 1 << 14  # that opening a file costs as much as
WORTH_BYTES = 1 << 26  # below, starting processes takes longer than they save
MOST_READERS = 16  # bounds memory; as many read faster than documents are encoded


class Part(NamedTuple):
    files: Files
    n_bytes: int
    """Of text, about."""


Given = tuple[dict[str, Found], range | None] | None
Read = tuple[list[Document], Counter[str]]


def read(dataset: Dataset, files: Files, split: str, options: dict[str, Any], workers: int) -> Iterator[Document]:
    """All documents of a split."""
    if dataset.parts == "one":
        yield from dataset.documents(files, split, **options)
        return
    parts = list(cut(files, dataset.parts == "row_groups"))
    size = sum(part.n_bytes + FILE_BYTES * len(part.files.found) for part in parts)
    if workers < 2 or len(parts) < 2 or size < WORTH_BYTES or load_dataset(dataset.name) is not dataset:
        for part in parts:
            yield from dataset.documents(part.files, split, **options)
        return
    argument = (dataset.name, files.given, split, options)
    given = ((part.files.found, part.files.row_groups) if part.n_bytes <= HELD_BYTES else None for part in parts)
    answers = in_order("minilm.text.reading:reader", argument, given, min(workers, MOST_READERS))
    for part, (held, answer) in zip(parts, answers, strict=True):
        if held:
            files.notes.update(answer[1])
            yield from answer[0]
        else:
            yield from dataset.documents(part.files, split, **options)


def reader(argument: Any) -> Callable[[Given], Read | None]:
    """The work of `read`'s processes: a part's documents and notes."""
    name, source, split, options = argument
    dataset = load_dataset(name)

    def documents(given: Given) -> Read | None:
        if given is None:
            return None
        files = Files(source, given[0], row_groups=given[1])
        return list(dataset.documents(files, split, **options)), files.notes

    return documents


def cut(files: Files, by_row_groups: bool) -> Iterator[Part]:
    """The parts, in order."""
    some: dict[str, Found] = {}
    weight = 0
    for name, file in [*files.found.items(), ("", None)]:
        if some and (file is None or file.size > PART_BYTES or weight > PART_BYTES):
            part = replace(files, found=some)
            yield Part(part, part.text_bytes())
            some, weight = {}, 0
        if file is None:
            return
        if file.size > PART_BYTES and name.endswith(".parquet") and by_row_groups:
            for groups, n_bytes in row_groups(file):
                yield Part(replace(files, found={name: file}, row_groups=groups), n_bytes)
        else:
            some[name] = file
            weight += file.size + FILE_BYTES


def row_groups(file: Found) -> Iterator[tuple[range, int]]:
    """Of a parquet file, in runs of some PART_BYTES, with their bytes; damage is for its reader to tell."""
    arrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    try:
        about = parquet.ParquetFile(file.path).metadata
    except (arrow.ArrowInvalid, OSError):
        yield range(1), file.size
        return
    begin = size = 0
    for i in range(about.num_row_groups):
        size += about.row_group(i).total_byte_size
        if size > PART_BYTES or i == about.num_row_groups - 1:
            yield range(begin, i + 1), size
            begin, size = i + 1, 0
