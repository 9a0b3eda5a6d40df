"""One thing to prepare: a data set or own text, with all that decides its tokens, and what it is called."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from minilm.errors import UsageError
from minilm.text.clean import Cleaner, make_cleaner
from minilm.text.encode import Coded, tokenizer_key
from minilm.text.folders import short_hash, slug
from minilm.text.holdout import Holdout
from minilm.text.long_text import LongText
from minilm.text.parallel import n_cores
from minilm.text.reading import read
from minilm.text.scripts import TEXT_FILES, Dataset, Document, Made
from minilm.text.sources import Files, file_sha256

FORMAT = 1  # raised when the same source gives other tokens than before


@dataclass
class Job:
    """One thing to prepare."""

    dataset: Dataset
    tokenizer: str
    files: Files | None  # the user's copy
    made: Made | None
    max_docs: int
    clean: str  # a recipe of clean.py
    options: dict[str, Any]
    control_codes: str = "off"
    tokens: tuple[str, ...] = ()  # that the tokenizer gains, for control codes of all data sets of a mixture
    code_ids: dict[str, int] = field(default_factory=dict)
    holdout: Holdout | None = None
    cleaner: Cleaner | None = None  # of the latest pass over the training text
    short: Counter[str] = field(default_factory=Counter)  # documents dropped for their length, by split

    def folder_name(self) -> str:
        """The script's name, or the text's with a hash of where it lies; options unlike the defaults; the tokenizer."""
        parts = [self.dataset.name]
        if self.dataset.name == TEXT_FILES and self.files:
            parts = [slug(self.files.given.stem), short_hash(str(self.files.given.resolve()))]
        parts += self.dataset.unlike_defaults(self.options)
        parts += [f"docs{self.max_docs}"] if self.max_docs else []
        parts += [f"clean{short_hash(self.clean)}"] if self.clean else []
        if self.control_codes != "off":
            parts += [self.control_codes + (short_hash(" ".join(self.tokens)) if self.tokens else "")]
        path = Path(self.tokenizer).expanduser()
        named = f"{slug(path.stem)}{short_hash(str(path.resolve()))}" if path.exists() else slug(self.tokenizer)
        return "-".join([*parts, named])

    def recipe(self) -> dict[str, Any]:
        script = Path(self.dataset.documents.__code__.co_filename)
        return {
            "format": FORMAT,
            "data": self.dataset.name,
            "script": file_sha256(script) if script.is_file() else "",
            "made": self.made.fingerprint if self.made else "",
            "options": self.options,
            "max_docs": self.max_docs,
            **({"clean": self.clean} if self.clean else {}),
            **({"control_codes": [self.control_codes, *self.tokens]} if self.control_codes != "off" else {}),
            "tokenizer": tokenizer_key(self.tokenizer),
        }

    def command(self) -> str:
        """What prepares it again."""
        words = ["minilm", "data", "prepare", self.dataset.name, "--tokenizer", self.tokenizer]
        words += ["--source", str(self.files.given)] if self.files else []
        words += ["--max_docs", str(self.max_docs)] if self.max_docs else []
        words += ["--clean", self.clean] if self.clean else []
        words += ["--control_codes", self.control_codes] if self.control_codes != "off" else []
        defaults = self.dataset.options
        return shlex.join(
            words + [f"--{name}={value}" for name, value in self.options.items() if value != defaults[name]]
        )

    def documents(self, files: Files) -> Iterator[tuple[str, str]]:
        """(split, text) of each document."""
        for split in self.dataset.splits:
            texts = self.texts(files, split)
            if self.holdout and split == "train":
                yield from self.holdout.split(texts)
            else:
                yield from ((split, text) for text in texts)

    def texts(self, files: Files, split: str) -> Iterator[str]:
        """The split's texts; the training split's cleaned, since a test set stays as it was published."""
        cleaner = make_cleaner(self.clean) if self.clean and split == "train" else None
        self.cleaner = cleaner or self.cleaner
        workers = 1 if self.max_docs else n_cores()  # reading ahead, others would count notes of documents beyond
        pairs = _with_text(read(self.dataset, files, split, self.options, workers), files)
        return islice(self._coded(pairs, cleaner, workers), self.max_docs or None)

    def _coded(self, pairs: Iterable[tuple[str, str]], cleaner: Cleaner | None, workers: int) -> Iterator[str]:
        """The texts, cleaned, each with its control code."""
        if cleaner or self.control_codes != "off":  # these need a text whole
            pairs = (("".join(text.parts()) if isinstance(text, LongText) else text, label) for text, label in pairs)
        if cleaner:
            pairs = cleaner.run(pairs, workers)
        return (self._with_code(text, label) for text, label in pairs)

    def _with_code(self, text: str, label: str) -> str:
        code = self.source_code if self.control_codes.startswith("source") else label
        if self.control_codes == "off" or not code:
            return text
        if not self.control_codes.endswith("tokens"):
            return f"{code}: {text}"
        if not self.code_ids:  # a pass before there is a tokenizer
            return text
        if (token := code_token(code)) not in self.code_ids:
            raise UsageError(f"{self.dataset.name} has a document labelled {label!r}, which its script does not state")
        return Coded(text, self.code_ids[token])

    @property
    def source_code(self) -> str:
        """What documents of this data set begin with: its name, or your own text's."""
        return slug(self.files.given.stem) if self.dataset.name == TEXT_FILES and self.files else self.dataset.name

    def own_codes(self) -> tuple[str, ...]:
        """The tokens that this job's control codes need. Raises UsageError where labels are not known beforehand."""
        if self.control_codes == "source_tokens":
            return (code_token(self.source_code),)
        if self.control_codes == "label_tokens":
            if not self.dataset.labels:
                raise UsageError(f"{self.dataset.name} states no labels: use --control_codes source_tokens")
            return tuple(map(code_token, self.dataset.labels))
        return ()

    def dropped_short(self, split: str, n_tokens: int) -> bool:
        """Whether a document of so many tokens is left out of its split."""
        short = self.cleaner is not None and n_tokens < self.cleaner.min_tokens and split == "train"
        self.short[split] += short
        return short

    def cleaning_report(self, before: str) -> str:
        """What cleaning dropped, a line a step, each behind `before`."""
        if self.cleaner is None:
            return ""
        lines = self.cleaner.report().splitlines()
        if self.cleaner.min_tokens:
            lines += [f"min_tokens:{self.cleaner.min_tokens}: dropped {self.short['train']:,} documents of train"]
        return "".join(before + line for line in lines)


def _with_text(documents: Iterable[Document], files: Files) -> Iterator[tuple[str, str]]:
    """(text, label) of those that are not empty."""
    for one in documents:
        text, label = (one, "") if isinstance(one, str) else one
        if text and not text.isspace():
            yield text, label
        else:
            files.notes["documents dropped, without text"] += 1


def code_token(code: str) -> str:
    return f"<|{code}|>"
