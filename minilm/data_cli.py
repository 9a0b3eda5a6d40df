"""`minilm data`: prepare data sets and own text, train a tokenizer, look at what is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from minilm.command_line import Parser
from minilm.config import nearest
from minilm.errors import UsageError
from minilm.text.scripts import known_datasets, load_dataset, prepare_words, split_name

FIRST_DOCUMENTS = 3  # shown of text that is made here

USAGE = """minilm data list                       the data sets, their licences, and what is prepared
minilm data prepare NAME_OR_PATH ...   tokens of a data set or of your own text (NAME --help: its options)
minilm data show NAME_OR_FOLDER        counts of a prepared folder, and its first document
                                       (NAME:option=value,option=value is one with these options: tales:level=2)
minilm data train-tokenizer PATH ...   a vocabulary from your text (--help: options)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the first word says; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    jobs = {"list": _list, "prepare": _prepare, "show": _show, "train-tokenizer": _train_tokenizer}
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

    for name in known_datasets():
        dataset = load_dataset(name)
        print(f"{name:16} {dataset.description} Licence: {dataset.licence}.")
    prepared = sorted(path.parent for path in data_folder().glob("*/meta.json"))
    print(f"prepared in {data_folder()}: {', '.join(folder.name for folder in prepared) or 'nothing yet'}")


def _prepare(words: list[str]) -> None:
    if not words:
        raise UsageError(f"name what to prepare: {', '.join(known_datasets())}, or a path to your own text")
    print(prepare_words(words))


def _show(words: list[str]) -> None:
    from minilm.text.prepare import summary
    from minilm.text.shards import open_shards

    if len(words) != 1:
        raise UsageError("name one prepared folder, or a data set: minilm data show tales")
    folders = [Path(words[0])] if (Path(words[0]) / "meta.json").is_file() else _prepared_of(words[0])
    if not folders:
        _show_unprepared(words[0])
        return
    shards = open_shards(folders[0])
    tokenizer = shards.tokenizer()
    print(summary(folders[0]))
    for name, split in shards.splits.items():
        print(f"  first document of {name}: {tokenizer.decode(split.document(0)[:200])!r}")
    print(f"  made by: {shards.rebuild_command}")
    if others := [folder.name for folder in folders[1:]]:
        print(f"  prepared in other ways too: {', '.join(others)}")


def _prepared_of(words: str) -> list[Path]:
    """Prepared folders of a data set, options behind its name or none, those with its defaults first; or those whose
    names begin so."""
    from minilm.text.folders import data_folder, made_of

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
    parser.add_argument("path", help="file or folder of text: txt, md, jsonl, csv, also packed")
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
