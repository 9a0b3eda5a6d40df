"""Downloads against servers on loopback that behave well and badly; files read inside folders and archives."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minilm.errors import MinilmError, UsageError
from minilm.text import download as downloads
from minilm.text.download import Source, download
from minilm.text.folders import check_space, data_folder
from minilm.text.sources import Files, walk

DATA = random.Random(0).randbytes(1_000_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Server:
    """One file on loopback; what goes wrong is set from outside."""

    def __init__(self) -> None:
        self.data, self.ranges, self.content_type, self.length = DATA, True, "application/zip", True
        self.break_after: list[int] = []  # bytes sent in each of the first answers
        self.statuses: list[int] = []  # of the first answers
        self.requests: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True, args=(0.01,)).start()

    def source(self, n_bytes: int = len(DATA), sha256: str = SHA) -> Source:
        return Source(f"http://127.0.0.1:{self.http.server_address[1]}/folder/file.zip?raw=1", n_bytes, sha256)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(handler.headers))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            handler.send_error(status)
            return
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(found[1]) if found and self.ranges else 0
        body = self.data[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        handler.send_header("Content-Type", self.content_type)
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.break_after.pop(0)] if self.break_after else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.001)
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def test_download_names_itself_and_is_kept(server: Server, tmp_path: Path) -> None:
    path = download(server.source(), tmp_path).path
    assert path == tmp_path / "file.zip"
    assert path.read_bytes() == DATA
    assert server.requests[0]["User-Agent"].startswith("minilm/")
    assert server.requests[0]["Accept-Encoding"] == "identity"
    download(server.source(), tmp_path)
    assert len(server.requests) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file.zip"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_download_goes_on_after_breaks(server: Server, tmp_path: Path, ranges: bool, length: bool) -> None:
    server.ranges, server.length, server.break_after = ranges, length, [300_000, 500_000]
    assert download(server.source(), tmp_path).path.read_bytes() == DATA
    asked = [request.get("Range", "bytes=0-") for request in server.requests]
    assert len(asked) == 3
    assert asked[0] == "bytes=0-"
    assert 0 <= 300_000 - int(asked[1][6:-1]) <= downloads.CHUNK_BYTES


def test_part_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA[:400_000])
    assert download(server.source(), tmp_path).path.read_bytes() == DATA
    assert [request.get("Range") for request in server.requests] == ["bytes=400000-"]


def test_part_of_another_version_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"x" * 400_000)
    assert download(server.source(), tmp_path).path.read_bytes() == DATA
    assert [request.get("Range") for request in server.requests] == ["bytes=400000-", None]


def test_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA + b"x")
    assert download(server.source(), tmp_path).path.read_bytes() == DATA


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    assert download(server.source(), tmp_path).path.read_bytes() == DATA


def test_server_down_keeps_the_part_and_names_source(server: Server, tmp_path: Path) -> None:
    server.break_after, server.statuses = [300_000], [200] + [503] * 9
    with pytest.raises(MinilmError, match=r"could not download .*HTTP 503.*--source") as caught:
        download(server.source(), tmp_path)
    assert caught.value.exit_code == 1
    part = (tmp_path / "file.zip.part").read_bytes()
    assert 0 <= 300_000 - len(part) <= downloads.CHUNK_BYTES
    assert DATA.startswith(part)


def test_unreachable_host(server: Server, tmp_path: Path) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(MinilmError, match=r"could not download http://127.*no connection.*--source"):
        download(server.source(), tmp_path)


@pytest.mark.parametrize("status", [404, 403])
def test_refusal_is_not_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(MinilmError, match=f"HTTP {status}.*--source"):
        download(server.source(), tmp_path)
    assert len(server.requests) == 1


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match=r"SHA-256 differs.*--source"):
        download(server.source(sha256="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [True, False])
def test_changed_size(server: Server, tmp_path: Path, length: bool) -> None:
    server.data, server.length = DATA + b"more", length
    if length:
        with pytest.raises(MinilmError, match=r"1,000,004 bytes instead of 1,000,000"):
            download(server.source(), tmp_path)
    else:  # what follows is cut off; the sum decides
        assert download(server.source(), tmp_path).path.read_bytes() == DATA


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_page_instead_of_data(server: Server, tmp_path: Path, content_type: str) -> None:
    server.data, server.content_type = b"\n<!DOCTYPE html><title>Sign in</title>", content_type
    with pytest.raises(MinilmError, match=r"web page instead of data.*--source"):
        download(server.source(), tmp_path)
    assert not (tmp_path / "file.zip").exists()


@pytest.mark.parametrize("served", [DATA, DATA[:-9], DATA[:-9] + b"x" * 4])
def test_one_of_two_documented_archives(server: Server, tmp_path: Path, served: bytes) -> None:
    server.data = served
    source = replace(server.source(), others=((len(DATA) - 9, hashlib.sha256(DATA[:-9]).hexdigest()),))
    if len(served) == len(DATA) - 5:
        with pytest.raises(MinilmError, match="is not the file it was: 999,995 bytes instead of 1,000,000"):
            download(source, tmp_path)
        return
    assert download(source, tmp_path).path.read_bytes() == served
    assert downloads.recorded_sha256(source, tmp_path) == hashlib.sha256(served).hexdigest()
    asked = len(server.requests)
    assert download(source, tmp_path).size == len(served)
    assert len(server.requests) == asked
    (tmp_path / "file.zip").unlink()
    server.data = served[::-1]
    with pytest.raises(MinilmError, match="SHA-256 differs"):
        download(source, tmp_path)


def test_a_disk_that_fills_keeps_the_part(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = downloads._request

    def filling(source: Source, part: Path, have: int, advance: Callable[[int], object]) -> None:
        server.break_after = [300_000]
        request(source, part, have, advance)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads, "_request", filling)
    monkeypatch.setattr(downloads.time, "sleep", full)  # between the first answer and the second
    with pytest.raises(MinilmError, match=r"no space is left for .*MINILM_DATA"):
        download(server.source(), tmp_path)
    monkeypatch.undo()
    assert download(server.source(), tmp_path).path.read_bytes() == DATA
    assert int(server.requests[-1]["Range"][6:-1]) > 200_000


def test_no_space(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match=r"downloading file.zip needs about 1,000,000,000,000 MB.*MINILM_DATA"):
        download(Source("http://127.0.0.1:9/file.zip", 10**18, SHA), tmp_path / "not" / "there")
    check_space(tmp_path, 1, "this")


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(files: dict[str, bytes], compress: Callable[[bytes], bytes] = bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return compress(stream.getvalue())


CONTENT = {"set/train/a.txt": b"first\r\nline\n", "set/train/b.txt.gz": gzip.compress(b"second"), "set/c.csv": b"1,2\n"}


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("set.zip", zipped),
        ("set.tar", tarred),
        ("set.tar.gz", lambda files: tarred(files, gzip.compress)),
        ("set.tgz", lambda files: tarred(files, gzip.compress)),
        ("set.tar.bz2", lambda files: tarred(files, bz2.compress)),
        ("set.tar.xz", lambda files: tarred(files, lzma.compress)),
    ],
)
def test_archives_and_folders_read_alike(tmp_path: Path, name: str, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / name).write_bytes(pack(CONTENT))
    for path, data in CONTENT.items():
        (tmp_path / "plain" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / path).write_bytes(data)
    for given in (tmp_path / "packed" / name, tmp_path / "packed", tmp_path / "plain"):
        files = Files.at(given)
        assert {member.name: member.text() for member in files.find("train/*.txt")} == {
            "set/train/a.txt": "first\r\nline\n",
            "set/train/b.txt": "second",
        }
        assert [list(member.lines()) for member in files.find("a.txt")] == [["first\r\n", "line\n"]]
        assert [member.name for member in files.find("*.csv", "*.json")] == ["set/c.csv"]
        assert list(files.find("rain/*.txt")) == []


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_file_and_its_truncation(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    text = random.Random(1).randbytes(50_000).hex()
    whole, cut = tmp_path / f"a.txt{ending}", tmp_path / f"b.txt{ending}"
    whole.write_bytes(pack(text.encode()))
    cut.write_bytes(pack(text.encode())[:20_000])
    assert [member.text() for member in Files.at(whole).find("a.txt")] == [text]
    with pytest.raises(MinilmError, match=f"b.txt{ending} is damaged or cut short"):
        [member.text() for member in Files.at(cut).find("b.txt")]


def test_truncated_archives(tmp_path: Path) -> None:
    big = {"a.txt": random.Random(2).randbytes(100_000)}
    for name, data in {"a.zip": zipped(big), "a.tar.gz": tarred(big, gzip.compress)}.items():
        (tmp_path / name).write_bytes(data[:50_000])
        with pytest.raises(MinilmError, match="damaged or cut short"):
            [member.text("latin-1") for member in Files.at(tmp_path / name).find("*")]


def test_member_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match=r"a\.txt is not text in utf-8"):
        next(Files.at(tmp_path).find("a.txt")).text()


def test_walk_is_sorted_once_each_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a.txt", ".hidden/c.txt", "b/.d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "again.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "b" / "dangling.txt").symlink_to(tmp_path / "nowhere")
    assert [name for name, _ in walk(tmp_path)] == ["a.txt", "b/10.txt", "b/2.txt"]
    assert [name for name, _ in walk(tmp_path / "b" / ".d.txt")] == [".d.txt"]
    assert [file.path for _, file in walk(tmp_path / ".hidden")] == [tmp_path / ".hidden" / "c.txt"]
    with pytest.raises(UsageError, match="nothing does not exist"):
        Files.at(tmp_path / "nothing")


def test_keys_follow_time_and_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    stat, content = Files.at(tmp_path).stat_key(), Files.at(tmp_path).sha256s()
    os.utime(path, ns=(1, 1))
    assert Files.at(tmp_path).stat_key() != stat
    assert Files.at(tmp_path).sha256s() == content
    path.write_text("two")
    assert Files.at(tmp_path).sha256s() != content
    path.write_text("one")
    path.rename(tmp_path / "b.txt")
    assert Files.at(tmp_path).sha256s() != content


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILM_DATA", str(tmp_path / "mine"))
    assert data_folder() == tmp_path / "mine"
    monkeypatch.delenv("MINILM_DATA")
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "repo" / "deep")
    assert data_folder() == tmp_path / "repo" / "data" / "shards"


# Archives in archives, zstd, and archives that mean harm


def packed(members: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar of the members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


PAGES = {"a/1.txt": b"one", "a/2.txt": b"two" * 100_000}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.zip", zip_of({"in.tar.gz": packed(PAGES, "w:gz")})),
        ("x.tar.xz", packed({"in.zip": zip_of(PAGES)}, "w:xz")),
        ("x.tar", packed({"in.tar": packed(PAGES), "b.txt.gz": gzip.compress(b"three")})),
        ("x.tar.xz", packed({"part-1_data.xz": packed(PAGES, "w:xz"), "b.txt.gz": gzip.compress(b"three")}, "w:xz")),
        ("x.zip", zip_of({"part-1_data.xz": packed(PAGES, "w:xz"), "b.txt.xz": lzma.compress(b"three")})),
    ],
)
def test_archives_in_archives(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    found = {member.name: member.text() for member in Files.at(tmp_path).find("*.txt")}
    expected = {"a/1.txt": "one", "a/2.txt": "two" * 100_000, "b.txt": "three"}
    assert found == {name: text for name, text in expected.items() if name in found}
    assert len(found) >= 2


def test_zstd_frames_and_tars(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    first, second = (zstandard.ZstdCompressor().compress(data) for data in (b"one\n" * 50_000, b"two\n"))
    (tmp_path / "a.txt.zst").write_bytes(first + second)
    (tmp_path / "b.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(packed(PAGES)))
    texts = [member.text() for member in Files.at(tmp_path).find("*.txt")]
    assert texts == ["one\n" * 50_000 + "two\n", "one", "two" * 100_000]
    for name, data in (("a.txt.zst", first[:-5]), ("a.txt.zst", b"not zstd at all"), ("b.tar.zst", first[:-9])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MinilmError, match=rf"{name} is damaged or cut short"):
            [member.text() for member in Files.at(tmp_path / name).find("*")]


@pytest.mark.parametrize("name", ["../x.txt", "a/../../x.txt", "/etc/x.txt", "C:x.txt", "a\\..\\x.txt", "\\x.txt"])
@pytest.mark.parametrize("pack", [packed, zip_of])
def test_a_member_that_leads_out_of_its_archive_is_refused(
    name: str, pack: Callable[[dict[str, bytes]], bytes], tmp_path: Path
) -> None:
    path = tmp_path / ("x.tar" if pack is packed else "x.zip")
    path.write_bytes(pack({name: b"text"}))
    with pytest.raises(UsageError, match="that leads out of it: do not trust this archive"):
        list(Files.at(path).find("*"))
    path.write_bytes(pack({"a..b/..c.txt": b"text"}))
    assert [member.text() for member in Files.at(path).find("*")] == ["text"]


@pytest.mark.parametrize("pack", ["gz", "zip", "tar.xz", "zip in tar"])
def test_a_zip_bomb_is_refused(pack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilm.text.sources.UNPACKED_BYTES", 1 << 20)
    zeros = bytes(8 << 20)
    name, data = {
        "gz": ("x.txt.gz", gzip.compress(zeros)),
        "zip": ("x.zip", zip_of({f"{i}.txt": zeros[: 1 << 20] for i in range(8)})),
        "tar.xz": ("x.tar.xz", packed({"x.txt": zeros}, "w:xz")),
        "zip in tar": ("x.tar", packed({"x.zip": zip_of({"x.txt": zeros})})),
    }[pack]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"unpacks to more than 0.0 GB, over 200 times its size \(a zip bomb\?\)"):
        [member.text() for member in Files.at(tmp_path).find("*")]
    (tmp_path / name).write_bytes(gzip.compress(random.Random(1).randbytes(1 << 18) * 16))  # 4 MB from 4 MB: fine
    if pack == "gz":
        assert len(next(Files.at(tmp_path).find("*")).open().read()) == 1 << 22
