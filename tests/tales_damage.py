"""Damaged stories of every level and style, and how often the grader and the second opinion on them agree.

A damage is done to the event trace (`tales.trace`): to the words that fill a sentence's fields, or to the order of the
sentences. Whether the damaged story is still valid is decided by `tales_replay.fault`, never by the grader.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import NamedTuple

from tales_replay import TELLER, Line, fault
from tales_replay_ground import PEOPLE, PLACES, SEX, THINGS, words_of

from minilm.text import tales
from minilm.text.tales.words import with_article


class Story(NamedTuple):
    level: int
    style: str
    lines: list[Line]
    cast: dict[str, object]

    def text(self) -> str:
        code = "" if self.style == "plain" else f"{self.style}: "
        return code + " ".join(line.text() for line in self.lines)

    def fault(self) -> str:
        return fault(self.lines, self.level, self.style)

    def but(self, lines: list[Line]) -> Story:
        return self._replace(lines=lines)


def open_story(seed: int, level: int, style: str, cast: dict[str, object] | None = None) -> Story:
    """The story of a seed, its loose words drawn anew; with a `cast` of another story, told of that."""
    lines = []
    for beat in tales.trace(seed, level, style):
        cast = cast or beat.cast
        parts = list(string.Formatter().parse(beat.form))
        literals = [literal for literal, _, _, _ in parts] + [""] * (parts[-1][1] is not None)
        fields = [field for _, field, _, _ in parts if field]
        words = [f"{{{field}}}".format_map(cast) for field in fields]
        lines.append(Line(literals, fields, words, beat.events, style))
    assert cast
    return Story(level, style, lines, cast)


KINDS: dict[str, Callable[[str], bool]] = {
    "name": lambda field: field.endswith((".name", ".whom", ".own")),
    "object": lambda field: field.endswith(".noun"),
    "colour": lambda field: field[0] in THINGS and field.endswith("adj"),
    "place": lambda field: field in PLACES,
    "pronoun": lambda field: field[0] in PEOPLE and field.endswith((".he", ".He", ".his", ".His", ".him")),
}
"""What is swapped -> which fields hold it."""


def swap(kind: str, story: Story, r: Random) -> Story:
    """Another word of the kind, of this story or none of it, at one mention or all through one sentence."""
    lines, spots = story.lines, []
    for i, line in enumerate(story.lines):
        spots += [(i, j) for j, field in enumerate(line.fields) if KINDS[kind](field)]
    if not spots:
        return story
    i, j = r.choice(spots)
    fields, words = lines[i].fields, list(lines[i].words)
    old, whole = words[j], r.random() < 0.5
    if kind == "pronoun":
        sex = r.choice([sex for sex in ("he", "she") if sex != SEX.get(old.lower())])
        slot = fields[j][2:]
        new = {"he": {"he": "he", "his": "his", "him": "him"}, "she": {"he": "she", "his": "her", "him": "her"}}[sex][
            slot.lower()
        ]
        words[j] = new.capitalize() if slot[0].isupper() else new
    else:
        table = words_of(story.level)
        pool = {"name": table.names, "object": list(table.verbs), "place": table.places, "colour": table.adjectives}[
            kind
        ]
        mentions = [(f, w) for line in lines for f, w in zip(line.fields, line.words, strict=True)]
        own = sorted({w.split()[-1] for f, w in mentions if KINDS[kind](f) and w not in TELLER} - {old.split()[-1]})
        new = r.choice(own if own and r.random() < 0.5 else [w for w in pool if w != old.split()[-1]])
        for k, word in enumerate(words):
            if k == j or (whole and KINDS[kind](fields[k]) and word.split()[-1] == old.split()[-1]):
                words[k] = (
                    new if " " not in word else with_article(new) if r.random() < 0.9 else f"{word.split()[0]} {new}"
                )
                if word[0].isupper():
                    words[k] = words[k][0].upper() + words[k][1:]
    return story.but([*lines[:i], lines[i]._replace(words=words), *lines[i + 1 :]])


def exchange(story: Story, r: Random) -> Story:
    lines = list(story.lines)
    i, j = r.sample(range(len(lines)), 2)
    lines[i], lines[j] = lines[j], lines[i]
    return story.but(lines)


def drop(story: Story, r: Random) -> Story:
    i = r.randrange(len(story.lines) - 1)
    return story.but([*story.lines[:i], *story.lines[i + 1 :]])


def splice(one_cast: bool, story: Story, r: Random) -> Story:
    """The first part of one story and the last of another, of another cast or of the same."""
    other = open_story(r.randrange(2**40), story.level, story.style, story.cast if one_cast else None)
    return story.but(story.lines[: r.randrange(1, len(story.lines))] + other.lines[r.randrange(1, len(other.lines)) :])


def restyle(story: Story, r: Random) -> Story:
    return story._replace(style=r.choice([style for style in tales.STYLES if style != story.style]))


DAMAGES: dict[str, Callable[[Story, Random], Story]] = {
    "name": partial(swap, "name"),
    "pronoun": partial(swap, "pronoun"),
    "object": partial(swap, "object"),
    "colour": partial(swap, "colour"),
    "place": partial(swap, "place"),
    "sentences exchanged": exchange,
    "sentence dropped": drop,
    "ending cut": lambda story, _: story.but(story.lines[:-1]),
    "two stories spliced": partial(splice, False),
    "two stories of one cast spliced": partial(splice, True),
    "another style's code": restyle,
}


class Case(NamedTuple):
    """One damaged story: what the grader and the second opinion say of it."""

    damage: str
    story: Story
    verdict: tales.Verdict
    fault: str

    @property
    def agreed(self) -> bool:
        return self.verdict.passed == (not self.fault)


def cases(level: int, style: str, n: int, seed: int = 0) -> list[Case]:
    """`n` stories, each with every damage once that can be done to it."""
    r = Random(f"{level} {style} {seed}")
    found = []
    for _ in range(n):
        story = open_story(r.randrange(2**40), level, style)
        for damage, do in DAMAGES.items():
            damaged = do(story, r)
            if damaged != story:
                found.append(
                    Case(
                        damage,
                        damaged,
                        tales.grade(
                            damaged.text(),
                            level,
                        ),
                        damaged.fault(),
                    )
                )
    return found


def table(level: int, n: int, styles: tuple[str, ...] = tales.STYLES) -> dict[str, Counter[str]]:
    """Damage -> counts: done, invalid, of these rejected, valid, of these accepted; `n` stories of each style."""
    counts: dict[str, Counter[str]] = {damage: Counter() for damage in DAMAGES}
    for style in styles:
        for case in cases(level, style, n):
            what = ("invalid", "rejected") if case.fault else ("valid", "accepted")
            counts[case.damage].update(["done", what[0]] + [what[1]] * case.agreed)
    return counts


def report(counts: dict[str, Counter[str]]) -> str:
    """`table` as Markdown."""
    lines = [
        "| damage | done | invalid | of these rejected | still valid | of these accepted |",
        "|---|---|---|---|---|---|",
    ]
    for kind, c in counts.items():
        shares = [
            f"{100 * c[a] / c[b]:.2f} %" if c[b] else "-" for a, b in (("rejected", "invalid"), ("accepted", "valid"))
        ]
        lines.append(f"| {kind} | {c['done']:,} | {c['invalid']:,} | {shares[0]} | {c['valid']:,} | {shares[1]} |")
    return "\n".join(lines) + "\n"
