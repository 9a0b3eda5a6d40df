"""The grader: reads a story back sentence by sentence and names the first rule that it breaks.

A sentence costs one dictionary look-up; then its mentions are resolved to people and things, and its events are
applied to the world. Any string is judged, none raises; time is linear in the length, and reading ends at the first
fault.
"""

from __future__ import annotations

from typing import NamedTuple

from minilm.text.tales_grammar import VERB_FORMS, Grammar, Reading, grammar
from minilm.text.tales_world import State, apply

SEX_OF = {
    "his": {"his": "he", "her": "she"},
    "him": {"him": "he", "her": "she"},
    "he": {"he": "he", "she": "she"},
}
"""Slot -> word -> sex."""


class Verdict(NamedTuple):
    """What the grader found."""

    passed: bool
    rule: str | None
    """The first broken rule, a key of `RULES`."""
    sentences: int
    """Sentences in the text."""
    before: int
    """Sentences before the broken one; all of them where only the end is missing."""
    broken: str
    """The sentence that breaks the rule; empty where the story passes or only the end is missing."""


def grade(text: str, level: int = 1) -> Verdict:
    """Judges one story. UsageError: no such level."""
    g = grammar(level)
    state = State(g.limits)
    sentences = text.strip().split(". ")
    count = len(sentences)
    if sentences[-1].endswith("."):
        sentences[-1] = sentences[-1][:-1]
    else:
        sentences[-1] += "\n"  # no sentence of any grammar: the text stops in the middle of one
    for i, sentence in enumerate(sentences):
        rule = _read(g, state, sentence)
        if rule is not None:
            return Verdict(False, rule, count, i, sentence.rstrip("\n")[: g.longest])
    if not state.ended:
        return Verdict(False, "ending" if state.want else "want", count, count, "")
    return Verdict(True, None, count, count, "")


def _read(g: Grammar, state: State, sentence: str) -> str | None:
    """Parses one sentence and lets its events happen. Returns the broken rule, if any."""
    if len(sentence) > g.longest or "<" in sentence:
        return "parse"
    words = sentence.replace(",", " ,").split(" ")
    symbol = g.symbol
    reading = g.readings.get(" ".join([symbol.get(word, word) for word in words]))
    if reading is None:
        return "parse"
    found: dict[str, str] = {}
    adjs: dict[str, str] = {}
    sexes: dict[str, str] = {}
    verb = None
    for i, slot, letter in reading.slots:
        word = words[i]
        if slot in ("", "name", "noun"):
            if found.setdefault(letter, word) != word:
                return "introduced"
        elif slot == "girl":
            if sexes.setdefault(letter, g.girls[word]) != g.girls[word]:
                return "pronoun"
        elif slot in ("adj", "trait"):
            if (article := words[i - 1].lower()) in ("a", "an") and (article == "an") != (word[0] in "aeiou"):
                return "parse"
            if slot == "adj":
                adjs[letter] = word
        elif slot in VERB_FORMS:
            verb = (letter, VERB_FORMS.index(slot), word)
        elif letter != "D":
            sex = SEX_OF[slot.lower()].get(word.lower())
            if sex is None:
                return "parse"
            if sexes.setdefault(letter, sex) != sex:
                return "pronoun"
    return (
        _resolve_people(g, state, reading, found, sexes)
        or _resolve_things(g, state, reading, found, adjs, verb)
        or _happen(state, reading, found)
    )


def _resolve_people(
    g: Grammar, state: State, reading: Reading, found: dict[str, str], sexes: dict[str, str]
) -> str | None:
    """Fills in who is meant by pronouns alone, or by nothing: then there must be one person only."""
    for letter in reading.people:
        name, sex = found.get(letter), sexes.get(letter)
        if name is None:
            if not state.people:
                return "introduced"
            able = [person for person in state.people if sex in (None, g.sex[person])]
            if len(able) != 1:
                return "pronoun"
            found[letter] = able[0]
        elif name not in state.people and letter not in reading.new:
            return "introduced"
        elif sex is not None and sex != g.sex[name]:
            return "pronoun"
    return None


def _resolve_things(
    g: Grammar, state: State, reading: Reading, found: dict[str, str], adjs: dict[str, str], verb: tuple | None
) -> str | None:
    """Replaces nouns and 'it' by the things they mean. A thing's identity is its adjective and noun."""
    for letter in reading.things:
        noun, adj = found.get(letter), adjs.get(letter)
        if letter in reading.new:
            found[letter] = f"{adj} {noun}"
        else:
            able = state.things
            if noun is not None:
                named = noun if adj is None else f"{adj} {noun}"
                able = [thing for thing in able if thing.endswith(named)]
            if len(able) != 1:
                return "pronoun" if len(able) > 1 else "introduced"
            found[letter] = able[0]
        if verb and verb[0] == letter:
            _, form, word = verb
            if g.verbs[found[letter].split()[1]][form] != word:
                return "parse"
    return None


def _happen(state: State, reading: Reading, found: dict[str, str]) -> str | None:
    for kind, *letters in reading.events:
        if rule := apply(state, (kind, *[found[letter] for letter in letters])):
            return rule
    return None
