"""Damaged stories, and a second opinion on which of them are still valid.

A damage is done to the event trace (`tales.trace`): to the words that fill a sentence's fields, or to the order of the
sentences. `valid` replays the damaged trace in a world of its own, level 1 only, which shares no code with
`tales_world.apply` or the grader.
"""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from minilm.text import tales
from minilm.text.tales_grammar import grammar

PRONOUN_SEX = {"he": "he", "his": "he", "him": "he", "she": "she", "her": "she"}


class Line(NamedTuple):
    """One sentence, open to damage."""

    literals: list[str]
    """Text before each field, and after the last."""
    fields: list[str]
    words: list[str]
    """What fills the fields; an adjective or trait with its article."""
    events: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        return "".join(a + b for a, b in zip(self.literals, [*self.words, ""], strict=True))


def open_story(seed: int) -> list[Line]:
    lines = []
    for beat in tales.trace(seed):
        parts = list(string.Formatter().parse(beat.form))
        if parts[-1][1] is not None:
            parts.append(("", None, None, None))
        fields = [field for _, field, _, _ in parts if field]
        words = [("{" + field + "}").format_map(beat.cast) for field in fields]
        lines.append(Line([literal for literal, _, _, _ in parts], fields, words, beat.events))
        assert lines[-1].text() == beat.text
    return lines


def tell(lines: list[Line]) -> str:
    return " ".join(line.text() for line in lines)


def swap(kind: str, lines: list[Line], r: random.Random) -> list[Line]:
    """Another word of the kind, at one mention or all through one sentence."""
    g = grammar(1)
    ends = {
        "name": (".name",),
        "thing": (".noun",),
        "colour": (".adj",),
        "place": ("P", "Q"),
        "pronoun": (".he", ".He", ".his", ".His", ".him"),
    }[kind]
    spots = [(i, j) for i, line in enumerate(lines) for j, f in enumerate(line.fields) if f.endswith(ends)]
    if not spots:
        return lines
    i, j = r.choice(spots)
    old, words = lines[i].words[j], list(lines[i].words)
    if kind == "pronoun":
        slot = lines[i].fields[j][2:].lower()
        new = {"he": "she", "she": "he"}.get(old.lower(), "")
        new = new or ("her" if PRONOUN_SEX[old.lower()] == "he" else slot)
        words[j] = new.capitalize() if old[0].isupper() else new
    else:
        pool = {"name": list(g.sex), "thing": list(g.verbs), "place": g.places}.get(kind)
        new = r.choice([w for w in pool or sorted({t.adj for t in g.things}) if w != old])
        if kind == "place" and r.random() < 0.5:
            others = {w for line in lines for f, w in zip(line.fields, line.words, strict=True) if f in "PQ"} - {old}
            new = r.choice(sorted(others)) if others else new
        whole = r.random() < 0.5
        words = [new if k == j or (whole and w == old) else w for k, w in enumerate(words)]
    return [*lines[:i], lines[i]._replace(words=words), *lines[i + 1 :]]


def exchange(lines: list[Line], r: random.Random) -> list[Line]:
    i, j = sorted(r.sample(range(len(lines)), 2))
    return [*lines[:i], lines[j], *lines[i + 1 : j], lines[i], *lines[j + 1 :]]


def drop(lines: list[Line], r: random.Random) -> list[Line]:
    i = r.randrange(len(lines) - 1)
    return [*lines[:i], *lines[i + 1 :]]


DAMAGES: dict[str, Callable[[list[Line], random.Random], list[Line]]] = {
    "name": partial(swap, "name"),
    "pronoun": partial(swap, "pronoun"),
    "thing": partial(swap, "thing"),
    "colour": partial(swap, "colour"),
    "place": partial(swap, "place"),
    "exchange": exchange,
    "ending cut": lambda lines, _: lines[:-1],
    "sentence dropped": drop,
}


