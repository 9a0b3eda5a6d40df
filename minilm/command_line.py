"""Command lines of the smaller doors: argparse, with errors that are one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

from minilm.config import nearest
from minilm.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Hyphens and underscores in names are the same, no name may be abbreviated. Raises UsageError on misuse."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')} ({self.prog} --help lists the options)")

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """The options that `words` set. UsageError names the nearest option to an unknown one."""
        options, unknown = self.parse_known_args([plain(word) for word in words])
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            raise UsageError(f"{self.prog} has no option {name!r}{nearest(name, known)}; --help lists them")
        return options


def unread(options: argparse.Namespace, defaults: argparse.Namespace, read: Container[str]) -> list[str]:
    """Options that differ from their defaults, and are not among those that are read."""
    given = vars(options)
    return [name for name, value in vars(defaults).items() if name not in read and given[name] != value]


def whole(least: int = 0) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from `least` on."""

    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"give a whole number, {least} or more, not {word!r}")
        return int(word)

    return number


def plain(word: str) -> str:
    """`--top-k=5` as `--top_k=5`; values are left alone."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value
