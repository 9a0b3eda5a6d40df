"""`minilm data`: prepare data sets and own text, train a tokenizer, look at what is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from minilm.command_line import Parser
from minilm.config import nearest
from minilm.errors import UsageError
from minilm.text.scripts import known_datasets, load_dataset, prepare_words, split_name

FIRST_DOCUMENTS = 3  # shown of text that is made here

if TYPE_CHECKING:
    from minilm.text.shards import ShardFolder, Split

USAGE = """minilm data list                       the data sets: size, whether GPT-2 saw them, licence; what is prepared
minilm data prepare NAME_OR_PATH ...   tokens of a data set or of your own text (NAME --help: its options)
minilm data show NAME_OR_FOLDER ...    counts, lengths as a picture, documents (--split, --documents, --chars)
                                       (NAME:option=value,option=value is one with these options: tales:level=2)
minilm data check NAME_OR_FOLDER       every shard against meta.json, SHA-256 too
minilm data overlap CORPUS PROBE       n-grams of PROBE that CORPUS has too (--n, --corpus_split, --probe_split)
minilm data train-tokenizer PATH ...   a vocabulary from your text (--help: options)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the first word says; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    jobs = {"list": _list, "prepare": _prepare, "show": _show, "check": _check, "overlap": _overlap}
    jobs |= {"train-tokenizer": _train_tokenizer}
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    job = jobs.get(words[0].replace("_", "-"))
    if job is None:
        raise UsageError(f"minilm data has no {words[0]!r}{nearest(words[0], jobs)}: use {', '.join(jobs)}")
    job(words[1:])
    return 0


def _list(words: list[str]) -> None:
    from minilm.text.folders import data_folder

    print(f"{'name':16}{'download':>14}  {'in GPT-2':9}licence")
    for name in known_datasets():
        dataset = load_dataset(name)
        print(f"{name:16}{dataset.size():>14}  {dataset.in_gpt2:9}{dataset.licence}")
        print(f"{'':41}{dataset.description}")
    prepared = sorted(path.parent for path in data_folder().glob("*/meta.json"))
    print(f"prepared in {data_folder()}: {', '.join(folder.name for folder in prepared) or 'nothing yet'}")


def _prepare(words: list[str]) -> None:
    if not words:
        raise UsageError(f"name what to prepare: {', '.join(known_datasets())}, or a path to your own text")
    print(prepare_words(words))


def _show(words: list[str]) -> None:
    from minilm.text.look import length_histogram
    from minilm.text.prepare import summary
    from minilm.text.shards import open_shards

    parser = Parser(prog="minilm data show")
    parser.add_argument("folder", help="a prepared folder, or a data set that is prepared")
    parser.add_argument("--split", default="", help="train, val or test (the first there is)")
    parser.add_argument("--documents", type=int, default=3, help="how many documents to print (3)")
    parser.add_argument("--chars", type=int, default=500, help="how much of each (500; 0 is all)")
    options = parser.parse_words(words)
    folders = _prepared_folders(options.folder)
    if not folders:
        _show_unprepared(options.folder)
        return
    shards = open_shards(folders[0])
    name, split = _split_of(shards, options.split)
    tokenizer = shards.tokenizer()
    print(f"{summary(folders[0])}\nmade by: {shards.meta.command}")
    if others := [folder.name for folder in folders[1:]]:
        print(f"prepared in other ways too: {', '.join(others)}")
    print(f"\nlengths of {name}'s documents")
    print(length_histogram(split))
    for i in range(min(options.documents, split.n_documents)):
        ids = split.document(i)
        text = tokenizer.decode(ids)
        shown = text[: options.chars or None]
        more = f" [{len(text) - len(shown):,} characters more]" if len(shown) < len(text) else ""
        print(f"\n{tokenizer.end_token} document {i} of {name}, {len(ids):,} tokens\n{shown}{more}")


def _check(words: list[str]) -> None:
    from minilm.text.shards import open_shards

    parser = Parser(prog="minilm data check")
    parser.add_argument("folder", help="a prepared folder, or a data set that is prepared")
    folder = _prepared_folder(parser.parse_words(words).folder)
    shards = open_shards(folder)
    shards.check()
    n_shards = sum(len(split.shards) for split in shards.splits.values())
    n_tokens = sum(split.n_tokens for split in shards.splits.values())
    print(f"{folder}: {n_shards} shards with {n_tokens:,} tokens are as meta.json says, SHA-256 and all")


