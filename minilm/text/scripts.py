"""What a data script declares, how it is found by name, and its command line.

A script in the top-level folder `data/` holds one `DATASET` and ends with `script_main(DATASET)` under its main guard.
`documents(files, split, *, option=default, ...)` yields the texts of one split, or (text, label) where its documents
have labels (`--control_codes` can use them); its keyword arguments are the script's options, on the command line too,
and behind the name wherever a data set is named: `tales:level=2,style=fable`. A split that the source lacks yields
nothing. Where a script has no "val" among its splits, validation documents are held out of "train" (`holdout.py`).
"""

from __future__ import annotations

import argparse
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from minilm.command_line import Parser
from minilm.config import ControlCodes, nearest
from minilm.errors import MinilmError, UsageError
from minilm.options import truth
from minilm.text.download import Source
from minilm.text.folders import slug
from minilm.text.hub_files import HubFiles
from minilm.text.sources import Files

__all__ = ["Dataset", "Document", "Documents", "Files", "HubFiles", "Made", "Source", "script_main"]  # for scripts

TEXT_FILES = "textfiles"  # the script that reads a user's own text

Document = str | tuple[str, str]
"""A text, or a text and its label."""
Documents = Iterator[Document]
"""What a script yields of a split."""


class Made(NamedTuple):
    """Of text that is made here instead of read: what tells one generator's text from another's, and its size."""

    fingerprint: str
    text_bytes: int


@dataclass(frozen=True)
class Dataset:
    """One data set. With neither `sources` nor `made` it always needs a path: the user's own text."""

    name: str
    description: str
    licence: str
    citation: str
    documents: Callable[..., Iterable[Document]]
    sources: tuple[Source | HubFiles, ...] | Callable[..., Sequence[Source | HubFiles]] = ()
    """What is downloaded; where that depends on the options, a function of them."""
    labels: tuple[str, ...] = ()
    """All that documents can have, where they are few; control codes as tokens need to know them."""
    about_bytes: int = 0
    """Of the download, where `sources` do not state it."""
    in_gpt2: Literal["partly", "no"] = "no"
    """Whether GPT-2 saw it in pretraining. WebText, which was never released, has pages that Reddit linked to by the
    end of 2017, without Wikipedia's (Radford 2019). partly: some of the documents may be such pages."""
    splits: tuple[str, ...] = ("train", "val", "test")
    tokenizer: str = "gpt2"
    made: Callable[..., Made] | None = None
    """Called with the options."""
    parts: Literal["one", "files", "row_groups"] = "one"
    """What can be read by itself, so that several processes read: nothing; each of the files; row groups of parquet
    files too. Documents then come in the order of the files' paths."""
    build: str = ""
    """The module whose `build_words` takes the words of a command line with --build among them."""

    @property
    def options(self) -> dict[str, Any]:
        """The script's own options with their defaults, whose types they have."""
        parameters = inspect.signature(self.documents).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def downloads(self, folder: Path, options: Mapping[str, Any]) -> list[Source]:
        """Every file to download into `folder`. Raises MinilmError where a listing cannot be had."""
        stated = self.stated_sources(options)
        return [one for entry in stated for one in (entry.listed(folder) if isinstance(entry, HubFiles) else [entry])]

    def stated_sources(self, options: Mapping[str, Any]) -> Sequence[Source | HubFiles]:
        return self.sources(**options) if callable(self.sources) else self.sources

    def size(self) -> str:
        """Of the download with the default options: 84 MB, or about 84 MB where the host has published no size."""
        n_bytes = self.about_bytes
        if not n_bytes:
            n_bytes = sum(entry.bytes for entry in self.stated_sources(self.options) if isinstance(entry, Source))
        if not n_bytes:
            return "made here" if self.made else "yours"
        size = f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.{n_bytes < 1e7:d}f} MB"
        return f"about {size}" if self.about_bytes else size

    def choices(self, option: str) -> tuple[Any, ...]:
        """Of an option whose annotation is a `Literal`; empty for the others."""
        hint = get_type_hints(self.documents)[option]
        return get_args(hint) if get_origin(hint) is Literal else ()

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options whole. Raises UsageError for one that is unknown or of a wrong type."""
        options = self.options
        for name, value in given.items():
            if name not in options:
                known = f"its options: {', '.join(options)}" if options else "it has no options of its own"
                raise UsageError(f"{self.name} has no option {name!r}{nearest(name, options)}; {known}")
            kind = type(options[name])
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise UsageError(f"{name} takes {kind.__name__}, not {value!r}")
            if (choices := self.choices(name)) and value not in choices:
                raise UsageError(f"{name} is {value!r}: choose {', '.join(map(str, choices))}{nearest(value, choices)}")
            options[name] = value
        return options

    def unlike_defaults(self, options: Mapping[str, Any]) -> list[str]:
        """Name and value of each option that differs from its default, fit for a file name."""
        return [f"{name}{slug(value)}" for name, value in options.items() if value != self.options[name]]

    def read_options(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Options from words: of the types that `check_options` asks for. Raises UsageError as it does."""
        kinds = {name: type(default) for name, default in self.options.items()}
        values: dict[str, Any] = {}
        for name, word in given.items():
            kind = kinds.get(name, str)
            try:
                values[name] = truth(word) if kind is bool else kind(word)
            except (ValueError, KeyError):
                raise UsageError(f"{self.name}: {name} takes {kind.__name__}, not {word!r}") from None
        self.check_options(values)
        return values


