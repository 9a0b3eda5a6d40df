"""From names and paths to prepared folders: the four data scripts, reuse, replacement, failures, the command line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from minilm.errors import MinilmError, UsageError
from minilm.text import prepare as preparing
from minilm.text.download import Source
from minilm.text.folders import recover, slug
from minilm.text.hub_files import HubFiles
from minilm.text.prepare import prepare, summary
from minilm.text.scripts import known_datasets, load_dataset, prepare_words, script_main
from minilm.text.shards import open_shards
from minilm.text.tales import stories

ROOT = Path(__file__).parent.parent


def texts(folder: Path, split: str) -> list[str]:
    shards = open_shards(folder)
    tokenizer = shards.tokenizer()
    return [tokenizer.decode(shards.splits[split].document(i)) for i in range(shards.splits[split].n_documents)]


@pytest.fixture
def novels(tmp_path: Path) -> Path:
    folder = tmp_path / "my novels"
    (folder / "deep").mkdir(parents=True)
    for i in range(30):
        (folder / "deep" / f"{i}.txt").write_text(f"Novel {i}.\n\n" + f"It was night {i}. " * 20)
    return folder


# Scripts


def test_scripts_are_tiny_and_declare_everything() -> None:
    for name in known_datasets():
        dataset = load_dataset(name)
        assert dataset.name == name
        assert dataset.description
        assert dataset.licence
        assert dataset.citation or name == "textfiles"
        assert set(dataset.splits) <= {"train", "val", "test"}
        assert dataset.about_bytes or name in ("tales", "textfiles") or re.fullmatch(r"[\d.]+ [MG]B", dataset.size())
        if name not in ("tales", "gutenberg"):  # the lead's; one that asks for its catalogue
            for source in dataset.stated_sources(dataset.options):
                assert isinstance(source, HubFiles) or (
                    source.url.startswith("https://") and (not source.sha256 or len(bytes.fromhex(source.sha256)) == 32)
                )
            assert 15 <= len((ROOT / "data" / f"{name}.py").read_text().splitlines()) <= 40


def test_tinyshakespeare_is_split_as_nanogpt_does(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILM_GPT2_TOKENIZER", str(shared_data / "gpt2_files"))
    path = shared_data / "tinyshakespeare" / "input.txt"
    folder = prepare("tinyshakespeare", source=path)
    meta = open_shards(folder).meta
    # nanoGPT's README gives 301,966 and 36,059 tokens; here end-of-text stands before and after.
    assert (meta.splits["train"].tokens, meta.splits["val"].tokens) == (301_966 + 2, 36_059 + 2)
    assert "".join(texts(folder, "train") + texts(folder, "val")) == path.read_text()
    assert meta.sources == {"input.txt": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert meta.splits["train"].bytes + meta.splits["val"].bytes == path.stat().st_size
    words = sum(len(text.split()) for split in ("train", "val") for text in texts(folder, split))
    assert meta.splits["train"].words + meta.splits["val"].words == words
    assert folder.name == "tinyshakespeare-gpt2"


WIKI = {
    "train": " \n = One = \n \n The 1 @.@ 5th . \n \n = = Part = = \n \n More . \n \n = Two = \n \n Second . \n \n",
    "valid": " \n = Three = \n \n Third . \n \n",
    "test": " \n = Four = \n \n Fourth \u2013 last . \n \n",
}


def test_wikitext2_from_its_zip_folder_and_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    packed = served / "wikitext-2-raw-v1.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in WIKI.items():
            archive.writestr(f"wikitext-2-raw/wiki.{name}.raw", text)
    shutil.unpack_archive(packed, tmp_path / "plain")

    def check(folder: Path) -> None:
        assert texts(folder, "train") == [WIKI["train"][:-25], WIKI["train"][-25:]]
        assert texts(folder, "val") == [WIKI["valid"]]
        assert texts(folder, "test") == [WIKI["test"]]

    for source in (packed, tmp_path / "plain", tmp_path / "plain" / "wikitext-2-raw"):
        check(prepare("wikitext2", source=source, tokenizer="bytes"))

    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True, args=(0.01,)).start()
        data = packed.read_bytes()
        url = f"http://127.0.0.1:{server.server_address[1]}/{packed.name}"
        upstream = Source(url, len(data), hashlib.sha256(data).hexdigest())
        dataset = replace(load_dataset("wikitext2"), sources=(upstream,))
        monkeypatch.setattr(preparing, "load_dataset", lambda name: dataset)
        folder = prepare("wikitext2", tokenizer="bytes", out=tmp_path / "loaded")
        server.shutdown()
    check(folder)
    assert open_shards(folder).meta.sources == {packed.name: upstream.sha256}
    assert [p.name for p in (tmp_path / "shards" / "downloads" / "wikitext2").iterdir()] == [packed.name]
    shutil.rmtree(folder)
    check(prepare("wikitext2", tokenizer="bytes", out=folder))  # the download is kept


def test_wikitext2_with_the_real_validation_split(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare("wikitext2", source=shared_data / "wikitext-2-raw", tokenizer="words")
    raw = (shared_data / "wikitext-2-raw" / "wiki.valid.raw").read_bytes()
    meta = open_shards(folder).meta
    assert set(meta.splits) == {"val"}
    assert (meta.splits["val"].documents, meta.splits["val"].bytes) == (60, len(raw))
    assert "".join(texts(folder, "val")).encode() == raw
    assert "split missing from the source: train" in capsys.readouterr().err
    # Without --source, what was prepared from a local copy is used: no download.
    assert prepare("wikitext2", tokenizer="words") == folder


def test_tales_variants_stand_side_by_side() -> None:
    folder = prepare("tales", megabytes=0.6)
    other = prepare("tales", megabytes=0.6, seed=3)
    assert (folder.name, other.name) == ("tales-megabytes0.6-words", "tales-seed3-megabytes0.6-words")
    train, val = texts(folder, "train"), texts(folder, "val")
    assert train == list(stories(megabytes=0.6))
    assert len(set(train) & set(texts(other, "train"))) < 0.01 * len(train)  # short tales meet by chance
    assert set(train).isdisjoint(val)
    assert 499_000 < sum(len(text) + 1 for text in val) < 501_000
    shards = open_shards(folder)
    unknown = shards.tokenizer().unknown
    more = shards.tokenizer().encode_batch(list(stories(n=5000, seed=9)))
    assert unknown is not None
    assert all(unknown not in ids for ids in more)


def test_changed_generator_makes_tales_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare("tales", megabytes=0.1)
    before = (folder / "meta.json").stat().st_ino
    prepare("tales", megabytes=0.1)
    assert (folder / "meta.json").stat().st_ino == before
    dataset = load_dataset("tales")
    made = dataset.made
    assert made is not None
    changed = replace(dataset, made=lambda **options: made(**options)._replace(fingerprint="new"))
    monkeypatch.setattr(preparing, "load_dataset", lambda name: changed)
    prepare("tales", megabytes=0.1)
    assert (folder / "meta.json").stat().st_ino != before


# A user's own text


def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are built from now on."""
    built: list[str] = []
    build = preparing._build

    def counted(job: Any, recipe: dict[str, Any], folder: Path) -> None:
        built.append(folder.name)
        build(job, recipe, folder)

    monkeypatch.setattr(preparing, "_build", counted)
    return built


