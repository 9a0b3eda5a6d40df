"""Files read where they lie, in folders and archives alike.

Nothing is unpacked to disk: zip, tar, gz, bz2, xz and zst are read in place, one member at a time, archives in archives
too. A member's name that leads out of its archive is refused, and so is an archive that unpacks to over UNPACKED_TIMES
its size.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import hashlib
import io
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, NamedTuple, cast

from minilm.errors import MinilmError, UsageError
from minilm.text.long_text import LongText

OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda stream: cast(BinaryIO, gzip.GzipFile(fileobj=stream)),
    ".bz2": lambda stream: cast(BinaryIO, bz2.BZ2File(stream)),
    ".xz": lambda stream: cast(BinaryIO, lzma.LZMAFile(stream)),  # noqa: SIM115
    ".zst": lambda stream: cast(BinaryIO, io.BufferedReader(_Zstd(stream), READ_BYTES)),
}
TAR_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNPACKED_TIMES, UNPACKED_BYTES = 200, 1 << 30
"""Of text, compressors make a tenth; of a zip bomb a thousandth. Under a gibibyte nothing is refused."""
READ_BYTES = 1 << 17  # asked of a decompressor at once: each call costs some microseconds
NESTED_ZIP_BYTES = 1 << 28  # a zip inside an archive is held in memory: its directory stands at its end
TAR_MARK = slice(257, 262)  # "ustar" (POSIX.1-1988)
LEADS_OUT = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One file, on disk or in an archive. Of a tar's members, only the latest can be opened."""

    name: str
    """Path inside the source, with slashes and without a compression's ending."""
    open: Callable[[], BinaryIO]
    """A stream of its bytes, decompressed."""

    def text(self, encoding: str = "utf-8") -> str:
        return "".join(self.lines(encoding))

    def lines(self, encoding: str = "utf-8", errors: str = "strict") -> Iterator[str]:
        """Lines with their "\\n", "\\r" left where it is. Raises UsageError where the bytes are not of `encoding`."""
        with self.open() as stream:
            try:
                yield from io.TextIOWrapper(stream, encoding, errors, newline="\n")
            except UnicodeDecodeError as error:
                raise UsageError(f"{self.name} is not text in {encoding}: {error.reason}") from error


class Found(NamedTuple):
    """A file on disk as it was when it was listed."""

    path: Path
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Files:
    """The files a data set is read from: downloads, or the user's copy (a file, a folder, an archive)."""

    given: Path
    """The file or folder that was named."""
    found: dict[str, Found] = field(default_factory=dict)
    """Every file by its path inside what was given, with slashes."""
    notes: Counter[str] = field(default_factory=Counter)
    """What a reader left out or had to guess, with how often: reported when all is read."""
    long_texts: dict[str, LongText | None] = field(default_factory=dict)
    """Those among the files that are too large for memory, once they were read."""
    row_groups: range | None = None
    """Of a single parquet file, where only these are to be read."""

    @classmethod
    def at(cls, path: Path) -> Files:
        """Everything at `path`. Raises UsageError where nothing is there or something cannot be read."""
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        return cls(path, dict(walk(path)))

    def find(self, *patterns: str) -> Iterator[Member]:
        """Members whose path or a tail of it matches one of the patterns (`*.csv`, `train/pos/*.txt`), in order."""
        for name, file in self.found.items():
            with naming_damage(file.path):
                for member in _members(file.path, name):
                    if any(fnmatch.fnmatchcase(f"/{member.name}", f"*/{pattern}") for pattern in patterns):
                        yield member

    def stat_key(self) -> str:
        """Changes with any file's name, size or time; costs no reading."""
        return digest({name: f"{file.size} {file.mtime_ns}" for name, file in self.found.items()})

    def sha256s(self) -> dict[str, str]:
        """Of each file, by its name: their digest changes with any name or content, and with nothing else."""
        return {name: file_sha256(file.path) for name, file in self.found.items()}

    def text_bytes(self) -> int:
        """About how many bytes of text they hold: exact for plain files and zips, else compressed size times four."""
        total = 0
        for path, size, _ in self.found.values():
            if path.suffix == ".zip":
                with naming_damage(path), zipfile.ZipFile(path) as archive:
                    total += sum(info.file_size for info in archive.infolist())
            else:
                total += size * (4 if path.suffix in {*OPENERS, ".tgz"} else 1)
        return total


def walk(path: Path) -> Iterator[tuple[str, Found]]:
    """The file itself, or every file below a folder in the order of its path; hidden ones left out, each only once
    whatever links lead to it. Raises UsageError where a folder cannot be listed."""
    seen: set[tuple[int, int]] = set()

    def visit(name: str, here: str) -> Iterator[tuple[str, Found]]:
        try:
            stat = os.stat(here)
            folder = S_ISDIR(stat.st_mode)
            children = sorted(os.listdir(here)) if folder else []
        except FileNotFoundError:
            return  # a link to nowhere
        except OSError as error:
            raise UsageError(f"{here} cannot be read ({error.strerror}): change its rights or move it away") from error
        if stat.st_ino and (stat.st_dev, stat.st_ino) in seen:  # file systems without inodes give 0
            return
        seen.add((stat.st_dev, stat.st_ino))
        if S_ISREG(stat.st_mode):
            yield name, Found(Path(here), stat.st_size, stat.st_mtime_ns)
        for child in children:
            if not child.startswith("."):
                yield from visit(f"{name}/{child}" if name else child, os.path.join(here, child))

    yield from visit("" if path.is_dir() else path.name, str(path))


