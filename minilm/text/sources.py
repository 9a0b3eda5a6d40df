"""Files read where they lie, in folders and archives alike.

Nothing is unpacked to disk: zip, tar, gz, bz2 and xz are read in place, one member at a time, so a hostile archive has
no path to write to.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from minilm.errors import MinilmError, UsageError

OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda stream: cast(BinaryIO, gzip.GzipFile(fileobj=stream)),
    ".bz2": lambda stream: cast(BinaryIO, bz2.BZ2File(stream)),
    ".xz": lambda stream: cast(BinaryIO, lzma.LZMAFile(stream)),  # noqa: SIM115
}
TAR_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Member:
    """One file, on disk or in an archive. Of a tar's members, only the latest can be opened."""

    name: str
    """Path inside the source, with slashes and without a compression's ending."""
    open: Callable[[], BinaryIO]
    """A stream of its bytes, decompressed."""

    def text(self, encoding: str = "utf-8") -> str:
        return "".join(self.lines(encoding))

    def lines(self, encoding: str = "utf-8") -> Iterator[str]:
        """Lines with their "\\n", "\\r" left where it is. Raises UsageError where the bytes are not of `encoding`."""
        with self.open() as stream:
            try:
                yield from io.TextIOWrapper(stream, encoding, newline="\n")
            except UnicodeDecodeError as error:
                raise UsageError(f"{self.name} is not text in {encoding}: {error.reason}") from error


@dataclass(frozen=True)
class Files:
    """The files a data set is read from: downloads, or the user's copy (a file, a folder, an archive)."""

    given: Path
    """The file or folder that was named."""
    paths: tuple[Path, ...]
    notes: Counter[str] = field(default_factory=Counter)
    """What a reader left out or had to guess, with how often: reported when all is read."""

    @classmethod
    def at(cls, path: Path) -> Files:
        """Everything at `path`. Raises UsageError where nothing is there."""
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        return cls(path, tuple(walk(path)))

    def find(self, *patterns: str) -> Iterator[Member]:
        """Members whose path or a tail of it matches one of the patterns (`*.csv`, `train/pos/*.txt`), in order."""
        for name, path in self.names().items():
            with naming_damage(path):
                for member in _members(path, name):
                    if any(fnmatch.fnmatchcase(f"/{member.name}", f"*/{pattern}") for pattern in patterns):
                        yield member

    def names(self) -> dict[str, Path]:
        """Each file by its path inside what was given, with slashes."""
        root = self.given if self.given.is_dir() else self.given.parent
        return {path.relative_to(root).as_posix(): path for path in self.paths}

    def stat_key(self) -> str:
        """Changes with any file's name, size or time; costs no reading."""
        stats = ((name, path.stat()) for name, path in self.names().items())
        return _digest(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in stats)

    def content_key(self) -> str:
        """Changes with any file's name or content, and with nothing else."""
        return _digest(f"{name}\0{file_sha256(path)}" for name, path in self.names().items())

    def text_bytes(self) -> int:
        """About how many bytes of text they hold: exact for plain files and zips, else compressed size times four."""
        total = 0
        for path in self.paths:
            if path.suffix == ".zip" and zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    total += sum(info.file_size for info in archive.infolist())
            else:
                total += path.stat().st_size * (4 if path.suffix in {*OPENERS, ".tgz"} else 1)
        return total


def walk(path: Path) -> Iterator[Path]:
    """The file itself, or every file below a folder in the order of its path; hidden ones left out, each only once
    whatever symbolic links lead to it. Raises UsageError where one cannot be listed."""
    seen: set[tuple[int, int]] = set()

    def visit(here: Path) -> Iterator[Path]:
        try:
            stat = here.stat()
            children = sorted(here.iterdir(), key=lambda child: child.name) if here.is_dir() else []
        except FileNotFoundError:
            return  # a link to nowhere
        except OSError as error:
            raise UsageError(f"{here} cannot be read ({error.strerror}): change its rights or move it away") from error
        if stat.st_ino and (stat.st_dev, stat.st_ino) in seen:  # file systems without inodes give 0
            return
        seen.add((stat.st_dev, stat.st_ino))
        if here.is_file():
            yield here
        for child in children:
            if not child.name.startswith("."):
                yield from visit(child)

    yield from visit(path)


def _members(path: Path, name: str) -> Iterator[Member]:
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield _member(path, info.filename, partial(archive.open, info))
    elif name.lower().endswith(TAR_ENDINGS):
        with tarfile.open(path, "r|*") as tar:  # a stream: seeking back in a compressed tar would start it over
            for entry in tar:
                if entry.isfile():
                    yield _member(path, entry.name, partial(tar.extractfile, entry))
    else:
        yield _member(path, name, partial(path.open, "rb"))


def _member(path: Path, name: str, open_: Callable[[], Any]) -> Member:
    stem, dot, ending = name.rpartition(".")
    if opener := OPENERS.get(f"{dot}{ending}".lower()):
        return Member(stem, lambda: io.BufferedReader(_Packed(path, opener(open_()))))
    return Member(name, open_ if path.name == name else lambda: io.BufferedReader(_Packed(path, open_())))


class _Packed(io.RawIOBase):
    """A stream that names its file when it turns out to be damaged."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with naming_damage(self._path):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise MinilmError(f"{path} is damaged or cut short ({error}): fetch or pack it again") from error


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
