"""The tales' grammar: one table of templates, compiled to what the generator says and to what the grader reads.

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
from minilm.text.tales_world import INTRODUCES, Event, Limits, State, apply

PEOPLE, THINGS, PLACES, LOOSE = "XYZW", "TUVS", "PQRO", "D"
"""Letters of templates and plans. D stands for words that carry nothing to remember."""

PRONOUNS = {
    "she": {"he": "she", "his": "her", "him": "her"},
    "he": {"he": "he", "his": "his", "him": "him"},
}
"""Sex (named by the subject pronoun) -> slot -> word."""

VERB_FORMS = ("use", "used", "done")
"""Infinitive, past and participle of what a thing is for: wear, wore, worn."""

# Slot -> the class that its word belongs to in a skeleton. "her" is possessive and object, hence one class for three.
SLOT_CLASS = {"name": "name", "he": "he", "He": "He", "his": "his", "him": "his", "His": "His", "girl": "girl"}
SLOT_CLASS |= {"trait": "trait", "noun": "thing", "adj": "adj", "": "place", **dict.fromkeys(VERB_FORMS, "use")}

MENTIONS = {
    **{x: [f"{{{x}.name}}", f"{{{x}.he}}"] for x in PEOPLE},
    **{t: [f"the {{{t}.noun}}", "it"] for t in THINGS},
}
"""A bare {X} or {T}: the ways to mention who is known already."""

FIELD = re.compile(r"\{(\w)\.?(\w*)\}")
CAPITAL = re.compile(r"^(\{\w\.)(he\}|his\}|a_)")
INNERMOST = re.compile(rf"\[([^][]*)\]|\{{([{PEOPLE}{THINGS}])\}}")
"""A choice without choices in it, or a bare mention."""


class Person:
    """A person's words, as templates name them."""

    __slots__ = ("A_trait", "He", "His", "a_trait", "girl", "he", "him", "his", "name")

    def __init__(self, name: str, sex: str, girl: str, trait: str) -> None:
        self.name, self.girl = name, girl
        self.he, self.his, self.him = (PRONOUNS[sex][slot] for slot in ("he", "his", "him"))
        self.He, self.His = self.he.capitalize(), self.his.capitalize()
        self.a_trait = with_article(trait)
        self.A_trait = self.a_trait.capitalize()


class Thing:
    """A thing's words, as templates name them."""

    __slots__ = ("A_adj", "a_adj", "adj", "done", "noun", "use", "used")

    def __init__(self, noun: str, adj: str, verbs: list[str]) -> None:
        self.noun, self.adj = noun, adj
        self.use, self.used, self.done = verbs
        self.a_adj = with_article(adj)
        self.A_adj = self.a_adj.capitalize()


class Loose:
    """Words drawn once per story that nothing depends on."""

    __slots__ = ("mood", "spot", "time")

    def __init__(self, time: str, spot: str, mood: str) -> None:
        self.time, self.spot, self.mood = time, spot, mood


class Form(NamedTuple):
    """One way to tell a run of events."""

    text: str
    """A format string over the letters' entities, ends with a full stop and a space."""
    words: int
    things: bool
    """Mentions a thing by its noun or by "it", so that the next sentence may say "it"."""


class Option(NamedTuple):
    """One template at one point of a plan."""

    forms: tuple[Form, ...]
    named: tuple[Form, ...]
    """The forms that do not begin to speak of a thing as "it"; for when the sentence before mentioned none."""
    events: tuple[Event, ...]
    next: int
    """Index into the plan of the first event after these."""


class Reading(NamedTuple):
    """What a skeleton means: words at `slots` (position, slot, letter) fill the letters of `events`."""

    slots: tuple[tuple[int, str, str], ...]
    events: tuple[Event, ...]
    new: frozenset[str]
    """Letters that the events introduce."""
    people: tuple[str, ...]
    things: tuple[str, ...]


