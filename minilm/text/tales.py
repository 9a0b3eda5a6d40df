"""Tales: an embedded corpus that can grade. Any amount of it from a seed, nothing to download.

A story is a plan of events in a small world (`tales_world`), told by a grammar (`tales_grammar`) and read back by the
grader (`tales_grade`). Plain ASCII, one line per story, words, full stops, commas and single spaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from minilm.errors import UsageError
from minilm.text.tales_copy import CopyCheck
from minilm.text.tales_grade import Verdict, grade
from minilm.text.tales_grammar import Grammar, grammar
from minilm.text.tales_world import RULES, Event

__all__ = ["RULES", "SPLITS", "Beat", "CopyCheck", "Verdict", "grade", "stories", "story", "trace"]

SPLITS = ("train", "val", "fresh")
"""Disjoint ranges of seeds: for training, for validation, and for measuring (never trained on)."""

MASK = 2**64 - 1


class Beat(NamedTuple):
    """One sentence of a story with what happens in it."""

    text: str
    form: str
    """The sentence with its fields open: '{X.He} walked to the {Q}.'"""
    events: tuple[Event, ...]
    """Their arguments are letters of `cast`."""
    cast: dict[str, object]


def splitmix(x: int) -> int:
    """64 bits to 64 bits, one to one (Steele, Lea, Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _random_bits(seed: int) -> int:
    """192 bits; a story uses about 120 of them."""
    bits = 0
    for _ in range(3):
        seed = splitmix(seed)
        bits = bits << 64 | seed
    return bits


def _tell(seed: int, g: Grammar) -> tuple[list[tuple[str, tuple[Event, ...]]], dict[str, object]]:
    """Draws a cast, a plan and the wordings; words it again where the story is too short or too long."""
    shortest, longest = g.limits.words
    bits = _random_bits(seed)
    bits, i = divmod(bits, len(g.people))
    bits, j = divmod(bits, len(g.things))
    bits, n = divmod(bits, len(g.loose))
    places = g.places
    bits, k = divmod(bits, len(places))
    bits, m = divmod(bits, len(places) - 1)
    cast = {"X": g.people[i], "T": g.things[j], "P": places[k], "Q": places[m + (m >= k)], "D": g.loose[n]}
    bits, i = divmod(bits, len(g.plans))
    plans = g.plans[i]
    while True:
        bits, i = divmod(bits, len(plans))
        plan, at, words, mentioned = plans[i], 0, 0, True
        told = []
        while at < len(plan):
            choice = plan[at]
            bits, i = divmod(bits, len(choice))
            option = choice[i]
            forms = option.forms if mentioned else option.named
            bits, i = divmod(bits, len(forms))
            text, length, mentioned = forms[i]
            told.append((text, option.events))
            words += length
            at = option.next
        if shortest <= words <= longest:
            return told, cast
        seed = splitmix(~seed & MASK)
        bits = _random_bits(seed)


def _check_seed(seed: int, end: int) -> None:
    if not 0 <= seed < end:
        raise UsageError(f"a seed for tales lies in 0 to {end - 1}, not {seed}")


def story(seed: int, level: int = 1) -> str:
    """One story, a pure function of `seed` (0 to 2**64 - 1). UsageError: no such level or seed."""
    _check_seed(seed, 2**64)
    told, cast = _tell(seed, grammar(level))
    return "".join([text for text, _ in told]).format_map(cast)[:-1]


def trace(seed: int, level: int = 1) -> list[Beat]:
    """The same story sentence by sentence, with its events."""
    _check_seed(seed, 2**64)
    told, cast = _tell(seed, grammar(level))
    return [Beat(text.format_map(cast)[:-1], text[:-1], events, cast) for text, events in told]


def stories(
    n: int | None = None, megabytes: float | None = None, seed: int = 0, level: int = 1, split: str = "train"
) -> Iterator[str]:
    """Streams `n` stories, or the whole stories that first make up `megabytes` (10**6 bytes, each with one line end).

    No two of (split, seed), seed 0 to 2**20 - 1, share a story's seed. UsageError: neither or both of n and megabytes,
    or an unknown level, seed or split.
    """
    if (n is None) == (megabytes is None):
        raise UsageError("give stories() either n or megabytes")
    if (n or 0) < 0 or (megabytes or 0) < 0:
        raise UsageError(f"stories() makes 0 or more of them, not {n or megabytes}")
    if split not in SPLITS:
        raise UsageError(f"tales have the splits {', '.join(SPLITS)}, not {split!r}")
    _check_seed(seed, 2**20)
    return _stream(n, megabytes, (SPLITS.index(split) << 20 | seed) << 40, grammar(level))


def _stream(n: int | None, megabytes: float | None, first: int, g: Grammar) -> Iterator[str]:
    left = float("inf") if megabytes is None else megabytes * 1e6
    count = 2**40 if n is None else n
    for seed in range(first, first + count):
        if left <= 0:
            return
        told, cast = _tell(seed, g)
        text = "".join([form for form, _ in told]).format_map(cast)[:-1]
        left -= len(text) + 1
        yield text
