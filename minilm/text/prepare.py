"""From a data script's documents, or a user's own text, to a folder of shards.

Documents are streamed: read, cut into pieces, encoded and written in batches of a few megabytes, so memory does not
grow with the corpus. A folder whose recipe still holds is reused (`folders.py`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minilm import __version__
from minilm.errors import MinilmError, UsageError
from minilm.log import duration, say
from minilm.text.clean import make_cleaner
from minilm.text.download import download, recorded_sha256
from minilm.text.encode import encode_documents, make_tokenizer, tokenizer_key
from minilm.text.folders import check_space, data_folder, read_recipe, recover, replacing, still_holds, write_recipe
from minilm.text.holdout import choose
from minilm.text.jobs import Job
from minilm.text.resume import STATE, Progress
from minilm.text.scripts import TEXT_FILES, Dataset, known_datasets, load_dataset, split_name
from minilm.text.shard_format import Meta, SplitMeta, write_meta
from minilm.text.shard_writer import ShardWriter
from minilm.text.shards import open_shards
from minilm.text.sources import Files, digest
from minilm.text.tokenizer import Tokenizer

SPARE_BYTES = 50_000_000
LINE_SECONDS = 30.0
SHOWN_CHARS = 300
LISTED_FILES = 100  # with a SHA-256 each in meta.json; more have one together


def prepare(
    name_or_path: str | Path,
    *,
    tokenizer: str | None = None,
    source: str | Path | None = None,
    max_docs: int = 0,
    clean: str = "",
    control_codes: str = "off",
    tokens: Sequence[str] = (),
    force: bool = False,
    out: str | Path | None = None,
    **options: Any,
) -> Path:
    """The folder of shards for a data script's name (options may stand behind it: `tales:level=2,style=fable`), a path
    to your own text, or a prepared folder (returned as it is); built where it is missing or what it was made of has
    changed.

    tokenizer: gpt2, bytes, chars, words, bpe:4096 (any size) or a path; "" or None for the script's own choice.
    source: a local copy instead of a download. max_docs: at most so many of each split, 0 for all. force: build anyway.
    clean: steps that training text goes through (`clean.py`): "repair,language:en,near_duplicates,min_tokens:128".
    out: the folder to write, instead of one under $MINILM_DATA or data/shards. options: the script's.
    control_codes: what each document begins with: its source's name or its label, as text ("imdb: "; source, label) or
    as a token (<|imdb|>; source_tokens, label_tokens). tokens: that the tokenizer gains beside this data set's codes.
    Raises UsageError for a name, path, option or text that cannot be used, MinilmError where download or disk fail.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if (path / "meta.json").is_file():
        codes = control_codes not in ("off", *(read_recipe(path).get("recipe") or {}).get("control_codes", ())[:1])
        return _prepared(path, tokenizer, bool(source or max_docs or clean or codes or force or out or options))
    name, named = split_name(name)
    options = named | options
    if name not in known_datasets() and path.exists():
        name, source = TEXT_FILES, path
    dataset = load_dataset(name)
    if not (dataset.sources or dataset.made or source):
        raise UsageError(f"{name} reads your own text: give it a file or a folder")
    if dataset.made and source:
        raise UsageError(f"{name} is made here and reads no source: leave out --source")
    if max_docs < 0:
        raise UsageError(f"max_docs must be 0 (all) or more, not {max_docs}")
    given = dataset.check_options(options)
    files = Files.at(Path(source).expanduser().absolute()) if source else None
    made = dataset.made(**given) if dataset.made else None
    make_cleaner(clean)  # a wrong recipe is told before anything is read
    job = Job(dataset, tokenizer or dataset.tokenizer, files, made, max_docs, clean, given, control_codes)
    job.tokens = tuple(sorted({*tokens, *job.own_codes()}))
    folder = Path(out).expanduser() if out else data_folder() / job.folder_name()
    recover(folder)
    if folder.exists() and not (folder / "meta.json").is_file():
        raise UsageError(f"{folder} exists and is no prepared folder: choose another --out or move it away")
    recipe = job.recipe()
    if force or not (still_holds(folder, recipe, files) and _is_whole(folder)):
        _build(job, recipe, folder)
    return folder