class World:
    """One person and one thing, replayed by plain reading of the events' meaning."""

    def __init__(self) -> None:
        self.who = self.noun = self.adj = self.here = self.spot = ""
        self.known_places: set[str] = set()
        self.visited: set[str] = set()
        self.not_at: set[str] = set()
        self.wish, self.goal = "", ""
        self.played_at: set[str] = set()
        self.over = False

    def sentence(self, line: Line) -> bool:
        g = grammar(1)
        said = [(f.split(".")[-1], w.split()[-1]) for f, w in zip(line.fields, line.words, strict=True)]
        kinds = [event[0] for event in line.events]
        names = {w for f, w in said if f == "name"}
        if "person" in kinds:
            if self.who or len(names) != 1:
                return False
            self.who = min(names)
        if not self.who or names - {self.who}:
            return False
        sexes = {PRONOUN_SEX[w.lower()] for f, w in said if f.lower() in PRONOUN_SEX}
        sexes |= {g.girls[w] for f, w in said if f == "girl"}
        if sexes - {g.sex[self.who]}:
            return False
        nouns, adjs = {w for f, w in said if f == "noun"}, {w for f, w in said if f.lower() in ("adj", "a_adj")}
        if {"lose", "hold", "keep", "left"} & set(kinds):
            if self.noun or len(nouns) != 1 or len(adjs) != 1:
                return False
            self.noun, self.adj = min(nouns), min(adjs)
        about_thing = any("T" in event[1:] for event in line.events)
        if about_thing and (not self.noun or nouns - {self.noun} or adjs - {self.adj}):
            return False
        if any(f in ("use", "used", "done") and w not in g.verbs[self.noun] for f, w in said):
            return False
        place = {f: w for f, w in said if f in ("P", "Q")}
        if len(self.known_places | set(place.values())) > 2:
            return False
        self.known_places |= set(place.values())
        return all(self.event(kind, [place[a] for a in args if a in place]) for kind, *args in line.events)

    def event(self, kind: str, places: list[str]) -> bool:
        """`spot`: where the thing is, "hands" while held, empty while lost or not introduced."""
        place = places[0] if places else ""
        thing_at = self.here if self.spot == "hands" else self.spot
        if self.over:
            return False
        if kind == "person":
            self.here, self.visited = place, {place}
        elif kind == "lose":
            self.not_at.add(self.here)
        elif kind == "hold":
            self.spot = "hands"
        elif kind in ("keep", "left"):
            self.spot = place
            return kind == "keep" or place != self.here
        elif kind == "recall":
            ok = place not in self.not_at and thing_at in ("", place)
            self.spot = self.spot or place
            return ok
        elif kind in ("want_have", "want_bring", "want_use"):
            ok = not self.wish
            self.wish, self.goal = kind[5:], place
            there = thing_at == place if kind == "want_bring" else place in self.played_at
            return ok and not (self.spot == "hands" if kind == "want_have" else there)
        elif kind in ("at", "leave"):
            return self.here == place
        elif kind == "absent":
            self.not_at.add(place)
            return self.here == place and thing_at != place
        elif kind in ("go", "carry", "carry_back"):
            moved, before = self.here != place, place in self.visited
            self.here = place
            self.visited.add(place)
            return moved and (kind == "go" or self.spot == "hands") and (kind != "carry_back" or before)
        elif kind == "find":
            if not self.spot and self.here not in self.not_at:
                self.spot = self.here
            return self.spot == self.here
        elif kind == "take":
            ok = self.spot == self.here
            self.spot = "hands"
            return ok
        elif kind in ("put", "use", "smile"):
            ok = self.spot == "hands"
            if kind == "put":
                self.spot = self.here
            if kind == "use":
                self.played_at.add(self.here)
            return ok
        elif kind == "sad":
            return thing_at != self.here
        elif kind.startswith("end"):
            self.over = True
            if not self.wish or kind not in ("end", f"end_{self.wish}"):
                return False
            goal = self.goal
            fulfilled = {"have": self.spot == "hands", "bring": self.spot == goal, "use": goal in self.played_at}
            return fulfilled[self.wish] and place in ("", goal)
        else:
            raise KeyError(kind)
        return True


def valid(lines: list[Line]) -> bool:
    world = World()
    return all(world.sentence(line) for line in lines) and world.over


def table(n: int) -> dict[str, Counter[str]]:
    """Kind -> counts: damaged, valid (and of these accepted), invalid (and of these rejected)."""
    r = random.Random(0)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in DAMAGES}
    for seed in range(n):
        lines = open_story(seed)
        assert valid(lines), tell(lines)
        for kind, damage in DAMAGES.items():
            damaged = damage(lines, r)
            if damaged == lines:
                continue
            verdict, still = tales.grade(tell(damaged)), valid(damaged)
            counts[kind].update(["damaged", "valid" if still else "invalid"])
            counts[kind]["accepted" if still else "rejected"] += verdict.passed == still
    return counts


def report(n: int) -> str:
    """`table` as Markdown."""
    lines = [
        "| damage | done | invalid | of these rejected | still valid | of these accepted |",
        "|---|---|---|---|---|---|",
    ]
    for kind, c in table(n).items():
        shares = [
            f"{100 * c[a] / c[b]:.1f} %" if c[b] else "-" for a, b in (("rejected", "invalid"), ("accepted", "valid"))
        ]
        lines.append(f"| {kind} | {c['damaged']:,} | {c['invalid']:,} | {shares[0]} | {c['valid']:,} | {shares[1]} |")
    return "\n".join(lines) + "\n"
