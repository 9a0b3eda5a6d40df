"""Downloads that survive a break.

A file is kept as `<name>.part` until its size and SHA-256 are right, and is resumed by an HTTP range (RFC 9110, section
14) after a break, in the same run or a later one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from minilm import __version__
from minilm.errors import MinilmError
from minilm.text.folders import check_space, disk_errors
from minilm.text.sources import Found, file_sha256

CHUNK_BYTES = 1 << 16  # at most so much is lost when a connection breaks
RETRIES = 3  # attempts in a row that bring not one byte
BACKOFF_SECONDS = 1.0  # doubled after each of them
TIMEOUT_SECONDS = 30.0
# Without a name of its own a client is refused by some mirrors; compressed transfer would spoil sizes and ranges.
HEADERS = {"User-Agent": f"minilm/{__version__}", "Accept-Encoding": "identity"}
OFFLINE_WAY = "fetch the file by other means and pass its path as --source"


@dataclass(frozen=True)
class Source:
    """One file to download, exactly as it was when the script was written.

    Where nobody has published a checksum, `bytes` is 0 and `sha256` empty: the first download records its SHA-256 in
    `<name>.sha256` beside it, and a later one must equal that.
    """

    url: str
    bytes: int = 0
    sha256: str = ""
    path: str = ""
    """Under the data set's folder of downloads, where the address's last part would not tell files apart."""
    pause_seconds: float = 0.0
    """Waited after the download, where a host asks for that."""
    others: tuple[tuple[int, str], ...] = ()
    """Bytes and SHA-256 of other archives of the same that are documented too: the host's answer tells which it has."""

    @property
    def name(self) -> str:
        return self.path or self.url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def archives(self) -> list[Source]:
        """Each that is documented."""
        stated = ((self.bytes, self.sha256), *self.others)
        return [replace(self, bytes=n_bytes, sha256=sha256, others=()) for n_bytes, sha256 in stated]


def download(source: Source, folder: Path) -> Found:
    """The file of `source` in `folder`, from there or from its address. Raises MinilmError where it cannot be had."""
    target = folder / source.name
    known = [replace(one, sha256=one.sha256 or recorded_sha256(one, folder)) for one in source.archives()]
    if target.is_file() and any(one.sha256 and one.bytes in (0, target.stat().st_size) for one in known):
        return Found(target, target.stat().st_size, target.stat().st_mtime_ns)
    wanted = known[0]
    if source.others or not source.bytes:
        size = _size(source)
        wanted = next((one for one in known if one.bytes in (0, size)), wanted)
        wanted = replace(wanted, bytes=wanted.bytes or size)
    found = _download(wanted, folder)
    if source.others or not source.sha256:
        with disk_errors(folder):
            line = f"{file_sha256(found.path)}  {found.path.name}\n"  # as sha256sum writes it
            found.path.with_name(f"{found.path.name}.sha256").write_text(line, encoding="utf-8")
    time.sleep(source.pause_seconds)
    return found


def recorded_sha256(source: Source, folder: Path) -> str:
    """What an earlier download recorded, or nothing."""
    record = folder / f"{source.name}.sha256"
    return record.read_text(encoding="utf-8").split()[0] if record.is_file() else ""


def _size(source: Source) -> int:
    """The file's size as its host states it."""
    import requests

    for attempt in range(RETRIES + 1):
        try:
            with requests.get(source.url, headers=HEADERS, stream=True, timeout=TIMEOUT_SECONDS) as answer:
                status, length = answer.status_code, answer.headers.get("Content-Length")
        except requests.RequestException as error:
            status, length = 503, None
            reason = "no connection to the host" if isinstance(error, requests.ConnectionError) else f"{error}"
        else:
            reason = f"HTTP {status}"
        if status < 400:
            if not length:
                raise MinilmError(f"{source.url} states no size, so a broken download could not be told: {OFFLINE_WAY}")
            return int(length)
        if status < 500 and status not in (408, 429):
            raise MinilmError(f"{source.url} answers HTTP {status}: the file has moved or is closed; {OFFLINE_WAY}")
        if attempt < RETRIES:
            time.sleep(BACKOFF_SECONDS * 2**attempt)
    raise MinilmError(f"could not download {source.url} ({reason}): try again later, or {OFFLINE_WAY}")