def _build(job: Job, recipe: dict[str, Any], folder: Path) -> None:
    files, hashes = (job.files, job.files.sha256s()) if job.files else downloaded(job.dataset, job.options)
    local = {"stat_key": files.stat_key(), "content_key": digest(hashes)} if job.files else {}
    progress = Progress(folder, digest(hashes | {"recipe": json.dumps(recipe, sort_keys=True)}))
    text_bytes = job.made.text_bytes if job.made else files.text_bytes()
    if "train" in job.dataset.splits and "val" not in job.dataset.splits:
        with _progress("reading", text_bytes) as advance:
            job.holdout = progress.holdout(lambda: choose(_heard(job.texts(files, "train"), advance)))
        text_bytes = job.holdout.text_bytes
        if not job.holdout.n_documents:
            raise UsageError(f"{files.given} holds no text{_notes(files, ', ', ' (', ')')}: name other files")
    tokenizer = progress.tokenizer(
        lambda: make_tokenizer(job.tokenizer, lambda: job.documents(files), job.made is not None, job.tokens)
    )
    if job.tokens:
        job.code_ids = {token: tokenizer.encode(token, special=True)[0] for token in job.tokens}
    check_space(folder.parent, _shard_bytes(text_bytes, tokenizer), f"preparing {folder.name}")
    files.notes.clear()  # the passes before only looked
    with replacing(folder, progress.is_kept) as temporary:
        splits = _write(job, files, tokenizer, temporary, text_bytes, progress)
        (temporary / STATE).unlink(missing_ok=True)
        if job.files and local["stat_key"] != Files.at(files.given).stat_key():
            raise MinilmError(f"{files.given} changed while it was read: run again when it is at rest")
        write_recipe(temporary, recipe, local)
        listed = hashes if len(hashes) <= LISTED_FILES else {f"{len(hashes)} files": digest(hashes)}
        meta = Meta(
            name=job.dataset.name,
            tokenizer=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot,
            splits=splits,
            sources=listed,
            licence=job.dataset.licence,
            command=job.command(),
            minilm=__version__,
        )
        write_meta(temporary, meta)
    say(summary(folder) + _notes(files, "\n  ", "\n  ") + job.cleaning_report("\n  "))
    say(examples(folder))


def _write(
    job: Job, files: Files, tokenizer: Tokenizer, folder: Path, text_bytes: int, progress: Progress
) -> dict[str, SplitMeta]:
    """Encodes every document into shards. Raises UsageError where there is none."""
    writers: dict[str, ShardWriter] = {}

    def writer_of(split: str) -> ShardWriter:
        if split not in writers:
            writers[split] = ShardWriter(folder, split, tokenizer=tokenizer)
        return writers[split]

    progress.restore(folder, tokenizer, writer_of)
    job.short = progress.short
    with _progress(job.folder_name(), text_bytes) as advance:
        counts = encode_documents(
            islice(job.documents(files), progress.n_documents, None),
            tokenizer,
            writer_of,
            advance,
            job.dropped_short,
            progress.counts,
            lambda n: progress.done(n, writers, job.holdout, job.short),
        )
    if not counts:
        patterns = f"the files of {job.dataset.name}" if job.dataset.sources else "a document"
        raise UsageError(f"{files.given} does not hold {patterns}: give the data set in its original form as --source")
    for split in job.dataset.splits:
        if split not in counts:
            files.notes[f"split missing from the source: {split}"] += 1
        elif counts[split].unknown:
            files.notes[f"tokens of {split} outside the vocabulary"] = counts[split].unknown
    if job.holdout and job.holdout.cut:
        files.notes["document in all: its last tenth, from a paragraph border on, validates"] = 1
    return {
        split: writer.close(n_bytes=counts[split].bytes, n_words=counts[split].words)
        for split, writer in writers.items()
    }