def _members(path: Path, name: str) -> Iterator[Member]:
    guard = _Guard(path)
    if name.lower().endswith((".zip", *TAR_ENDINGS)):
        yield from _archived(guard, name, path.open("rb"))
    elif name.lower().endswith(tuple(OPENERS)):
        yield _packed(guard, name, partial(_open, path))
    else:
        yield Member(name, partial(_open, path))


def _archived(guard: _Guard, name: str, stream: BinaryIO) -> Iterator[Member]:
    """The members of an archive, and of archives among them."""
    with stream:
        if name.lower().endswith(".zip"):
            with zipfile.ZipFile(stream) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        yield from _inner(guard, info.filename, partial(archive.open, info))
        else:
            # A stream: seeking back in a compressed tar would start it over.
            unpacked = OPENERS[".zst"](stream) if name.lower().endswith(".zst") else stream
            with tarfile.open(fileobj=unpacked, mode="r|*") as tar:
                for entry in tar:
                    if entry.isfile():
                        yield from _inner(guard, entry.name, partial(tar.extractfile, entry))


def _inner(guard: _Guard, name: str, open_: Callable[[], Any]) -> Iterator[Member]:
    if LEADS_OUT.search(name):
        raise UsageError(f"{guard.path} holds a member {name!r} that leads out of it: do not trust this archive")
    lower = name.lower()
    if lower.endswith(".zip"):
        data = io.BufferedReader(_Packed(guard, open_)).read(NESTED_ZIP_BYTES + 1)
        if len(data) > NESTED_ZIP_BYTES:
            raise UsageError(f"{guard.path} holds a large zip, {name}: unpack it yourself and name the folder")
        yield from _archived(guard, lower, io.BytesIO(data))
    elif lower.endswith(TAR_ENDINGS):
        yield from _archived(guard, lower, io.BufferedReader(_Packed(guard, open_), READ_BYTES))
    elif lower.endswith(tuple(OPENERS)):
        member = _packed(guard, name, open_)
        stream = cast(io.BufferedReader, member.open())
        if stream.peek(512)[TAR_MARK] == b"ustar":  # OpenWebText's parts are tars called .xz
            yield from _archived(guard, "tar", stream)
        else:
            opened = [stream]  # in a tar there is no second try: what was peeked at is what is read
            yield Member(member.name, lambda: opened.pop() if opened else member.open())
    else:
        yield _packed(guard, name, open_)


def _packed(guard: _Guard, name: str, open_: Callable[[], Any]) -> Member:
    stem, dot, ending = name.rpartition(".")
    if opener := OPENERS.get(f"{dot}{ending}".lower()):
        return Member(stem, lambda: io.BufferedReader(_Packed(guard, lambda: opener(open_())), READ_BYTES))
    return Member(name, lambda: io.BufferedReader(_Packed(guard, open_), READ_BYTES))


class _Guard:
    """Counts what comes out of one archive and refuses it when that is out of all proportion."""

    def __init__(self, path: Path) -> None:
        self.path, self.unpacked = path, 0
        self.limit = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)

    def count(self, n_bytes: int) -> None:
        self.unpacked += n_bytes
        if self.unpacked > self.limit:
            raise UsageError(
                f"{self.path} unpacks to more than {self.limit / 1e9:.1f} GB, over {UNPACKED_TIMES} times its size (a "
                f"zip bomb?): unpack it yourself and name the folder, if you trust it"
            )


class _Packed(io.RawIOBase):
    """A stream that names its archive when it turns out to be damaged."""

    def __init__(self, guard: _Guard, open_: Callable[[], BinaryIO]) -> None:
        self._guard = guard
        with naming_damage(guard.path):
            self._stream = open_()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with naming_damage(self._guard.path):
            data = self._stream.read(len(buffer))
        self._guard.count(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Zstd(io.RawIOBase):
    """Zstandard frames in a row (RFC 8878). Raises EOFError where the last one is cut short."""

    def __init__(self, stream: BinaryIO) -> None:
        needed("zstandard")
        self._stream = stream
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = (self._frame.unused_data if self._frame and self._frame.eof else b"") or self._stream.read(1 << 16)
            if not data:
                if self._frame and not self._frame.eof:
                    raise EOFError("a zstd frame has no end")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = needed("zstandard").ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except needed("zstandard").ZstdError as error:
                raise zlib.error(str(error)) from error
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def needed(module: str, extra: str = "data") -> Any:
    """An optional package. Raises UsageError that names the extra where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f'this needs the package {module}: run pip install "minilm[{extra}]"') from error


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise MinilmError(f"{path} is damaged or cut short ({error}): fetch or pack it again") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile's way to say so
        raise UsageError(f"{path} cannot be unpacked here ({error}): unpack it yourself and name the folder") from error


def _open(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): change its rights or move it away") from error


def file_sha256(path: Path) -> str:
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(named: dict[str, str]) -> str:
    """SHA-256 over names and what they stand for."""
    total = hashlib.sha256()
    for name, value in named.items():
        total.update(f"{name}\0{value}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