def test_own_folder_is_rebuilt_when_content_changes_and_only_then(
    novels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = builds(monkeypatch)
    folder = prepare(str(novels), tokenizer="bytes")
    assert folder.name.startswith("my_novels")
    assert len(texts(folder, "train")) + len(texts(folder, "val")) == 30
    assert 2 <= len(texts(folder, "val")) <= 4
    prepare(str(novels), tokenizer="bytes")
    assert len(built) == 1
    os.utime(novels / "deep" / "3.txt", ns=(1, 1))
    prepare(str(novels), tokenizer="bytes")
    assert len(built) == 1
    monkeypatch.setattr("minilm.text.sources.file_sha256", lambda path: pytest.fail("read though no time changed"))
    prepare(str(novels), tokenizer="bytes")
    monkeypatch.undo()
    monkeypatch.setenv("MINILM_DATA", str(folder.parent))
    built = builds(monkeypatch)
    for change in (
        lambda: (novels / "deep" / "3.txt").write_text("It was day. " * 20),
        lambda: (novels / "deep" / "3.txt").unlink(),
        lambda: (novels / "deep" / "4.txt").rename(novels / "deep" / "four.txt"),
        lambda: (novels / "new.md").write_text("One more. " * 20),
    ):
        change()
        assert prepare(str(novels), tokenizer="bytes") == folder
    assert len(built) == 4
    assert "It was night 7. " * 20 in "".join(texts(folder, "train") + texts(folder, "val"))
    assert len(texts(folder, "train")) + len(texts(folder, "val")) == 30
    prepare(str(novels), tokenizer="bytes", force=True)
    assert len(built) == 5


def test_options_and_tokenizers_have_folders_of_their_own(novels: Path) -> None:
    plain = prepare(novels, tokenizer="chars")
    words = prepare(novels, tokenizer="words")
    cut = prepare(novels, tokenizer="chars", separator="\\n\\n")
    few = prepare(novels, tokenizer="chars", max_docs=7)
    path = prepare(novels, tokenizer=str(words / "tokenizer.json"))
    assert len({plain, words, cut, few, path}) == 5
    assert len(texts(cut, "train")) + len(texts(cut, "val")) == 60
    assert len(texts(few, "train")) + len(texts(few, "val")) == 7
    assert open_shards(path).meta.fingerprint == open_shards(words).meta.fingerprint
    bpe = open_shards(prepare(novels, tokenizer="bpe:300"))
    assert bpe.meta.tokenizer == "bpe"
    assert bpe.meta.vocab_size <= 300


def test_one_document_is_cut_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Chapter {i}. " * 30 for i in range(40)))
    folder = prepare(book, tokenizer="bytes")
    assert "".join(texts(folder, "train") + texts(folder, "val")) == book.read_text()
    assert texts(folder, "val")[0].startswith("Chapter 36. ")
    assert "1 document in all: its last tenth" in capsys.readouterr().err


def test_report_counts_exactly(novels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (novels / "cover.jpg").write_bytes(b"\xff\xd8")
    (novels / "odd.txt").write_bytes(b"\x00\x01\x02\x03" * 9)
    folder = prepare(novels, tokenizer="bytes")
    said = capsys.readouterr().err
    assert summary(folder) in said
    assert "1 files skipped, binary" in said
    assert "1 files skipped, ending in .jpg" in said
    meta = open_shards(folder).meta
    files = [path.read_text() for path in novels.rglob("*.txt") if path.name != "odd.txt"]
    counts = meta.splits.values()
    assert sum(split.bytes for split in counts) == len("".join(files).encode())
    assert sum(split.words for split in counts) == sum(len(text.split()) for text in files)
    assert sum(split.tokens for split in counts) == len("".join(files).encode()) + 30 + 2
    assert meta.sources["deep/3.txt"] == hashlib.sha256((novels / "deep" / "3.txt").read_bytes()).hexdigest()


def test_the_command_in_meta_prepares_the_same_folder(novels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(novels, tokenizer="bytes", separator="\n\n", max_docs=9)
    built = builds(monkeypatch)
    words = shlex.split(open_shards(folder).meta.command)
    assert words[:3] == ["minilm", "data", "prepare"]
    assert prepare_words(words[3:]) == folder
    assert built == []


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    program = (
        "import sys; from minilm.runtime import peak_resident_bytes; from minilm.text import encode, prepare\n"
        "encode.BATCH_CHARS = 1 << 19  # so that the smaller fills several\n"
        "prepare.prepare(sys.argv[1], tokenizer='bytes')\n"
        "print(peak_resident_bytes())"
    )
    peaks = []
    for megabytes in (6, 24):
        path = tmp_path / f"{megabytes}.jsonl"
        with path.open("w") as file:
            for i in range(megabytes * 100):
                file.write(json.dumps({"text": f"{i} " + "word " * 2000}) + "\n")
        done = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True)
        peaks.append(int(done.stdout) / 2**20)
    assert peaks[1] - peaks[0] < 12  # MB


# Replacement and failure


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_build_leaves_the_old_folder(novels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(novels, tokenizer="bytes")
    before = contents(folder)
    (novels / "new.txt").write_text("new")

    def failing(error: BaseException) -> Callable[..., None]:
        def write_meta(folder: Path, meta: object) -> None:
            raise error

        return write_meta

    for error, seen in (
        (KeyboardInterrupt("now"), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), MinilmError),
        (OSError(errno.EACCES, "Permission denied"), MinilmError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "write_meta", failing(error))
            with pytest.raises(seen, match="MINILM_DATA" if seen is MinilmError else "now"):
                prepare(novels, tokenizer="bytes")
        assert contents(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    prepare(novels, tokenizer="bytes")
    assert contents(folder) != before


def test_killed_build_leaves_the_old_folder_and_is_swept_up(novels: Path) -> None:
    folder = prepare(novels, tokenizer="bytes")
    before = contents(folder)
    (novels / "new.txt").write_text("new")
    program = (
        "import os, signal, sys, minilm.text.prepare as p\n"
        "p.write_meta = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "p.prepare(sys.argv[1], tokenizer='bytes')"
    )
    done = subprocess.run([sys.executable, "-c", program, novels], check=False, capture_output=True)
    assert done.returncode == -9
    assert contents(folder) == before
    assert len(list(folder.parent.iterdir())) == 2
    prepare(novels, tokenizer="bytes")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    old = folder.with_name(f".{folder.name}.old")  # killed between the two renames
    folder.rename(old)
    recover(folder)
    assert contents(folder) != before
    assert not old.exists()


def test_truncated_shards_are_built_again(novels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(novels, tokenizer="bytes")
    shard = folder / open_shards(folder).meta.splits["train"].shards[0].file
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    prepare(novels, tokenizer="bytes")
    assert shard.read_bytes() == whole
    assert "truncated" in capsys.readouterr().err


def test_full_disk_is_seen_before_anything_is_written(
    novels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(MinilmError, match=r"needs about 50 MB .*0 MB are free.*MINILM_DATA"):
        prepare(novels, tokenizer="bytes")
    assert not (tmp_path / "shards").exists()


def test_file_that_changes_while_it_is_read(novels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = preparing._write

    def changing(*args: Any) -> Any:
        (novels / "deep" / "0.txt").write_text("changed")
        return write(*args)

    monkeypatch.setattr(preparing, "_write", changing)
    with pytest.raises(MinilmError, match="changed while it was read"):
        prepare(novels, tokenizer="bytes")


# Misuse


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'tinyshakespere' \(did you mean tinyshakespeare\?\).*tales, .*your own text"
    ):
        prepare("tinyshakespere")
    with pytest.raises(UsageError, match="no data set or path"):
        prepare(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        prepare("wikitext2", source=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="reads your own text"):
        prepare("textfiles")
    with pytest.raises(UsageError, match="must be more than 0"):
        prepare("tales", megabytes=0)
    with pytest.raises(UsageError, match="made here and reads no source"):
        prepare("tales", source=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "gpt3"}, r"no tokenizer 'gpt3' \(did you mean gpt2\?\)"),
        ({"tokenizer": "bpe"}, r"needs a vocabulary size.*bpe:4096"),
        ({"max_docs": -1}, "max_docs must be 0"),
        ({"feild": "text"}, r"no option 'feild' \(did you mean field\?\)"),
        ({"field": 3}, "field takes str, not 3"),
    ],
)
def test_bad_options(novels: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(novels, **{"tokenizer": "bytes"} | options)


def test_nothing_to_read(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(UsageError, match="empty holds no text: name other files"):
        prepare(folder, tokenizer="bytes")
    (folder / "a.txt").write_bytes(b"\x00\x01\x02\x03" * 9)
    (folder / "b.txt").write_text(" \n")
    with pytest.raises(UsageError, match=r"\(1 files skipped, binary, 1 files skipped, without text\)"):
        prepare(folder, tokenizer="bytes")
    with pytest.raises(UsageError, match="does not hold the files of wikitext2"):
        prepare("wikitext2", source=folder, tokenizer="bytes")


def test_prepared_folder_is_returned_as_it_is(novels: Path, tmp_path: Path) -> None:
    folder = prepare(novels, tokenizer="bytes", out=tmp_path / "here")
    assert folder == tmp_path / "here"
    for same in (None, "", "bytes", str(folder)):
        assert prepare(folder, tokenizer=same) == folder
    with pytest.raises(UsageError, match=r"prepared already, with tokenizer bytes"):
        prepare(folder, tokenizer="chars")
    with pytest.raises(UsageError, match="prepared already"):
        prepare(folder, max_docs=3)
    with pytest.raises(UsageError, match="is no prepared folder: choose another --out"):
        prepare(novels, tokenizer="bytes", out=novels)
    assert (novels / "deep" / "3.txt").exists()


# Command line


def test_script_main(novels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset("textfiles")
    script_main(dataset, [str(novels), "--tokenizer=bytes", "--max-docs", "5"])
    folder = Path(capsys.readouterr().out.strip())
    assert folder == prepare(novels, tokenizer="bytes", max_docs=5)
    script_main(dataset, ["--source", str(novels), "--tokenizer", "bytes", "--max_docs=5"])
    assert Path(capsys.readouterr().out.strip()) == folder
    for words, message in (
        (["--sorce", "x"], "textfiles has no option '--sorce' (did you mean --source?)"),
        ([str(novels), "--max_docs", "many"], "--max_docs: invalid int value: 'many'"),
        ([], "textfiles reads your own text: give it a file or a folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            script_main(dataset, words)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1


def test_a_script_runs_by_itself(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("First Citizen:\nSpeak, speak.\n" * 50)
    words: list[str | Path] = [
        sys.executable,
        ROOT / "data" / "tinyshakespeare.py",
        "--source",
        tmp_path / "input.txt",
        "--tokenizer=chars",
    ]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert texts(Path(done.stdout.strip()), "train")[0].startswith("First Citizen")
    assert "documents" in done.stderr
    done = subprocess.run([*words[:2], "--tokenzier=chars"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --tokenizer?" in done.stderr


def test_the_script_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (ROOT / "docs" / "data.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "fables.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    dataset = import_module("fables").DATASET
    monkeypatch.setattr(preparing, "load_dataset", lambda name: dataset)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "fables.txt").write_text("\n\n\n".join(f"Fable {i}: an ass." for i in range(10, 40)) + "\n\n\nx")
    folder = prepare("fables", source=tmp_path / "in", tokenizer="bytes", min_chars=5)
    assert len(texts(folder, "train")) + len(texts(folder, "val")) == 30
    assert folder.name == "fables-min_chars5-bytes"


def test_slug_keeps_different_values_apart() -> None:
    assert slug("bpe:4096") == "bpe4096"
    assert slug(0.5) == "0.5"
    assert len({slug(value) for value in ("\n\n", "\n", "--", "a b", "a_b", "\u00e9", "..", "")}) == 8


def test_three_documents_to_look_at(novels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(novels, tokenizer="bytes")
    said = capsys.readouterr().err
    found = texts(folder, "train")
    for i in (0, len(found) // 2, len(found) - 1):
        assert len(found[i]) > 300
        assert f"  train {i} (300 and more tokens): {found[i][:300]!r}" in said


def test_progress_off_a_terminal_is_a_line_now_and_then(
    novels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(novels, tokenizer="bytes")
    assert "MB/s" not in capsys.readouterr().err
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(preparing.time, "monotonic", lambda: float(next(clock)))
    prepare(novels, tokenizer="chars")
    said = [line for line in capsys.readouterr().err.splitlines() if "MB/s" in line]
    assert said
    assert all(re.search(r": \d+ of about \d+ MB, \d+\.\d MB/s, .* left$", line) for line in said)
