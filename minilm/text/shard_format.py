"""What a prepared folder is made of: a shard's header and the contents of meta.json. Byte by byte: docs/shards.md."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from minilm.config import check_fields
from minilm.errors import UsageError

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
KINDS: dict[tuple[int, int], np.dtype] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
"""llm.c's (magic, version) -> token type."""
UINT16_VOCAB_SIZE = 1 << 16  # a larger vocabulary needs uint32
MAX_TOKENS = 2**31 - 1  # of a shard: the count is an int32
BUFFER_TOKENS = 1 << 20  # read or written at once
INDEX_TYPE = np.dtype("<u4")
META_FORMAT = 1

T = TypeVar("T")


class Vocabulary(Protocol):
    """What of a tokenizer a shard records."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eot(self) -> int: ...


@dataclass(frozen=True)
class Header:
    """A shard's first 1,024 bytes. The last three are ours; 0 in files of other programs, whose loaders skip them."""

    kind: tuple[int, int]
    n_tokens: int
    n_documents: int = 0
    vocab_size: int = 0
    eot: int = 0

    @property
    def dtype(self) -> np.dtype:
        return KINDS[self.kind]

    def to_bytes(self) -> bytes:
        ints = np.zeros(HEADER_INTS, "<i4")
        ints[:6] = [*self.kind, self.n_tokens, self.n_documents, self.vocab_size, self.eot]
        return ints.tobytes()

    @classmethod
    def read(cls, path: Path) -> Header | None:
        """None where the file does not begin with a header of a known kind. Raises OSError."""
        with path.open("rb") as file:
            ints = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), "<i4")
        magic, version, *counts = (int(i) for i in ints[:6])
        return cls((magic, version), *counts) if (magic, version) in KINDS else None


@dataclass(frozen=True)
class ShardMeta:
    """One shard of a split."""

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class SplitMeta:
    """Exact counts of a split. bytes and words are the source text's: bits per byte and word perplexity need them."""

    tokens: int
    documents: int
    bytes: int
    words: int
    shards: tuple[ShardMeta, ...]


@dataclass(frozen=True)
class Meta:
    """meta.json."""

    name: str
    tokenizer: str
    fingerprint: str
    vocab_size: int
    eot: int
    splits: dict[str, SplitMeta]
    sources: dict[str, str] = field(default_factory=dict)  # file -> SHA-256
    licence: str = ""
    command: str = ""
    minilm: str = ""
    format: int = META_FORMAT


def write_meta(folder: str | Path, meta: Meta) -> None:
    """Writes meta.json, whole or not at all. It is the last file of a prepared folder: one that has it is whole.

    Raises OSError where the disk fails.
    """
    final = Path(folder) / "meta.json"
    partial = final.with_name("meta.json.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(meta), indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fsync(final.parent)  # the renames of the shards are on the disk before this one
        partial.replace(final)
        fsync(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def read_meta(folder: Path) -> Meta:
    """meta.json of a prepared folder. Raises UsageError where it is missing, damaged or of another format."""
    path = folder / "meta.json"
    if not path.is_file():
        found = "is no prepared folder (it has no meta.json)" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {found}: make one with `minilm data prepare` and a data set's name or your text")
    command = ""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        command = str(raw.get("command") or "")
        if raw["format"] == META_FORMAT:
            splits = {
                name: _made(SplitMeta, split | {"shards": tuple(_made(ShardMeta, shard) for shard in split["shards"])})
                for name, split in raw["splits"].items()
            }
            return _made(Meta, raw | {"splits": splits})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        again = f"rebuild the folder with `{command}`" if command else f"remove {folder} and prepare it again"
        raise UsageError(f"{path} is damaged ({error}): {again}") from None
    raise UsageError(
        f"{folder} has format {raw['format']} and this minilm reads {META_FORMAT}: rebuild it with `{command}`"
    )


def _made(cls: type[T], raw: dict[str, Any]) -> T:
    """The dataclass from its keys of `raw`; later versions may have added others."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    made = cls(**{key: value for key, value in raw.items() if key in known})
    check_fields(made)
    return made


def fsync(path: Path) -> None:
    """Puts a file, or the renames in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