def known_datasets() -> list[str]:
    """Names of the scripts."""
    try:
        package = import_module("minilm.datasets")
    except ModuleNotFoundError as error:
        raise MinilmError("the data scripts are not installed: run pip install -e . in the repository") from error
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_dataset(name: str) -> Dataset:
    """The script's declaration. Raises UsageError with the nearest name where there is none of that name."""
    known = known_datasets()
    if name not in known:
        raise UsageError(
            f"there is no data set or path {name!r}{nearest(name, known)}: name one of {', '.join(known)}, "
            f"or a file or folder of your own text"
        )
    dataset: Dataset = import_module(f"minilm.datasets.{name}").DATASET
    return dataset


def split_name(words: str) -> tuple[str, dict[str, Any]]:
    """`tales:level=2,style=plain,fable` -> ("tales", {"level": 2, "style": "plain,fable"}); what does not begin with a
    script's name and a colon is returned as it is, without options. Raises UsageError on an unknown option or value."""
    name, colon, listed = words.partition(":")
    if not colon or name not in known_datasets():
        return words, {}
    dataset = load_dataset(name)
    parts = [part for part in re.split(r",(?=\w+=)", listed) if part]
    return name, dataset.read_options(dict(_pair(name, part) for part in parts))


def _pair(name: str, part: str) -> tuple[str, str]:
    option, equals, value = part.partition("=")
    if not equals:
        raise UsageError(f"options stand behind {name} as name=value,name=value, not {part!r}")
    return option.strip().replace("-", "_"), value.strip()


def script_main(dataset: Dataset, argv: Sequence[str] | None = None) -> None:
    """A script's command line: prepares the data set, prints the folder; exits with 1 on failure, 2 on misuse."""
    try:
        print(prepare_words([dataset.name, *(sys.argv[1:] if argv is None else argv)]))
    except MinilmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: nothing was changed", file=sys.stderr)
        sys.exit(130)


def prepare_words(words: Sequence[str]) -> Path:
    """`prepare` from a command line: a script's name or a path to your own text, then options."""
    from minilm.text.prepare import prepare

    (name, options), rest = split_name(words[0]), list(words[1:])
    if name not in known_datasets() and Path(name).expanduser().exists():
        name, rest = TEXT_FILES, [name, *rest]
    dataset = load_dataset(name)
    if dataset.build and "--build" in (word.partition("=")[0] for word in rest):
        built: Path = import_module(dataset.build).build_words(rest)
        return built
    parser = parser_of(dataset)
    parser.set_defaults(**options)
    values = vars(parser.parse_words(rest))
    path = values.pop("path", None)
    values["source"] = values["source"] or path
    return prepare(name, **values)


def parser_of(dataset: Dataset) -> Parser:
    parser = Parser(
        prog=dataset.name, description=f"{dataset.description} Licence: {dataset.licence}. {dataset.citation}"
    )
    if not (dataset.sources or dataset.made):
        parser.add_argument("path", nargs="?", help="your file or folder")
    parser.add_argument("--source", help="a local copy in its original form: file, folder, zip or tar")
    parser.add_argument("--tokenizer", help=f"gpt2, bytes, chars, words, bpe:4096 or a path ({dataset.tokenizer})")
    parser.add_argument("--out", help="folder to write (a name of its own under $MINILM_DATA, else data/shards)")
    parser.add_argument("--max_docs", type=int, default=0, help="at most so many documents of each split (all)")
    parser.add_argument(
        "--clean", default="", help="steps for training text: repair,language:en,near_duplicates,min_tokens:128"
    )
    parser.add_argument("--control_codes", default="off", choices=get_args(ControlCodes), help="(off)")
    parser.add_argument("--force", action="store_true", help="build again even if nothing changed")
    for name, default in dataset.options.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"({default!r})")
    return parser