def summary(folder: Path) -> str:
    """The counts of a prepared folder as a small table."""
    meta = open_shards(folder).meta
    lines = [f"{folder}: tokenizer {meta.tokenizer} of {meta.vocab_size:,}, licence {meta.licence}"]
    lines += [f"  {'':5}{'documents':>13}{'bytes':>16}{'words':>15}{'tokens':>15}{'bytes/token':>13}"]
    for name, split in meta.splits.items():
        per_token = split.bytes / split.tokens
        lines += [
            f"  {name:5}{split.documents:13,}{split.bytes:16,}{split.words:15,}{split.tokens:15,}{per_token:13.2f}"
        ]
    return "\n".join(lines)


def examples(folder: Path) -> str:
    """The beginnings of the first document, of one in the middle and of the last, to look at."""
    shards = open_shards(folder)
    name, split = next(iter(shards.splits.items()))
    tokenizer = shards.tokenizer()
    lines = []
    for i in sorted({0, split.n_documents // 2, split.n_documents - 1}):
        ids = split.document(i, SHOWN_CHARS)  # a token has a character or more, a document any length
        text, more = tokenizer.decode(ids)[:SHOWN_CHARS], " and more" if len(ids) == SHOWN_CHARS else ""
        lines.append(f"  {name} {i:,} ({len(ids):,}{more} tokens): {text!r}")
    return "\n".join(lines)


def _prepared(folder: Path, tokenizer: str | None, asked_for_more: bool) -> Path:
    meta = open_shards(folder).meta
    known = (meta.tokenizer, meta.fingerprint)
    if asked_for_more or (tokenizer and tokenizer_key(tokenizer).partition(":")[0] not in known):
        raise UsageError(
            f"{folder} is prepared already, with tokenizer {meta.tokenizer} ({meta.fingerprint}): "
            f"give the original text to prepare it in another way"
        )
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        open_shards(folder)
    except MinilmError as error:
        say(f"{error}; building it again")
        return False
    return True


def downloaded(dataset: Dataset, options: dict[str, Any]) -> tuple[Files, dict[str, str]]:
    """The data set's files and the SHA-256 of each."""
    folder = data_folder() / "downloads" / dataset.name
    sources = dataset.downloads(folder, options)
    missing = sum(source.bytes for source in sources if not (folder / source.name).is_file())
    check_space(folder, missing, f"downloading {dataset.name}")
    found = {source.name: download(source, folder) for source in sources}
    return Files(folder, found), {source.name: recorded_sha256(source, folder) or source.sha256 for source in sources}


def _shard_bytes(text_bytes: int, tokenizer: Tokenizer) -> int:
    """An upper estimate, rarely reached: English has four bytes in a token of GPT-2's, other scripts two and less."""
    tokens = text_bytes if tokenizer.name in ("bytes", "chars") else text_bytes / 2
    return int(tokens * (2 if tokenizer.vocab_size <= 65_536 else 4)) + SPARE_BYTES


def _notes(files: Files, between: str, before: str, after: str = "") -> str:
    notes = [f"{count:,} {note}" for note, count in sorted(files.notes.items())]
    return f"{before}{between.join(notes)}{after}" if notes else ""


def _heard(texts: Iterator[str], advance: Callable[[int], object]) -> Iterator[str]:
    for text in texts:
        advance(len(text))
        yield text


@contextmanager
def _progress(what: str, n_bytes: int) -> Iterator[Callable[[int], object]]:
    """A bar with MB/s and time left on stderr; off a terminal, a line every LINE_SECONDS."""
    if sys.stderr.isatty():
        with tqdm(total=n_bytes, desc=what, unit="B", unit_scale=True) as bar:
            yield bar.update
        return
    begun = told = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, told
        done += n
        now = time.monotonic()
        if now - told >= LINE_SECONDS and done:
            told, speed = now, done / (now - begun)
            left = duration(max(n_bytes - done, 0) / speed)
            say(f"{what}: {done / 1e6:,.0f} of about {n_bytes / 1e6:,.0f} MB, {speed / 1e6:.1f} MB/s, {left} left")

    yield advance
