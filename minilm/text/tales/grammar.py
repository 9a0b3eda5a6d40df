"""The tales' grammar: tables of templates, compiled to what the generator says and to what the grader reads.

Every template is expanded into all its forms (inline choices, name or pronoun, ways to mention a thing). A form is a
format string for the generator. Its *skeleton*, the same sentence with every word of a class replaced by the class, is
the key under which the grader finds it: one dictionary look-up reads a sentence, and two forms with one skeleton and
different meanings are refused when the table is compiled, so each sentence has one parse.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product
from typing import NamedTuple

from minilm.errors import UsageError
from minilm.text.tales.events import INTRODUCES
from minilm.text.tales.words import LOOSE, PEOPLE, SLOT_CLASS, THINGS, Lexicon
from minilm.text.tales.world import Event, Limits

LEVELS = (1, 2, 3, 4)
STYLES = ("plain", "fable", "news", "letter", "diary", "dialogue")
FIRST_PERSON = ("letter", "diary")
"""Styles in which the hero tells: I, my, me."""

MENTIONS = {
    **{x: [f"{{{x}.name}}", f"{{{x}.he}}"] for x in PEOPLE},
    **{f"{x}*": [f"{{{x}.whom}}", f"{{{x}.him}}"] for x in PEOPLE},
    **{t: [f"the {{{t}.noun}}", f"{{{t}.it}}"] for t in THINGS},
}
"""A bare {X}, as an object {X*}, or {T}: the ways to mention who is known already."""

FIELD = re.compile(r"\{(\w)\.?(\w*)\}")
CAPITAL = re.compile(r"^(\{\w\.)(he\}|his\}|it\}|a_)")
INNERMOST = re.compile(rf"\[([^][]*)\]|\{{([{PEOPLE}{THINGS}]\*?)\}}")
"""A choice without choices in it, or a bare mention."""
IT = re.compile(r"\b([Ii]t)\b(?!\})")

NARRATED = {"name": "I", "he": "I", "He": "I", "his": "my", "him": "me", "whom": "me", "His": "My"}
NAMED, PRONOUN = ("name", "whom"), ("he", "He", "his", "him", "His")
BIT = {letter: 1 << i for letters in (PEOPLE, THINGS) for i, letter in enumerate(letters)}


class Form:
    """One way to tell a run of events, its letters being a plan's."""

    __slots__ = ("_needs", "_order", "free", "implied", "it", "people", "spoken", "text", "things", "words")

    def __init__(self, text: str, events: tuple[Event, ...]) -> None:
        self.text = text + " "
        fields = [m.groups() for m in FIELD.finditer(text)]
        self.words = len(text.split()) + len(re.findall(r"\.[aA]_", text))
        self._order = [(BIT[x], slot in PRONOUN) for x, slot in fields if x in PEOPLE and slot in NAMED + PRONOUN]
        args = {letter for event in events for letter in event[1:]}
        silent = args.intersection(PEOPLE) - {x for x, slot in fields if x in PEOPLE}
        self.implied = BIT[silent.pop()] if len(silent) == 1 else 0
        """Bit of the person whom the events name and the sentence does not; it must be clear who is meant."""
        if silent:
            raise ValueError(f"'{text}' leaves two people of {events} unsaid")
        self.spoken = sum({BIT[x] for x, _ in fields if x in PEOPLE})
        self.people = self.spoken | self.implied
        things = [(BIT[t], slot in ("it", "It")) for t, slot in fields if t in THINGS and slot in ("noun", "it", "It")]
        if any(is_it and bit != things[0][0] for bit, is_it in things):
            raise ValueError(f"'{text}' says 'it' of a thing that is not the first in the sentence")
        unsaid = args.intersection(THINGS) - {t for t, slot in fields if t in THINGS}
        self.it = things[0][0] if things and things[0][1] else BIT[unsaid.pop()] if len(unsaid) == 1 else 0
        """Bit of the thing that the sentence begins to speak of as 'it', or that it means without saying so."""
        if unsaid:
            raise ValueError(f"'{text}' leaves two things of {events} unsaid")
        self.things = sum({bit for bit, _ in things})
        self.free = not (self.it or self.implied or any(pronoun for _, pronoun in self._order))
        """Needs nothing of the sentence before."""
        self._needs: dict[int, tuple[int, int] | None] = {}

    def needs(self, she: int, he: int) -> tuple[int, int] | None:
        """Bits of whom "she" and "he" have to mean before this sentence; None where it could not be understood.

        A pronoun means the first of its sex in the sentence, and before any is mentioned there, who was meant before.
        """
        key = she << 4 | he
        if key not in self._needs:
            self._needs[key] = self._resolve(she, he)
        return self._needs[key]

    def _resolve(self, she: int, he: int) -> tuple[int, int] | None:
        first, need = [0, 0], [0, 0]
        for bit, pronoun in self._order:
            sex = 0 if bit & she else 1 if bit & he else None
            if sex is None:
                continue
            if pronoun and first[sex] not in (0, bit):
                return None
            if pronoun and not first[sex]:
                need[sex] = bit
            first[sex] = first[sex] or bit
        return need[0], need[1]