def _overlap(words: list[str]) -> None:
    from minilm.text.look import documents, overlap
    from minilm.text.shards import open_shards

    parser = Parser(prog="minilm data overlap")
    parser.add_argument("corpus", help="what is trained on: a prepared folder, or a data set that is prepared")
    parser.add_argument("probe", help="what is tested with: the same")
    parser.add_argument("--corpus_split", default="train", help="(train)")
    parser.add_argument("--probe_split", default="", help="(test, else val)")
    parser.add_argument("--n", type=int, default=8, help="words of an n-gram (8, as in GPT-2's report)")
    options = parser.parse_words(words)
    corpus, probe = open_shards(_prepared_folder(options.corpus)), open_shards(_prepared_folder(options.probe))
    probe_split = options.probe_split or next((name for name in ("test", "val") if name in probe.splits), "train")
    texts = [
        documents(_split_of(shards, name)[1], shards.tokenizer())
        for shards, name in ((corpus, options.corpus_split), (probe, probe_split))
    ]
    print(overlap(texts[0], texts[1], options.n))


def _prepared_folder(name: str) -> Path:
    folders = _prepared_folders(name)
    if not folders:
        raise UsageError(f"{name} is not prepared: make it with `minilm data prepare {name}`")
    return folders[0]


def _split_of(shards: ShardFolder, name: str) -> tuple[str, Split]:
    name = name or next(iter(shards.splits))
    if name not in shards.splits:
        raise UsageError(f"{shards.folder} has no split {name!r}: it has {', '.join(shards.splits)}")
    return name, shards.splits[name]


def _prepared_folders(words: str) -> list[Path]:
    """The prepared folder itself; those of a data set, options behind its name or none, with its defaults first; or
    those whose names begin so."""
    from minilm.text.folders import data_folder, is_prepared, made_of

    if is_prepared(words):
        return [Path(words).expanduser()]
    name, options = split_name(words)
    folders = sorted(path.parent for path in data_folder().glob("*/meta.json"))
    if name not in known_datasets():
        return [folder for folder in folders if folder.name.startswith(name)]
    wanted = load_dataset(name).options | options
    found = [(made_of(folder), folder) for folder in folders]
    theirs = [(options == wanted, folder) for (data, options), folder in found if data == name]
    exact = [folder for is_wanted, folder in theirs if is_wanted]
    return exact + [folder for is_wanted, folder in theirs if not is_wanted] if exact or not options else []


def _show_unprepared(words: str) -> None:
    """The first documents of text that is made here; UsageError for any other."""
    from minilm.text.sources import Files

    name, options = split_name(words)
    dataset = load_dataset(name) if name in known_datasets() else None
    if dataset is None or dataset.made is None:
        raise UsageError(f"{words} is not prepared: make it with `minilm data prepare {words}`")
    print(f"{dataset.description} Licence: {dataset.licence}. Not prepared yet; it begins:")
    for text in islice(dataset.documents(Files(Path(), {}), "train", **(dataset.options | options)), FIRST_DOCUMENTS):
        print(f"  {text}")


def _train_tokenizer(words: list[str]) -> None:
    from minilm.text.sources import Files
    from minilm.text.tokenizer import train_tokenizer
    from minilm.text.userfiles import read_documents

    parser = Parser(prog="minilm data train-tokenizer")
    parser.add_argument("path", help="file or folder of text: txt, md, html, jsonl, csv, also packed")
    parser.add_argument("--kind", default="bpe", choices=("bpe", "words", "chars"), help="(bpe)")
    parser.add_argument("--vocab_size", type=int, default=0, help="tokens; bpe needs it, 0 is all words or characters")
    parser.add_argument("--out", default="tokenizer", help="folder for tokenizer.json (tokenizer)")
    options = parser.parse_words(words)
    path = Path(options.path).expanduser()
    if not path.exists():
        raise UsageError(f"{path} does not exist: name a file or folder of text")
    if options.kind == "bpe" and not options.vocab_size:
        raise UsageError("a bpe needs its size: add --vocab_size 4096, for example")
    tokenizer = train_tokenizer(options.kind, read_documents(Files.at(path)), options.vocab_size)
    tokenizer.save(options.out)
    print(f"{options.out}: {tokenizer.name} of {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint}")