def with_article(word: str) -> str:
    """'a brave', 'an old'. The tables hold no word whose first letter misleads (hour, useful)."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


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


class Grammar:
    """One level's table, compiled."""

    def __init__(self, table: dict) -> None:
        limits = table["limits"]
        self.limits = Limits(limits["people"], limits["things"], limits["places"], tuple(limits["words"]))
        self._read_words(table["words"])
        self.templates = {parse_events(key): [list(expand(t)) for t in said] for key, said in table["say"].items()}
        self.readings: dict[str, Reading] = {}
        for events, templates in self.templates.items():
            for form in (form for forms in templates for form in forms):
                self._add_reading(events, form)
        self.longest = max(map(len, self.readings)) + 12 * max(s.count(" ") for s in self.readings)
        self._told: dict[tuple[Event, ...], list[tuple[tuple[Form, ...], tuple[Form, ...]]]] = {}
        self.plans = [[self._compile(plan) for plan in plan_variants(text)] for text in table["plans"].values()]

    def _read_words(self, words: dict) -> None:
        self.sex = {name: sex for sex in PRONOUNS for name in words[sex].split()}
        self.girls = {girl: sex for sex in PRONOUNS for girl in words["person"][sex].split()}
        self.verbs = {noun: key.split() for key, nouns in words["use"].items() for noun in nouns.split()}
        self.places: list[str] = words["place"].split()
        loose = {name: words[name].split() for name in Loose.__slots__}
        traits, adjs = words["trait"].split(), words["adj"].split()
        self.people = [
            Person(n, sex, g, t)
            for n, sex in self.sex.items()
            for g, s in self.girls.items()
            if s == sex
            for t in traits
        ]
        self.things = [Thing(noun, adj, verbs) for noun, verbs in self.verbs.items() for adj in adjs]
        self.loose = [Loose(**dict(zip(loose, w, strict=True))) for w in product(*loose.values())]
        used = {verb for verbs in self.verbs.values() for verb in verbs}
        classes = {"name": self.sex, "girl": self.girls, "thing": self.verbs, "place": self.places, "use": used}
        classes |= {"trait": traits, "adj": adjs, **loose}
        classes |= {"he": ["he", "she"], "He": ["He", "She"], "his": ["his", "him", "her"], "His": ["His", "Her"]}
        self.symbol: dict[str, str] = {}
        for name, members in classes.items():
            for word in members:
                if self.symbol.setdefault(word, f"<{name}>") != f"<{name}>":
                    raise ValueError(f"'{word}' stands in two classes of words")

    def _add_reading(self, events: tuple[Event, ...], form: str) -> None:
        letters = list(dict.fromkeys(letter for event in events for letter in event[1:]))
        new = frozenset(e[INTRODUCES[e[0]]] for e in events if e[0] in INTRODUCES)
        people = tuple(x for x in letters if x in PEOPLE)
        things = tuple(t for t in letters if t in THINGS)
        words: list[str] = []
        slots: list[tuple[int, str, str]] = []
        for word in form.rstrip(".").replace(",", " ,").split(" "):
            field = FIELD.fullmatch(word)
            if field is None:
                if word in self.symbol:
                    raise ValueError(f"'{word}' is a word of class {self.symbol[word]}: '{form}' must not spell it out")
                words.append(word)
                continue
            letter, slot = field.groups()
            if slot[:2] in ("a_", "A_"):
                words.append(f"{slot[0]}~")
                slot = slot[2:]
            slots.append((len(words), slot, letter))
            words.append(f"<{slot if letter in LOOSE else SLOT_CLASS[slot]}>")
        reading = Reading(tuple(slots), events, new, people, things)
        for n in ("", "n"):
            skeleton = " ".join(words).replace("~", n)
            if self.readings.setdefault(skeleton, reading) != reading:
                raise ValueError(f"'{skeleton}' has two meanings: {self.readings[skeleton].events} and {events}")

    def _compile(self, plan: tuple[Event, ...]) -> list[list[Option]]:
        """For every index of the plan the templates that may come next, after a replay that proves the plan valid."""
        state = State(self.limits)
        for event in plan:
            if rule := apply(state, event):
                raise ValueError(f"plan {plan} breaks the rule '{rule}' at {event}")
        if not state.ended:
            raise ValueError(f"plan {plan} does not end")
        options: list[list[Option]] = [[] for _ in plan]
        for i in reversed(range(len(plan))):
            for length in range(1, len(plan) - i + 1):
                if i + length == len(plan) or options[i + length]:
                    events = plan[i : i + length]
                    options[i] += [Option(*forms, events, i + length) for forms in self._tell(events)]
        if not options[0]:
            raise ValueError(f"the templates cannot tell the plan {plan}")
        return options

    def _tell(self, events: tuple[Event, ...]) -> list[tuple[tuple[Form, ...], tuple[Form, ...]]]:
        """Every template for these events, its letters renamed to the plan's: all forms, and those for `named`."""
        if events in self._told:
            return self._told[events]
        found = self._told[events] = []
        for key, templates in self.templates.items():
            if tuple(e[0] for e in key) != tuple(e[0] for e in events):
                continue
            letters: dict[str, str] = {}
            pairs = [pair for k, e in zip(key, events, strict=True) for pair in zip(k[1:], e[1:], strict=True)]
            if any(letters.setdefault(theirs, ours) != ours for theirs, ours in pairs):
                continue
            for forms in templates:
                told = tuple(make_form(form, letters) for form in forms)
                named = tuple(t for t, form in zip(told, forms, strict=True) if not begins_with_it(form))
                found.append((told, named or told))
        return found


def make_form(form: str, letters: dict[str, str]) -> Form:
    text = FIELD.sub(lambda m: m[0].replace(m[1], letters.get(m[1], m[1]), 1), form)
    articles = len(re.findall(r"\.[aA]_", text))
    return Form(text + " ", len(text.split()) + articles, ".noun}" in text or begins_with_it(form))


def begins_with_it(form: str) -> bool:
    """Whether the first mention of a thing in this sentence is 'it'."""
    return re.search(r"\b[Ii]t\b", form.split(".noun}")[0]) is not None


LEVELS = (1,)


@cache
def grammar(level: int) -> Grammar:
    """The compiled table of a level (about 0.1 s on first use). UsageError: there is no such level."""
    if level not in LEVELS:
        raise UsageError(f"tales have level {' or '.join(map(str, LEVELS))}, not {level!r}")
    return Grammar(tomllib.loads(resources.files(__package__).joinpath(f"tales_level{level}.toml").read_text("ascii")))