class Reading(NamedTuple):
    """What a skeleton means: words at `slots` (position, slot, letter) fill the letters of `events`."""

    slots: tuple[tuple[int, str, str], ...]
    events: tuple[Event, ...]
    new: frozenset[str]
    """Letters that the events introduce."""
    people: tuple[str, ...]
    things: tuple[str, ...]
    narrator: str
    """The letter that tells the story, where the sentence says I, my or me."""


def expand(template: str) -> Iterator[str]:
    """All forms of a template: choices taken, mentions spelled out, the first letter a capital."""
    if choice := INNERMOST.search(template):
        ways = MENTIONS[choice[2]] if choice[2] else choice[1].split("|")
        for way in ways:
            yield from expand(template[: choice.start()] + way + template[choice.end() :])
    elif template[0] == "{":
        yield CAPITAL.sub(lambda m: m[1] + m[2].capitalize(), template)
    else:
        yield template[0].upper() + template[1:]


def forms_of(template: str, events: tuple[Event, ...]) -> list[str]:
    """`expand`, with a plain "it" bound to the one thing of the events, and without those that cannot be understood."""
    things = {letter for event in events for letter in event[1:] if letter in THINGS}
    forms = []
    for form in expand(template):
        if IT.search(form):
            if len(things) != 1:
                raise ValueError(f"which thing is 'it' in '{template}'? Write {{T.it}}")
            (thing,) = things
            form = IT.sub(rf"{{{thing}.\1}}", form)
        said = [(t, slot) for t, slot in FIELD.findall(form) if t in THINGS and slot in ("noun", "it", "It")]
        if all(slot == "noun" or t == said[0][0] for t, slot in said):
            forms.append(form)
    return list(dict.fromkeys(forms))


def parse_events(text: str) -> tuple[Event, ...]:
    """'find X T, take X T' -> (("find", "X", "T"), ("take", "X", "T"))."""
    return tuple(tuple(event.split()) for event in text.split(","))


def plan_variants(plan: str) -> list[tuple[Event, ...]]:
    """All plans that a plan's (optional) and alternative / events allow."""
    steps = []
    for step in plan.split(";"):
        either: list[Event | None] = [tuple(event.split()) for event in step.strip(" \n()").split("/")]
        steps.append([*either, None] if "(" in step else either)
    return [tuple(e for e in chosen if e) for chosen in product(*steps)]


def split_words(sentence: str) -> list[str]:
    """A sentence without its full stop -> its words, commas and question marks apart from the word before."""
    return sentence.replace(",", " ,").replace("?", " ?").split(" ")


