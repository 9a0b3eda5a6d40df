"""Tells tales: any amount of them from a seed.

A story is a plan of events in a small world (`world`, `plans`), told by a grammar (`grammar`) and
read back by the grader (`grader`). Plain ASCII, one line per story. A story in another than the plain style begins
with its control code: "fable: ".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count
from random import Random
from typing import NamedTuple

from minilm.errors import UsageError
from minilm.text.encode import up_to
from minilm.text.tales.grammar import Form, Grammar, grammar
from minilm.text.tales.plans import Plans
from minilm.text.tales.words import Cast
from minilm.text.tales.world import Event, Limits

SPLITS = ("train", "val", "fresh", "names", "things", "pairs")
"""Disjoint ranges of seeds: for training, for validation, for measuring (never trained on); and three for measuring
generalisation, whose heroes' names, first things, or pairs of the two no other split has."""


class Beat(NamedTuple):
    """One sentence of a story with what happens in it."""

    text: str
    form: str
    """The sentence with its fields open: '{X.He} walked to the {Q}.'"""
    events: tuple[Event, ...]
    """Their arguments are letters of `cast`."""
    cast: dict[str, object]


def _say(plan: tuple[Event, ...], cast: Cast, g: Grammar, r: Random) -> list[tuple[Form, tuple[Event, ...]]]:
    """Draws a wording for every event such that each pronoun can mean one person, and each "it" one thing, only."""
    random, ways_of, reach = r.random, g.ways, g.reach
    _, she_bits, he_bits = cast
    said: list[tuple[Form, tuple[Event, ...]]] = []
    at = she = he = last = known = it = 0
    while at < len(plan):
        ways = ways_of(plan[at : at + reach.get(plan[at][0], 1)])
        for _ in range(1000):
            forms, window = ways[int(random() * len(ways))]
            form = forms[int(random() * len(forms))]
            if form.free:
                break
            need = form.needs(she_bits, he_bits)
            if need is None or (need[0] and need[0] != she) or (need[1] and need[1] != he):
                continue
            if form.it and form.it != it:
                continue
            if not form.implied or form.implied == _meant(last, known, ~form.spoken):
                break
        else:
            raise AssertionError(f"after 1,000 attempts no wording of {plan[at]} in {plan} can be understood")
        said.append((form, window))
        at += len(window)
        if form.people:
            last = form.people
            known |= last
            she, he = _meant(last, known, she_bits), _meant(last, known, he_bits)
        things = form.things
        it = (0 if things & (things - 1) else things) if things else it if form.it else 0
    return said


def _meant(last: int, known: int, among: int) -> int:
    """Bit of the one person among some (a pronoun's sex; whom a sentence leaves unsaid) who is meant: of those spoken
    of last, else of all."""
    able = last & among or known & among
    return 0 if able & (able - 1) else able


def _tell(seed: int, g: Grammar, split: str) -> tuple[list[tuple[Form, tuple[Event, ...]]], Cast]:
    """Draws a cast, a plan and the wordings; the last two again where the story is too short or too long."""
    shortest, longest = g.limits.words
    r = Random(seed | 1 << 64)  # of seeds of unlike lengths Random confuses some: 257 and 257 + 2**40
    cast = g.lexicon.cast(r, g.limits.people, g.limits.things, g.first_person, split)
    for attempt in count():
        plan = _plans(g.limits, g.level).plan(seed, attempt) if g.level > 1 else r.choice(r.choice(g.plans))
        said = _say(plan, cast, g, r)
        if shortest <= sum([form.words for form, _ in said]) <= longest:
            break
    return said, cast


@cache
def _plans(limits: Limits, level: int) -> Plans:
    return Plans(limits, level)


def _text(said: list[tuple[Form, tuple[Event, ...]]], cast: Cast, g: Grammar) -> str:
    return g.code + "".join([form.text for form, _ in said]).format_map(cast.words)[:-1]


def _check_seed(seed: int, end: int) -> None:
    if not 0 <= seed < end:
        raise UsageError(f"a seed for tales lies in 0 to {end - 1}, not {seed}")


def story(seed: int, level: int = 1, style: str = "plain") -> str:
    """One story, a pure function of its arguments (seed 0 to 2**64 - 1). UsageError: no such level, style or seed."""
    _check_seed(seed, 2**64)
    g = grammar(level, style)
    return _text(*_tell(seed, g, "train"), g)


def trace(seed: int, level: int = 1, style: str = "plain") -> list[Beat]:
    """The same story sentence by sentence, with its events; the control code is left out."""
    _check_seed(seed, 2**64)
    said, cast = _tell(seed, grammar(level, style), "train")
    return [Beat(form.text.format_map(cast.words)[:-1], form.text[:-1], events, cast.words) for form, events in said]


def stories(
    n: int | None = None,
    megabytes: float | None = None,
    seed: int = 0,
    level: int = 1,
    style: str = "plain",
    split: str = "train",
) -> Iterator[str]:
    """Streams `n` stories, or the whole stories that first make up `megabytes` (10**6 bytes, each with one line end).

    No two of (split, seed), seed 0 to 2**20 - 1, share a story's seed. UsageError: neither or both of n and megabytes,
    or an unknown level, style, seed or split.
    """
    if (n is None) == (megabytes is None):
        raise UsageError("give stories() either n or megabytes")
    if (n or 0) < 0 or (megabytes or 0) < 0:
        raise UsageError(f"stories() makes 0 or more of them, not {n or megabytes}")
    return _stream([grammar(level, style)], n, megabytes, first_seed(split, seed), split)


def _stream(grammars: list[Grammar], n: int | None, megabytes: float | None, first: int, split: str) -> Iterator[str]:
    texts = (one_of(grammars, i, first, split) for i in (count() if n is None else range(n)))
    return texts if megabytes is None else until(megabytes, texts)


def until(megabytes: float, texts: Iterator[str]) -> Iterator[str]:
    """The first of the texts that come to so much, each with a line end."""
    return up_to(megabytes * 1e6, texts if megabytes else (), lambda text: len(text) + 1)


def mixed_stories(styles: str, megabytes: float, seed: int = 0, level: int = 1, split: str = "train") -> Iterator[str]:
    """`stories` of one style, or of several, their names joined by commas, in turn: an equal number of each.

    The styles share a range of seeds, each story having its own, so that no context holds one story in two styles.
    """
    if megabytes < 0:
        raise UsageError(f"mixed_stories() makes 0 MB or more, not {megabytes}")
    names = [name.strip() for name in styles.split(",")]
    return _stream([grammar(level, name) for name in names], None, megabytes, first_seed(split, seed), split)


def one_of(grammars: list[Grammar], i: int, first: int, split: str) -> str:
    """Story number i of a stream whose seeds begin with `first`, in the grammar whose turn it is."""
    g = grammars[i % len(grammars)]
    return _text(*_tell(first + i, g, split), g)


def first_seed(split: str, seed: int) -> int:
    """The first of the seeds of a stream's stories. UsageError: no such split or seed."""
    if split not in SPLITS:
        raise UsageError(f"tales have the splits {', '.join(SPLITS)}, not {split!r}")
    _check_seed(seed, 2**20)
    return (SPLITS.index(split) << 20 | seed) << 40