def _download(source: Source, folder: Path) -> Found:
    target = folder / source.name
    part = folder / f"{source.name}.part"
    have = part.stat().st_size if part.is_file() else 0
    check_space(folder, source.bytes - have, f"downloading {source.name}")
    resumed = have > 0
    while True:
        with disk_errors(folder):
            part.parent.mkdir(parents=True, exist_ok=True)
            _fetch(source, part)
            if not source.sha256 or file_sha256(part) == source.sha256:
                part.replace(target)
                return Found(target, source.bytes, target.stat().st_mtime_ns)
            part.unlink()
        if not resumed:
            raise MinilmError(
                f"{source.url} is not the file it was: its SHA-256 differs from {source.sha256}; "
                f"the download was deleted, so {OFFLINE_WAY} if you trust another copy"
            )
        resumed = False  # the older half may have been another version: once more, from the start


def _fetch(source: Source, part: Path) -> None:
    """Bring `part` to its full size, going on where it stands."""
    import requests
    from tqdm import tqdm

    failures = 0
    with tqdm(total=source.bytes, unit="B", unit_scale=True, desc=source.name, disable=not sys.stderr.isatty()) as bar:
        while (have := part.stat().st_size if part.is_file() else 0) != source.bytes:
            bar.update(have - bar.n)
            try:
                _request(source, part, have, bar.update)
            except requests.Timeout:
                reason = f"no answer within {TIMEOUT_SECONDS:.0f} s"
            except requests.ConnectionError:
                reason = "no connection to the host, or it broke"
            except requests.RequestException as error:
                reason = f"{error}"
            else:
                reason = "the connection closed early"
            now = part.stat().st_size if part.is_file() else 0
            failures = 0 if now > have else failures + 1
            if failures > RETRIES:
                raise MinilmError(f"could not download {source.url} ({reason}): try again later, or {OFFLINE_WAY}")
            if now != source.bytes:
                time.sleep(BACKOFF_SECONDS * 2 ** max(failures - 1, 0))


def _request(source: Source, part: Path, have: int, advance: Callable[[int], object]) -> None:
    """One HTTP request from byte `have` on. What cannot be mended by asking again raises MinilmError."""
    import requests

    headers = HEADERS | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(source.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        status = answer.status_code
        elsewhere = status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if status == 416 or have > source.bytes or elsewhere:
            part.unlink(missing_ok=True)
            return
        if status in (408, 429) or status >= 500:
            raise requests.HTTPError(f"HTTP {status}")
        if status >= 400:
            raise MinilmError(f"{source.url} answers HTTP {status}: the file has moved or is closed; {OFFLINE_WAY}")
        start = have if status == 206 else 0
        chunks = answer.iter_content(CHUNK_BYTES)
        first = next(chunks, b"")
        page = "text/html" in answer.headers.get("Content-Type", "") and not source.name.endswith((".html", ".htm"))
        if page or (start == 0 and first[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))):
            raise MinilmError(
                f"{source.url} answers with a web page instead of data (a login or consent page?): {OFFLINE_WAY}"
            )
        if (length := answer.headers.get("Content-Length")) and start + int(length) != source.bytes:
            raise MinilmError(
                f"{source.url} is not the file it was: {start + int(length):,} bytes instead of {source.bytes:,}; "
                f"{OFFLINE_WAY} if you trust another copy"
            )
        with part.open("ab" if start else "wb") as file:
            advance(start - have)
            for chunk in chain([first], chunks):
                advance(file.write(chunk[: source.bytes - file.tell()]))