class Grammar:
    """One level and style, compiled from the merged table of its level."""

    def __init__(self, table: dict, level: int = 1, style: str = "plain") -> None:
        self.level, self.style = level, style
        self.code = "" if style == "plain" else f"{style}: "
        """What a story begins with."""
        limits = table["limits"]
        shortest, longest = limits["words"]
        longest += 16 * (style != "plain")  # what a style says at the beginning and the end
        self.limits = Limits(limits["people"], limits["things"], limits["places"], (shortest, longest))
        self.first_person = style in FIRST_PERSON
        self.lexicon = Lexicon(table["words"], table["held_out"])
        said = restyle(table["say"], table["style"].get(style, {}))
        self.templates = {
            events: [forms_of(t, events) for t in templates]
            for key, templates in said.items()
            for events in [parse_events(key)]
        }
        self.readings: dict[str, Reading] = {}
        for events, templates in self.templates.items():
            for form in dict.fromkeys(form for forms in templates for form in forms):
                self._read(events, form)
        self.longest = max(map(len, self.readings)) + 12 * max(s.count(" ") for s in self.readings)
        """Characters that no sentence exceeds."""
        self.plans = [plan_variants(text) for text in table.get("plans", {}).values()]
        self.kinds = {event[0] for events in self.templates for event in events}
        self._by_kinds: dict[tuple[str, ...], list[tuple[Event, ...]]] = {}
        for events in self.templates:
            self._by_kinds.setdefault(tuple(e[0] for e in events), []).append(events)
        self.runs: dict[str, list[tuple[str, ...]]] = {}
        """Kind -> the runs of two and more kinds that begin with it and have templates of their own."""
        for kinds in self._by_kinds:
            if len(kinds) > 1:
                self.runs.setdefault(kinds[0], []).append(kinds)
        self.reach = {kind: max(map(len, runs)) for kind, runs in self.runs.items()}
        """Kind -> events of its longest run."""
        self._ways: dict[tuple[Event, ...], list[tuple[tuple[Form, ...], tuple[Event, ...]]]] = {}
        self._told: dict[tuple[Event, ...], list[tuple[Form, ...]]] = {}

    def ways(self, coming: tuple[Event, ...]) -> list[tuple[tuple[Form, ...], tuple[Event, ...]]]:
        """All templates that tell the first, or the first few, of the coming events, each with the events it tells."""
        try:
            return self._ways[coming]
        except KeyError:
            kinds = tuple(event[0] for event in coming)
            runs = [coming[:1], *[coming[: len(r)] for r in self.runs.get(kinds[0], ()) if kinds[: len(r)] == r]]
            found = self._ways[coming] = [(forms, run) for run in runs for forms in self.told(run)]
            return found

    def told(self, events: tuple[Event, ...]) -> list[tuple[Form, ...]]:
        """Every template for these events of a plan, each as its forms with the plan's letters."""
        try:
            return self._told[events]
        except KeyError:
            found = self._told[events] = []
        for key in self._by_kinds.get(tuple(e[0] for e in events), ()):
            letters: dict[str, str] = {}
            pairs = [pair for k, e in zip(key, events, strict=True) for pair in zip(k[1:], e[1:], strict=True)]
            if any(letters.setdefault(theirs, ours) != ours for theirs, ours in pairs):
                continue
            for forms in self.templates[key]:
                found.append(tuple(Form(_renamed(form, letters), events) for form in forms))
        return found

    def told_otherwise(self, skeleton: str) -> bool:
        """Whether this is a sentence of another style."""
        return any(skeleton in grammar(self.level, style).readings for style in STYLES if style != self.style)

    def _read(self, events: tuple[Event, ...], form: str) -> None:
        self._add_reading(events, form, "")
        if self.first_person:
            for letter in {x for x, slot in FIELD.findall(form) if x in PEOPLE and slot in NARRATED}:
                self._add_reading(events, _narrated(form, letter), letter)

    def _add_reading(self, events: tuple[Event, ...], form: str, narrator: str) -> None:
        letters = list(dict.fromkeys(letter for event in events for letter in event[1:]))
        new = frozenset(e[INTRODUCES[e[0]]] for e in events if e[0] in INTRODUCES)
        words: list[str] = []
        slots: list[tuple[int, str, str]] = []
        for word in split_words(form.removesuffix(".")):
            field = FIELD.fullmatch(word)
            if field is None:
                if word in self.lexicon.symbol or "{" in word:
                    said = self.lexicon.symbol.get(word, "a field")
                    raise ValueError(f"'{word}' is a word of class {said}: '{form}' must not spell it out")
                words.append(word)
                continue
            letter, slot = field.groups()
            if slot[:2] in ("a_", "A_"):
                words.append(f"{slot[0]}~")
                slot = slot[2:]
            slots.append((len(words), slot, letter))
            kind = slot if letter in LOOSE or slot in ("it", "It") else SLOT_CLASS[slot]
            words.append(kind if slot in ("it", "It") else f"<{kind}>")
        people = tuple(x for x in letters if x in PEOPLE)
        things = tuple(t for t in letters if t in THINGS)
        reading = Reading(tuple(slots), events, new, people, things, narrator)
        for n in ("", "n"):
            skeleton = " ".join(words).replace("~", n)
            if self.readings.setdefault(skeleton, reading) != reading:
                raise ValueError(f"'{skeleton}' has two meanings: {self.readings[skeleton].events} and {events}")


def _narrated(form: str, letter: str) -> str:
    return FIELD.sub(lambda m: NARRATED.get(m[2], m[0]) if m[1] == letter else m[0], form)


def _renamed(form: str, letters: dict[str, str]) -> str:
    return FIELD.sub(lambda m: m[0].replace(m[1], letters.get(m[1], m[1]), 1), form)


def restyle(say: dict[str, list[str]], own: dict[str, list[str]]) -> dict[str, list[str]]:
    """A style's templates: its own, and the plain ones of all runs of events without a kind that it tells itself."""
    kinds = {parse_events(key)[0][0] for key in own if "," not in key}
    told = {event[0] for key in say for event in parse_events(key)}
    kept = {key: said for key, said in say.items() if kinds.isdisjoint(e[0] for e in parse_events(key))}
    return kept | {key: said for key, said in own.items() if told.issuperset(e[0] for e in parse_events(key))}


@cache
def tables(level: int) -> dict:
    """A level's table: what its own file adds to those of the levels before it, and the styles."""
    merged: dict = {"say": {}, "words": {}, "held_out": {}}
    for n in range(1, level + 1):
        table = tomllib.loads(_resource(f"level{n}.toml"))
        merged["limits"] = table["limits"]
        merged["plans"] = table.get("plans", {})
        for key, templates in table["say"].items():
            merged["say"].setdefault(key, []).extend(templates)
        for part in ("words", "held_out"):
            _add_words(merged[part], table.get(part, {}))
    merged["style"] = tomllib.loads(_resource("styles.toml"))
    return merged


def _add_words(words: dict, more: dict) -> None:
    for name, said in more.items():
        if isinstance(said, dict):
            _add_words(words.setdefault(name, {}), said)
        else:
            words[name] = f"{words.get(name, '')} {said}"


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("ascii")


@cache
def grammar(level: int, style: str = "plain") -> Grammar:
    """The compiled table of a level (up to a second on first use). UsageError: there is no such level or style."""
    if level not in LEVELS:
        raise UsageError(f"tales have the levels {', '.join(map(str, LEVELS))}, not {level!r}")
    if style not in STYLES:
        raise UsageError(f"tales have the styles {', '.join(STYLES)}, not {style!r}")
    return Grammar(tables(level), level, style)
